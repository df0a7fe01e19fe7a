//! A burst of a receive queue: room for frames the guest receives.

use mdev_dma::{GuestSlice, Perm};
use mdev_pin::{Burst, Parked, ResolveError};
use smallvec::SmallVec;

use super::header::{HEADER, received};
use super::outgoing::Outgoing;
use super::pieces::{AHEAD, MAX_PIECES, Pieces, resolve};
use crate::device::{Queue, QueueStats};
use crate::link::{MAX_FRAME, Room};
use crate::ring::{Buffer, Direction, MAX_BURST, RingError, Vring};
use crate::sys::tsc;

/// What a frame needs at most.
const MAX_ROOM: usize = HEADER + MAX_FRAME;

/// What a burst of receive chains is noted in. It is large, lives on the stack of one poll and is never moved.
pub(super) struct Offered<'r> {
    chains: SmallVec<[Free<'r>; MAX_BURST]>,
    pieces: Pieces<'r>,
    /// The pieces of the chains that one frame fills.
    joined: Pieces<'r>,
}

/// A chain: its name, its bytes, its first piece, and where the others end.
#[derive(Copy, Clone)]
struct Free<'r> {
    head: u16,
    room: usize,
    first: GuestSlice<'r>,
    rest: (usize, usize),
}

impl<'r> Offered<'r> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { chains: SmallVec::new(), pieces: SmallVec::new(), joined: SmallVec::new() }
    }
}

/// Chains of a receive queue, taken as frames need them.
pub(super) struct Incoming<'p, 'r, 'b> {
    vring: Vring<'r, 'b>,
    offered: &'p mut Offered<'r>,
    used: usize,
    mergeable: bool,
    bytes: u64,
    frames: u64,
}

/// Why there is no room for a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The ring has no chain left, or not enough for this frame.
    Full,
    /// The next chain is too small, and only one may be used.
    Small,
    /// The burst has all the chains it may have; the next one goes on.
    Later,
    /// The ring is malformed, or its memory is not there.
    Broken(RingError),
}

impl<'p, 'r, 'b> Incoming<'p, 'r, 'b> {
    /// Makes room for `frames` frames if every one needs one chain.
    #[inline(always)]
    pub(super) fn open(
        vring: Vring<'r, 'b>,
        offered: &'p mut Offered<'r>,
        mergeable: bool,
        frames: usize,
    ) -> Self {
        let mut incoming = Self { vring, offered, used: 0, mergeable, bytes: 0, frames: 0 };
        // What goes wrong here goes wrong again when a frame wants the chain, and is said then.
        let _ = incoming.take(frames);
        incoming
    }

    /// Room for the next frame of `len` bytes, its header written. The chains are completed with it.
    ///
    /// # Errors
    /// Why not; nothing was used then.
    #[inline(always)]
    pub(super) fn room(&mut self, len: usize) -> Result<Room<'_, 'r>, Refusal> {
        let need = HEADER.wrapping_add(len);
        let simple = matches!(self.offered.chains.get(self.used), Some(free) if free.first.len() >= need);
        if !simple {
            return self.any_room(need);
        }
        let Self { vring, offered, used, .. } = self;
        let free = offered.chains.get(*used).ok_or(Refusal::Full)?;
        vring.complete(free.head, need as u32).map_err(Refusal::Broken)?;
        if let Some(later) = offered.chains.get(used.wrapping_add(AHEAD)) {
            later.first.prefetch_write(0);
        }
        *used = used.wrapping_add(1);
        self.frames = self.frames.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(len as u64);
        let room = Room::new(std::slice::from_ref(&free.first));
        header(&room, 1);
        Ok(room)
    }

    /// [`Incoming::room`] where a chain is in pieces or too small, or there is none yet.
    #[inline(never)]
    fn any_room(&mut self, need: usize) -> Result<Room<'_, 'r>, Refusal> {
        let mut count = 0usize;
        let mut room = 0usize;
        while room < need {
            if count == 1 && !self.mergeable {
                return Err(Refusal::Small);
            }
            let at = self.used.saturating_add(count);
            if at == self.offered.chains.len() {
                self.take(1)?;
            }
            room = room.saturating_add(self.offered.chains.get(at).map_or(0, |free| free.room));
            count = count.saturating_add(1);
        }
        let Self { vring, offered, used, .. } = self;
        let Offered { chains, pieces, joined } = &mut **offered;
        joined.clear();
        let mut left = need;
        for free in chains.iter().skip(*used).take(count) {
            let filled = left.min(free.room);
            left = left.saturating_sub(filled);
            vring.complete(free.head, filled as u32).map_err(Refusal::Broken)?;
            joined.push(free.first);
            joined.extend_from_slice(pieces.get(free.rest.0..free.rest.1).unwrap_or_default());
        }
        *used = used.saturating_add(count);
        self.frames = self.frames.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(need.saturating_sub(HEADER) as u64);
        let room = Room::new(&self.offered.joined);
        header(&room, count as u16);
        Ok(room)
    }

    /// All the room there is for a frame of up to `longest` bytes. Nothing is used: [`Incoming::room`] does that, when it is
    /// known how long the frame is.
    ///
    /// # Errors
    /// Why there is none at all.
    pub(super) fn widest(&mut self, longest: usize) -> Result<Room<'_, 'r>, Refusal> {
        let need = HEADER.saturating_add(longest).min(MAX_ROOM);
        let mut room = 0usize;
        let mut count = 0usize;
        self.offered.joined.clear();
        while room < need && (count == 0 || self.mergeable) && self.offered.joined.len() < MAX_PIECES {
            let at = self.used.saturating_add(count);
            if at == self.offered.chains.len()
                && let Err(refusal) = self.take(1)
            {
                if count == 0 {
                    return Err(refusal);
                }
                break;
            }
            let Offered { chains, pieces, joined } = &mut *self.offered;
            let Some(free) = chains.get(at) else { break };
            joined.push(free.first);
            joined.extend_from_slice(pieces.get(free.rest.0..free.rest.1).unwrap_or_default());
            room = room.saturating_add(free.room);
            count = count.saturating_add(1);
        }
        Ok(Room::new(&self.offered.joined))
    }

