//! Stores: the bytes behind a storage device.
//!
//! # What it is
//!
//! A device turns each chain of its ring into a [`Request`]: which bytes of the store, which guest memory, and which
//! way. It hands the request to a store, goes on with its rounds, and later finds a [`Completion`] with the same tag.
//! A store knows nothing of rings and guests, and a device nothing of files.
//!
//! # Objects
//!
//! - [`Request`]: owns the [`Pin`]s on the memory it moves bytes to or from. They are taken in the burst in which the
//!   chain was found, and the store has the request before that burst ends; so an unmap that has waited for the
//!   bursts finds every pin.
//! - [`Completion`]: how it ended. Its pins are gone by the time it can be taken.
//! - [`held`]: a store whose requests end when somebody says so.
//!
//! # What a store promises
//!
//! Every request that is submitted ends once, in any order: as a success that has moved all its bytes, or as an error.
//! Nothing of the request touches guest memory after its pins are gone. Submitting and taking do not wait for a
//! request. A completion signals the bell of the worker that submitted the request.
//!
//! # What may block, what fails
//!
//! Each store says so itself. A request that names bytes beyond the end of the store fails with `EINVAL`, one whose guest
//! memory was lost meanwhile (a file that shrank) with `EFAULT`: its pins know ([`Pin::poisoned`]).
//!
//! # What it does not implement
//!
//! Flush, discard, and the order of requests to the same bytes: a driver that needs an order waits for completions.
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

pub mod held;

use mdev_pin::Pin;
use rustix::io::Errno;

/// Which way the bytes of a request go.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the store to guest memory.
    Read,
    /// From guest memory to the store.
    Write,
}

/// A transfer between a store and guest memory.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the device; comes back in the completion.
    pub tag: u64,
    /// Which way.
    pub direction: Direction,
    /// The first byte of the store.
    pub offset: u64,
    /// The guest memory, in order.
    pub memory: Vec<Pin>,
}

impl Request {
    /// Bytes to be moved.
    pub fn len(&self) -> usize {
        self.memory.iter().fold(0, |sum, pin| sum.saturating_add(pin.len()))
    }

    /// Whether there is nothing to be moved.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The end of a request.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// From the request.
    pub tag: u64,
    /// Bytes moved, which are all of them; or why it failed, and then guest memory and store may hold any part of it.
    pub result: Result<usize, Errno>,
}
