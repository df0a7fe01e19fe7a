//! A device of the host's own kernel, and the front-end that drives it through vhost-vdpa. Both are in this process, except
//! where one of them is to be killed.
pub mod barrier;
pub mod disk;
pub mod front;
pub mod iotlb;
mod killed;
pub mod leaving;
pub mod memory;
pub mod restart;
pub mod server;

pub use killed::drive;
pub use server::missing;
