//! The way of commands whose data are with a client, step by step ([`super::remote`]).

use std::cell::Cell;

use mdev_pin::{Burst, ResolveError};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::DatasetRange;
use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::command::{Asked, Refused, deallocation, parse};
use super::completion::Ended;
use super::data::{self, Fault};
use super::immediate::Memory;
use super::legs::Progress;
use super::queued;
use super::remote::{Known, MOST_FETCHES, Purpose, Stage, Trip};
use super::serving::{ENOUGH, MAX_RANGES, Served, Serving, Stop};
use super::steps::Span;
use crate::store::{Operation, Pins, Port};

/// Whether a command goes on.
enum Going {
    /// It waits.
    Waits,
    /// It has its next stage.
    On,
    /// It has ended, and that was told.
    Ended,
}

impl<'e> Serving<'e> {
    /// Takes a command whose data or lists are with the client.
    ///
    /// # Errors
    /// There is no room now: it stays in its queue.
    #[cold]
    pub(super) fn depart(&mut self, command: &Command) -> Result<(), Stop> {
        let Some(backend) = self.backends.find(command.nsid) else { return Ok(()) };
        let (purpose, len) = match parse(command, &backend.namespace, self.write_through) {
            Ok(Asked::Transfer { operation, offset, len }) => {
                (Purpose::Transfer(operation, Span { offset, len: len.into() }), len)
            }
            Ok(Asked::Deallocate { len }) => (Purpose::Ranges, len),
            // Neither has data.
            Ok(Asked::Change(_)) => return Ok(()),
            Err(refused) => {
                self.refuse(command, refused);
                return Ok(());
            }
        };
        match self.remote.depart(command, purpose, len) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Full),
            Err(error) => {
                let qid = self.queue.qid();
                self.shared.complain(
                    format_args!("queue {qid}: memory for data of a client, {error},"),
                    Errno::NOMEM,
                );
                self.refuse(command, Refused::NO_MEMORY);
                Ok(())
            }
        }
    }

    /// Takes commands from a queue whose entries the client keeps, as far as they are here.
    ///
    /// # Errors
    /// The client does not give them; or what the first of them lacks.
    #[cold]
    pub(super) fn take_remote(
        &mut self,
        burst: &Burst<'_>,
        count: u32,
        served: &mut Served,
    ) -> Result<(), ResolveError> {
        let (access, waiter) = (&self.remote.access, &self.remote.waiter);
        let mut entries = std::mem::take(self.queue.fetch(access, waiter, burst, count)?);
        let mut memory = Memory::new();
        let mut taken = 0u32;
        let mut outcome = Ok(());
        while self.under_way.is_none() && self.tally.bytes() < ENOUGH {
            let Some(command) = entries.front() else { break };
            match self.one(burst, command, &mut memory) {
                Ok(()) => drop(entries.pop_front()),
                Err(Stop::Full) => break,
                Err(Stop::Lacks(error)) => {
                    outcome = if taken == 0 { Err(error) } else { Ok(()) };
                    break;
                }
            }
            taken = taken.wrapping_add(1);
        }
        self.queue.keep(entries);
        self.queue.advance(taken);
        served.taken = served.taken.wrapping_add(taken);
        outcome
    }

    /// Brings all of them as far as they get.
    #[cold]
    pub(super) fn travel(&mut self, burst: &Burst<'_>) {
        let trips = std::mem::take(&mut self.remote.trips);
        for mut trip in trips {
            let ended = loop {
                match self.step(burst, &mut trip) {
                    Going::On => {}
                    Going::Waits => break false,
                    Going::Ended => break true,
                }
            };
            if ended {
                self.remote.arrive(trip.room);
            } else {
                self.remote.trips.push(trip);
            }
        }
    }

    fn step(&mut self, burst: &Burst<'_>, trip: &mut Trip) -> Going {
        match trip.legs.look(&self.remote.waiter) {
            Progress::Pending => return Going::Waits,
            Progress::Done => {}
            Progress::Failed(errno) => {
                if errno != Errno::CANCELED {
                    let (qid, cid) = (self.queue.qid(), trip.command.cid());
                    let what =
                        format_args!("queue {qid}: the memory that the client keeps, for command {cid},");
                    self.shared.complain(what, errno);
                }
                return self.lost(trip, ResolveError::Hole);
            }
        }
        match trip.stage {
            Stage::Finding(fetching) => {
                if let Some(part) = fetching {
                    let list = trip.legs.take().flat_map(|(_, bytes)| bytes).collect();
                    trip.lists.insert(part, list);
                }
                self.find(burst, trip)
            }
            Stage::Gathering => {
                let (room, len) = (trip.room, trip.len);
                let legs = trip.legs.take();
                let bounce = self.remote.bounce.as_mut();
                let there = bounce.and_then(|bounce| {
                    bounce.with(room, len, |slice| {
                        for (offset, bytes) in legs {
                            let place = slice.subslice(offset as usize, bytes.len());
                            place.map(|place| place.copy_from(&bytes));
                        }
                    })
                });
                trip.stage = Stage::Ready;
                there.map_or_else(|| self.lost(trip, ResolveError::Poisoned), |()| Going::On)
            }
            Stage::Ready => match trip.purpose {
                Purpose::Transfer(operation, span) => self.store(trip, operation, span),
                Purpose::Ranges => self.ranges(trip),
            },
            Stage::InStore => Going::Waits,
            Stage::Stored => self.scatter(burst, trip),
            Stage::Scattering => self.end_trip(trip, Status::SUCCESS),
        }
    }

    /// Reads the lists of a command as far as they are there, and begins to fetch its data.
    fn find(&mut self, burst: &Burst<'_>, trip: &mut Trip) -> Going {
        let known = Known { burst, fetched: &trip.lists, missing: Cell::new(None) };
        let found = data::locate(&known, &trip.command, trip.len, trip.reads(), &mut trip.pieces);
        let missing = known.missing.take();
        match (found, missing) {
            (Ok(()), _) => {}
            (Err(Fault::Refused(status)), _) => {
                self.refuse(&trip.command, Refused::pointers(status));
                return Going::Ended;
            }
            (Err(Fault::Memory(ResolveError::Elsewhere)), Some((at, len)))
                if trip.lists.len() < MOST_FETCHES =>
            {
                trip.stage = Stage::Finding(Some((at, len)));
                let begun = u32::try_from(len)
                    .map_err(|_| ResolveError::Overflow)
                    .and_then(|len| trip.legs.fetch(&self.remote.access, burst, mdev_dma::Iova(at), len));
                return begun.map_or_else(|error| self.lost(trip, error), |()| Going::On);
            }
            (Err(Fault::Memory(error)), _) => return self.lost(trip, error),
        }
        if trip.reads() {
            trip.stage = Stage::Ready;
            return Going::On;
        }
        trip.stage = Stage::Gathering;
        for piece in &trip.pieces {
            if let Err(error) = trip.legs.fetch(&self.remote.access, burst, piece.at, piece.len) {
                return self.lost(trip, error);
            }
        }
        Going::On
    }

    /// Gives a command to its store.
    fn store(&mut self, trip: &mut Trip, operation: Operation, span: Span) -> Going {
        let (cid, nsid) = (trip.command.cid(), trip.command.nsid);
        let (room, len) = (trip.room, trip.len);
        let Some(bounce) = &mut self.remote.bounce else { return self.lost(trip, ResolveError::Hole) };
        let port = self.backends.find(nsid).map(|backend| (&mut backend.port, &mut backend.in_flight));
        let done = match port {
            Some((Some(Port::Immediate(port)), _)) => {
                let (offset, len64) = (span.offset, span.len);
                bounce
                    .with(room, len, |slice| {
                        port.serve(operation, offset, len64, std::slice::from_ref(slice))
                    })
                    .unwrap_or(Err(Errno::FAULT))
            }
            Some((Some(Port::Queued(_)), _)) if self.flying.is_full() => return Going::Waits,
            Some((Some(Port::Queued(port)), in_flight)) => match bounce.pin(room, len) {
                Some(pin) => {
                    let mut pins = Pins::new();
                    pins.push(pin);
                    queued::transfer(self.flying, port, cid, operation, span, pins, Some(trip.number));
                    *in_flight = in_flight.saturating_add(1);
                    self.submitted = true;
                    trip.stage = Stage::InStore;
                    return Going::Waits;
                }
                None => Err(Errno::FAULT),
            },
            // Detached meanwhile, or never to be used.
            Some((None, _)) => Err(Errno::NODEV),
            None => Err(Errno::CANCELED),
        };
        match self.outcome(cid, nsid, operation, span, done) {
            Status::SUCCESS if trip.reads() => {
                trip.stage = Stage::Stored;
                Going::On
            }
            status => self.end_trip(trip, status),
        }
    }

    /// The ranges of a dataset management command are there.
    fn ranges(&mut self, trip: &mut Trip) -> Going {
        if self.under_way.is_some() {
            return Going::Waits;
        }
        let mut ranges = [DatasetRange::default(); MAX_RANGES];
        let bytes = ranges.as_mut_bytes().get_mut(..trip.len as usize).unwrap_or_default();
        let (room, len) = (trip.room, trip.len);
        let bounce = self.remote.bounce.as_mut();
        let there = bounce.and_then(|bounce| bounce.with(room, len, |slice| slice.copy_to(bytes)));
        let Some(backend) = self.backends.find(trip.command.nsid).filter(|_| there.is_some()) else {
            return self.lost(trip, ResolveError::Poisoned);
        };
        let count = (len as usize).checked_div(DatasetRange::LEN).unwrap_or(0);
        match deallocation(ranges.get(..count).unwrap_or_default(), &backend.namespace) {
            Ok(steps) => match self.change(&trip.command, steps) {
                Ok(()) => Going::Ended,
                Err(_) => Going::Waits,
            },
            Err(refused) => {
                self.refuse(&trip.command, refused);
                Going::Ended
            }
        }
    }

    /// Sends what was read.
    fn scatter(&mut self, burst: &Burst<'_>, trip: &mut Trip) -> Going {
        let mut bytes = vec![0; trip.len as usize];
        let (room, len) = (trip.room, trip.len);
        let bounce = self.remote.bounce.as_mut();
        let there = bounce.and_then(|bounce| bounce.with(room, len, |slice| slice.copy_to(&mut bytes)));
        if there.is_none() {
            return self.lost(trip, ResolveError::Poisoned);
        }
        trip.stage = Stage::Scattering;
        let mut rest = bytes.as_slice();
        for piece in &trip.pieces {
            let (here, behind) = rest.split_at_checked(piece.len as usize).unwrap_or_default();
            rest = behind;
            if piece.unwanted {
                continue;
            }
            if let Err(error) = trip.legs.send(&self.remote.access, burst, piece.at, here) {
                return self.lost(trip, error);
            }
        }
        Going::On
    }

    /// The memory of a command is not there, or its client did not answer.
    fn lost(&mut self, trip: &Trip, error: ResolveError) -> Going {
        let poisoned = error == ResolveError::Poisoned;
        self.refuse(&trip.command, if poisoned { Refused::MEMORY_LOST } else { Refused::NO_MEMORY });
        Going::Ended
    }

    fn end_trip(&mut self, trip: &Trip, status: Status) -> Going {
        self.ended.push(Ended::new(trip.command.cid(), status));
        Going::Ended
    }
}
