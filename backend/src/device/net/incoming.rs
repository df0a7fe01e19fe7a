//! A burst of a receive queue: room for frames the guest receives.

use mdev_dma::Perm;
use mdev_pin::Burst;
use smallvec::SmallVec;

use super::header::{HEADER, received};
use super::pieces::{BURST, Pieces, resolve};
use crate::link::{MAX_FRAME, Room};
use crate::ring::{Buffer, Direction, MAX_BURST, RingError, Vring};

/// What a frame needs at most.
const MAX_ROOM: usize = HEADER + MAX_FRAME;

/// Chains of a receive queue, taken as frames need them.
pub(super) struct Incoming<'r, 'b> {
    vring: Vring<'r, 'b>,
    pieces: Pieces<'r>,
    chains: SmallVec<[Free; 2 * BURST]>,
    used: usize,
    mergeable: bool,
    bytes: u64,
    frames: u64,
}

/// A chain: its name, where its pieces end, its bytes.
#[derive(Copy, Clone)]
struct Free {
    head: u16,
    end: usize,
    room: usize,
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

impl<'r, 'b> Incoming<'r, 'b> {
    /// Makes room for `frames` frames if every one needs one chain.
    #[inline]
    pub(super) fn open(vring: Vring<'r, 'b>, mergeable: bool, frames: usize) -> Self {
        let mut incoming = Self {
            vring,
            pieces: Pieces::new(),
            chains: SmallVec::new(),
            used: 0,
            mergeable,
            bytes: 0,
            frames: 0,
        };
        // What goes wrong here goes wrong again when a frame wants the chain, and is said then.
        let _ = incoming.take(frames);
        incoming
    }

    /// Room for the next frame of `len` bytes, its header written. The chains are completed with it.
    ///
    /// # Errors
    /// Why not; nothing was used then.
    #[inline]
    pub(super) fn room(&mut self, len: usize) -> Result<Room<'_, 'r>, Refusal> {
        let need = HEADER.wrapping_add(len);
        if self.chains.len() == self.used {
            self.take(1)?;
        }
        let first = self.start(self.used);
        match self.chains.get(self.used) {
            Some(free) if free.room >= need => {
                self.vring.complete(free.head, need as u32).map_err(Refusal::Broken)?;
                self.used = self.used.wrapping_add(1);
                self.header(first, 1);
            }
            Some(_) if self.mergeable => self.merge(need)?,
            _ => return Err(Refusal::Small),
        }
        self.frames = self.frames.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(len as u64);
        let end = self.start(self.used);
        Ok(Room::new(self.pieces.get(first..end).unwrap_or_default()))
    }

    /// A frame over several chains: all of them or none.
    fn merge(&mut self, need: usize) -> Result<(), Refusal> {
        let mut count = 0usize;
        let mut room = 0usize;
        while room < need {
            let at = self.used.saturating_add(count);
            if at == self.chains.len() {
                self.take(1)?;
            }
            room = room.saturating_add(self.chains.get(at).map_or(0, |free| free.room));
            count = count.saturating_add(1);
        }
        let first = self.start(self.used);
        let mut left = need;
        for at in self.used..self.used.saturating_add(count) {
            if let Some(free) = self.chains.get(at) {
                let filled = left.min(free.room);
                left = left.saturating_sub(filled);
                self.vring.complete(free.head, filled as u32).map_err(Refusal::Broken)?;
            }
        }
        self.used = self.used.saturating_add(count);
        self.header(first, count as u16);
        Ok(())
    }

    #[inline(always)]
    fn header(&self, first: usize, num_buffers: u16) {
        let (low, high) = received(num_buffers);
        let whole = self.pieces.get(first).and_then(|piece| {
            piece.subslice(0, HEADER)?;
            piece.write::<u64>(0, low.to_le())?;
            piece.write::<u32>(8, high.to_le())
        });
        if whole.is_none() {
            let mut bytes = [0u8; HEADER];
            for (place, byte) in bytes.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes()))
            {
                *place = byte;
            }
            Room::new(self.pieces.get(first..).unwrap_or_default()).write(0, &bytes);
        }
    }

    /// Where the pieces of chain `index` begin.
    #[inline(always)]
    fn start(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            Some(before) => self.chains.get(before).map_or(0, |free| free.end),
            None => 0,
        }
    }

    /// Adds up to `count` chains to the burst, and at least one.
    #[inline]
    fn take(&mut self, count: usize) -> Result<(), Refusal> {
        let Self { vring, pieces, chains, .. } = self;
        if vring.taken() >= MAX_BURST {
            return Err(Refusal::Later);
        }
        let burst = vring.burst();
        let taken = vring.take(count, |chain| {
            let room = find(burst, chain.writable, pieces)?;
            chains.push(Free { head: chain.head, end: pieces.len(), room });
            Ok(())
        });
        match taken {
            Ok(0) => Err(Refusal::Full),
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::Broken(error)),
        }
    }

    /// Gives back what was not used and publishes the rest. Says how many frames and bytes, and whether the driver asks
    /// for a call.
    ///
    /// # Errors
    /// As [`Vring::publish`]: nothing was published.
    #[inline]
    pub(super) fn finish(mut self) -> Result<(u64, u64, bool), RingError> {
        self.vring.untake(self.vring.taken().saturating_sub(self.used));
        let wants_call = self.vring.publish()?;
        Ok((self.frames, self.bytes, wants_call))
    }
}

/// Appends the memory of a chain, as far as a frame can reach, and says how many bytes that is. On an error nothing was
/// appended.
#[inline(always)]
fn find<'r>(burst: &'r Burst<'_>, buffers: &[Buffer], pieces: &mut Pieces<'r>) -> Result<usize, RingError> {
    let first = pieces.len();
    let mut room = 0usize;
    for buffer in buffers {
        let len = buffer.len.min(MAX_ROOM.saturating_sub(room) as u32);
        if len == 0 {
            break;
        }
        if let Err(error) = resolve(burst, Buffer { len, ..*buffer }, Perm::WRITE, pieces) {
            pieces.truncate(first);
            return Err(error.into());
        }
        room = room.saturating_add(len as usize);
    }
    let piece = pieces.get(first).ok_or(RingError::WrongDirection(Direction::Write))?;
    piece.prefetch_write(0);
    piece.prefetch_write(HEADER);
    Ok(room)
}
