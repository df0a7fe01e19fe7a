//! mdevd beside DPDK's `net_vhost`, under the same front-end: testpmd's virtio-user, in the lab.
//!
//! # Objects
//!
//! - A [`Cell`] is a ring layout, a packet size and a direction. In each, mdevd and DPDK are measured in pairs, one behind the
//!   other, each turn on processes of its own, which are held while it is not their turn ([`turn`]).
//! - The [`ceiling`] of a cell is what the front-end reaches with a back-end that only returns descriptors: what no back-end
//!   exceeds by much, whatever it does.
//! - The [`Journal`] is the file that every pair is written to at once. A run that was interrupted goes on where it stood; a
//!   pair belongs to the commit that it was measured at.
//! - [`table`] is what the journal says of a commit.
//!
//! A pair counts only if the cache line's round trip was the same before, between and after its turns, as in `mdevd perf net
//! --against`; others are kept in the journal and left out of the table. Beside the rates stands what mdevd's processor spends
//! on a packet; what DPDK's does is not known, because its polls say nothing of themselves.
//!
//! # What it does not do
//!
//! It asserts nothing about a rate, and looks at no packet: what arrives is checked by the lab's tests and by `mdevd perf net`.
pub mod ceiling;
pub mod cell;
pub mod journal;
pub mod table;
pub mod turn;

pub use cell::{Cell, Direction};
pub use journal::{Entry, Journal, JournalError, State};
