//! Does it hold: naive models, hostile generators, the lab with real peers.
//!
//! This crate is the project's test bench. What several tests need stands here in the library; the tests themselves are in `tests/`.
//!
//! - [`lab`] starts programs nobody here wrote (QEMU, DPDK's testpmd, a Linux guest) against the product.
//! - [`stage`] puts several of the product's devices on one worker of this process, for tests in which one guest must not notice another.
//! - [`kernel`] serves a device to a model of the host's kernel (VDUSE) and drives it from there, for tests in which the server dies.
//! - [`attached`](fn@attached) shows a device of this process the memory of a guest of this process.
//! - [`disk`] drives a block device and knows what must be on it, whoever is killed meanwhile.
//! - [`blocks`] makes blocks that can be told from all others.
//! - [`random`] makes numbers that look random and can be had again.
//! - [`steady`] counts what a burst costs that no clock shows.
//! - [`versus`] measures the product and DPDK's vhost back-end under the same front-end, in turns.
//! - [`house`] reads the source tree and says where it breaks the rules of the house.
//! - [`documents`] reads the Markdown files and says where they disagree with the rest of the tree.

mod attached;
pub mod blocks;
pub mod disk;
pub mod documents;
pub mod house;
pub mod kernel;
pub mod lab;
pub mod random;
pub mod stage;
pub mod steady;
pub mod versus;

pub use attached::attached;
