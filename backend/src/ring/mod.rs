//! Rings, device side: chains of buffers in, used entries out.
//!
//! A [`SplitRing`] lives as long as its queue runs and keeps only addresses and indices. A [`Vring`] is the ring opened
//! inside one [`Burst`](mdev_pin::Burst): there its parts are resolved (or recalled, when the table has not changed), a batch of
//! chains is taken with one look at the available index, their used entries are written side by side, and the used index
//! is published once. A burst that is dropped instead has taken nothing, so a chain that cannot be served yet (a hole in
//! the memory table) simply was not taken.
//!
//! Everything in the ring belongs to a hostile driver. Each value is read once into a local, checked, then used; chains
//! are laid flat into a buffer that was allocated when the ring started. A malformed ring is a [`RingError`] with a name
//! and never looks like an empty one. Reading and writing can touch only the slices that the burst resolved.
//!
//! No locks, no allocation after start, no system calls, nothing blocks. Opening a ring can fail (memory), taking can
//! fail (malformed); completing and publishing fail only for poisoned memory.
//!
//! Not here: packed rings, in-order batching, dirty logging, recording of requests in flight.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod batch;
mod chain;
mod error;
mod split;
mod vring;

pub use batch::MAX_BURST;
pub use chain::{Buffer, Chain, MAX_CHAIN};
pub use error::{Direction, Part, RingError};
pub use split::{MAX_RING_SIZE, QueueState, RingAddr, RingSetup, SplitRing};
pub use vring::Vring;

#[cfg(test)]
pub(crate) mod tests;
