//! Rings, device side: chains of buffers in, used entries out, in the split and in the packed format.
//!
//! A [`Ring`] lives as long as its queue runs and keeps only addresses and positions. A [`Vring`] is the ring opened
//! inside one [`Burst`](mdev_pin::Burst): there its parts are resolved (or recalled, when the table has not changed), a batch of
//! chains is taken, what becomes of them is noted, and all of it is published once. A burst that is dropped instead has taken
//! nothing, so a chain that cannot be served yet (a hole in the memory table) simply was not taken.
//!
//! | file | the question it answers |
//! |---|---|
//! | `setup` | what is a ring started with, and what is left of it |
//! | `idle` | what is kept between bursts |
//! | `place` | where are its parts in the present table |
//! | `vring` | what may be done with it in a burst, whatever its format |
//! | `split`, `packed` | how is that done in this format |
//! | `chain`, `packed_chain` | what does a descriptor chain say |
//! | `batch` | what has happened in the burst so far |
//! | `log` | which chains are in flight, for whoever comes after us |
//!
//! Engines do not see the format: it is asked for once for each step of a burst, and what an engine does with a chain is compiled
//! for both. A split ring's used entries are written side by side and the used index is published once. In a packed ring used
//! descriptors take the place of available ones, so that they are written when the burst is published and not before: the
//! later ones first, the first one last, each with one store. A chain of n descriptors skips n slots when it is used; n is
//! remembered under its buffer id, so that chains may be completed in any order and in later bursts.
//!
//! Where VIRTIO_F_IN_ORDER was negotiated, chains that a device has only read are published with one entry for all of a
//! burst. Chains that were written keep an entry each, because each has a length of its own. Offering that feature is the
//! device's promise to complete in order; rings do not check it.
//!
//! Everything in the ring belongs to a hostile driver. Each value is read once into a local, checked, then used; chains
//! are laid flat into a buffer that was allocated when the ring started. A malformed ring is a [`RingError`] with a name
//! and never looks like an empty one. Reading and writing can touch only the slices that the burst resolved.
//!
//! No locks, no allocation after start, no system calls, nothing blocks. Opening a ring can fail (memory), taking can
//! fail (malformed); completing and publishing fail only for poisoned memory.
//!
//! A ring may have a log of its chains in flight ([`RingLog`]): then it begins where ring and log say, and the chains that are
//! recorded are the first that [`Vring::take`] takes. Engines need not know.
//!
//! Not here: dirty logging. A ring that is reset (VIRTIO_F_RING_RESET) ends, and another begins.

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
mod idle;
mod log;
mod packed;
mod packed_chain;
mod place;
mod setup;
mod split;
mod vring;

pub use batch::MAX_BURST;
pub use chain::{Buffer, Chain, MAX_CHAIN};
pub use error::{Direction, Part, RingError};
pub use idle::{MAX_RING_SIZE, Ring};
pub use log::RingLog;
pub use setup::{QueueState, RingAddr, RingSetup};
pub use vring::Vring;

#[cfg(test)]
pub(crate) mod tests;
