//! Commands whose data, or whose lists, are in memory that a client keeps.
//!
//! Such a command is taken like any other, and goes on while its queue takes more: its lists are *found*, what it writes is
//! *gathered* into memory of our own ([`super::bounce`]), its store works there, and what it reads is *scattered* to the client. Each of
//! these steps is a number of transfers that nobody waits for; their ends wake the worker.
//!
//! # Bounds
//!
//! A queue has [`MOST`] such commands at a time, and as many as its memory has room for; the others stay in the queue. A list is fetched in
//! at most [`MOST_FETCHES`] parts. A client that does not answer, refuses or lies fails the command, and so does an unmap.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use mdev_dma::Iova;
use mdev_pin::{Access, Burst, ResolveError};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::status::Status;

use super::bounce::{Bounce, Room};
use super::data::{self, Lists, Piece};
use super::legs::{Legs, Progress, Waiter};
use super::steps::Span;
use crate::store::Operation;

/// Commands of one queue that go this way at a time.
pub(super) const MOST: usize = 64;
/// Parts of a command's lists: as many as an SGL has descriptors.
pub(super) const MOST_FETCHES: usize = 512;

/// All of a queue.
pub(super) struct Remote {
    pub(super) access: Access,
    pub(super) waiter: Waiter,
    pub(super) bounce: Option<Bounce>,
    /// There is to be some: an address space cannot be made inside a burst.
    pub(super) wants_bounce: bool,
    /// There could not be any.
    failure: Option<std::io::Error>,
    pub(super) trips: Vec<Trip>,
    /// The number of the next one.
    next: u64,
    /// A command had to stay in the queue.
    pub(super) is_full: bool,
}

/// What is done with the data.
#[derive(Copy, Clone)]
pub(super) enum Purpose {
    /// A store works on them.
    Transfer(Operation, Span),
    /// They are the ranges of a dataset management command.
    Ranges,
}

/// One command.
pub(super) struct Trip {
    pub(super) number: u64,
    pub(super) command: Command,
    pub(super) purpose: Purpose,
    /// Bytes of its data.
    pub(super) len: u32,
    pub(super) room: Room,
    pub(super) stage: Stage,
    pub(super) legs: Legs,
    /// Lists that were fetched, by address and length.
    pub(super) lists: BTreeMap<(u64, usize), Vec<u8>>,
    pub(super) pieces: Vec<Piece>,
    /// Nobody waits for it.
    pub(super) cancelled: bool,
}

impl Trip {
    /// Whether its data go to the host.
    pub(super) fn reads(&self) -> bool {
        matches!(self.purpose, Purpose::Transfer(Operation::Read, _))
    }
}

/// Where a command is on its way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its lists are being read. The part that is under way.
    Finding(Option<(u64, usize)>),
    /// Its data come.
    Gathering,
    /// They are there, or will be written.
    Ready,
    /// Its store is at work.
    InStore,
    /// Its store has ended, and what was read goes to the client.
    Stored,
    /// What was read goes to the client.
    Scattering,
}

impl Remote {
    pub(super) fn new(access: &Access, waiter: Waiter) -> Self {
        Remote {
            access: access.clone(),
            waiter,
            bounce: None,
            wants_bounce: false,
            failure: None,
            trips: Vec::new(),
            next: 0,
            is_full: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trips.is_empty()
    }

    /// Takes a command, with `len` bytes of data. False: there is no room now.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn depart(
        &mut self,
        command: &Command,
        purpose: Purpose,
        len: u32,
    ) -> Result<bool, std::io::Error> {
        let Some(bounce) = &mut self.bounce else {
            self.wants_bounce = self.failure.is_none();
            return self.failure.take().map_or(Ok(false), Err);
        };
        let room = if self.trips.len() < MOST { bounce.take(len) } else { None };
        let Some(room) = room else {
            self.is_full = true;
            return Ok(false);
        };
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.trips.push(Trip {
            number,
            command: *command,
            purpose,
            len,
            room,
            stage: Stage::Finding(None),
            legs: Legs::default(),
            lists: BTreeMap::new(),
            pieces: Vec::new(),
            cancelled: false,
        });
        Ok(true)
    }

    /// Makes the memory that a command waits for. Outside of a burst.
    #[cold]
    pub(super) fn furnish(&mut self) {
        self.wants_bounce = false;
        match Bounce::new() {
            Ok(bounce) => self.bounce = Some(bounce),
            Err(error) => self.failure = Some(error),
        }
    }

    /// A command has ended: its room is free.
    pub(super) fn arrive(&mut self, room: Room) {
        self.is_full = false;
        if let Some(bounce) = &mut self.bounce {
            bounce.give(room);
        }
    }

    /// The store of a command has ended. How the command ends, unless it goes on, since the client is to have what was read.
    pub(super) fn stored(&mut self, number: u64, status: Status) -> Option<Status> {
        let at = self.trips.iter().position(|trip| trip.number == number)?;
        let trip = self.trips.get_mut(at)?;
        let reads = status == Status::SUCCESS && trip.reads();
        if reads && !trip.cancelled {
            trip.stage = Stage::Stored;
            return None;
        }
        let room = self.trips.swap_remove(at).room;
        self.arrive(room);
        Some(if reads { Status::ABORTED_SQ_DELETION } else { status })
    }

    /// Ends a command that no store has, if there is one, unless its data go to the client already.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let waits = |trip: &Trip| matches!(trip.stage, Stage::Finding(_) | Stage::Gathering | Stage::Ready);
        let found = self.trips.iter().position(|trip| trip.command.cid() == cid && waits(trip));
        found.map(|at| self.trips.swap_remove(at)).map(|trip| self.arrive(trip.room)).is_some()
    }

    /// Nobody waits for any of them: ends what no store has, and says which.
    pub(super) fn cancel(&mut self) -> Vec<u16> {
        let mut ended = Vec::new();
        for mut trip in std::mem::take(&mut self.trips) {
            trip.cancelled = true;
            if trip.stage == Stage::InStore {
                self.trips.push(trip);
            } else {
                ended.push(trip.command.cid());
                self.arrive(trip.room);
            }
        }
        ended
    }

    /// Before the worker sleeps. True if one of them can go on.
    pub(super) fn arm(&mut self) -> bool {
        let waiter = &self.waiter;
        let goes_on = |trip: &mut Trip| match trip.stage {
            Stage::InStore | Stage::Ready => false,
            Stage::Stored => true,
            _ => trip.legs.look(waiter) != Progress::Pending,
        };
        // Each of them: all are to wake it.
        self.trips.iter_mut().map(goes_on).fold(false, |any, one| any | one)
    }

    /// When to poll again even if nobody wakes the worker.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.trips.iter().filter_map(|trip| trip.legs.until()).min()
    }
}

/// Lists, of which some parts were fetched.
pub(super) struct Known<'k> {
    pub(super) burst: &'k Burst<'k>,
    pub(super) fetched: &'k BTreeMap<(u64, usize), Vec<u8>>,
    /// The part that is neither there nor fetched.
    pub(super) missing: Cell<Option<(u64, usize)>>,
}

impl Lists for Known<'_> {
    fn read(&self, at: Iova, out: &mut [u8]) -> Result<(), ResolveError> {
        if let Some(bytes) = self.fetched.get(&(at.0, out.len())) {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let read = data::read(self.burst, at, out);
        if read == Err(ResolveError::Elsewhere) {
            self.missing.set(Some((at.0, out.len())));
        }
        read
    }
}