    /// Adds up to `count` chains to the burst, and at least one.
    #[inline(always)]
    fn take(&mut self, count: usize) -> Result<(), Refusal> {
        let Self { vring, offered, .. } = self;
        let Offered { chains, pieces, .. } = &mut **offered;
        if vring.taken() >= MAX_BURST {
            return Err(Refusal::Later);
        }
        let (burst, ahead) = (vring.burst(), self.used.saturating_add(AHEAD));
        let taken = vring.take(
            count,
            #[inline(always)]
            |chain| {
                let free = match chain.writable {
                    // No frame reaches further than that, so that a huge buffer costs no more than a frame.
                    [buffer] if buffer.len <= MAX_ROOM as u32 => {
                        match burst.slice(buffer.iova, buffer.len, Perm::WRITE) {
                            Ok(first) => Free { head: chain.head, room: first.len(), first, rest: (0, 0) },
                            Err(ResolveError::Split) => gather(burst, chain.head, chain.writable, pieces)?,
                            Err(error) => return Err(error.into()),
                        }
                    }
                    buffers => gather(burst, chain.head, buffers, pieces)?,
                };
                if chains.len() < ahead {
                    free.first.prefetch_write(0);
                }
                chains.push(free);
                Ok(())
            },
        );
        match taken {
            Ok(0) => Err(Refusal::Full),
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::Broken(error)),
        }
    }

    /// Gives back what was not used, publishes the rest, and counts.
    ///
    /// # Errors
    /// As [`Vring::publish`]: nothing was published.
    #[inline]
    pub(super) fn finish(mut self, stats: &QueueStats, began: u64) -> Result<Received, RingError> {
        self.vring.untake(self.vring.taken().saturating_sub(self.used));
        let call = self.vring.publish()?;
        if self.frames != 0 {
            stats.add_burst(self.frames, self.bytes, tsc::now().wrapping_sub(began));
        }
        Ok(Received { frames: self.frames, call })
    }

    /// [`Incoming::finish`] of a burst into which frames of another guest were copied: whether the driver asks for a call, or what
    /// is wrong with its ring. The time of such a burst is its sender's.
    ///
    /// # Errors
    /// The sender's memory was lost: nothing that was read from it is shown to anybody.
    #[inline(always)]
    pub(super) fn show(
        self,
        frames: &Outgoing<'_, '_, '_>,
        stats: &QueueStats,
        parked: &mut Option<Parked>,
    ) -> Result<Result<bool, RingError>, RingError> {
        if frames.poisoned() {
            return Err(RingError::Poisoned);
        }
        Ok(self.finish(stats, tsc::now()).map(|received| {
            if received.frames != 0 {
                *parked = None;
            }
            received.call
        }))
    }
}

/// What a burst of another guest came to. Both may be: the driver is called for the frames before a chain that cannot be filled.
#[derive(Default)]
pub(super) struct Arrival {
    call: bool,
    trouble: Option<RingError>,
}

impl Arrival {
    /// Nothing was shown.
    pub(super) fn trouble(error: RingError) -> Self {
        Self { call: false, trouble: Some(error) }
    }

    /// What [`Incoming::show`] says, and what is wrong with the chain behind what was shown.
    #[inline(always)]
    pub(super) fn of(shown: Result<bool, RingError>, broken: Option<RingError>) -> Self {
        match shown {
            Ok(call) => Self { call, trouble: broken },
            Err(error) => Self::trouble(error),
        }
    }

    /// Tells the driver and the queue. False if there was trouble. To be called when no burst is open: signals and log lines take time.
    #[inline(always)]
    pub(super) fn tell(self, queue: &mut Queue) -> bool {
        if self.call {
            queue.call();
        }
        match self.trouble {
            None => true,
            Some(error) => {
                queue.trouble(error);
                false
            }
        }
    }
}

/// What a burst came to for the guest that receives.
pub(super) struct Received {
    /// How many frames it got.
    pub(super) frames: u64,
    /// Whether its driver asks for a call.
    pub(super) call: bool,
}

/// Writes the header of a frame that fills so many chains.
#[inline(always)]
fn header(room: &Room<'_, '_>, num_buffers: u16) {
    let (low, high) = received(num_buffers);
    room.write(0, &low.to_le_bytes());
    room.write(8, &high.to_le_bytes());
}

/// The memory of a chain of several buffers or pieces, as far as a frame can reach.
#[inline(never)]
fn gather<'r>(
    burst: &'r Burst<'_>,
    head: u16,
    buffers: &[Buffer],
    pieces: &mut Pieces<'r>,
) -> Result<Free<'r>, RingError> {
    let start = pieces.len();
    let mut room = 0usize;
    for buffer in buffers {
        let len = buffer.len.min(MAX_ROOM.saturating_sub(room) as u32);
        if len == 0 {
            break;
        }
        if let Err(error) = resolve(burst, Buffer { len, ..*buffer }, Perm::WRITE, pieces) {
            pieces.truncate(start);
            return Err(error.into());
        }
        room = room.saturating_add(len as usize);
    }
    let first = *pieces.get(start).ok_or(RingError::WrongDirection(Direction::Write))?;
    Ok(Free { head, room, first, rest: (start.saturating_add(1), pieces.len()) })
}
