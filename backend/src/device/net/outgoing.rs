//! A burst of a transmit queue: frames the guest sends.

use mdev_dma::{GuestSlice, Perm, SgList};
use mdev_pin::Burst;
use mdev_protocol::virtio::net::NetHeader;
use smallvec::SmallVec;

use super::header::HEADER;
use super::pieces::{BURST, MAX_PIECES, Pieces, burst_of, resolve};
use crate::device::{DropCause, QueueStats};
use crate::link::{ETHERNET_HEADER, Frame, MAX_FRAME};
use crate::ring::{Buffer, Direction, RingError, Vring};
use crate::sys::tsc;

/// What a burst of frames is noted in. It is large, lives on the stack of one poll and is never moved.
pub(super) struct Sent<'r> {
    frames: SmallVec<[Place<'r>; BURST]>,
    pieces: Pieces<'r>,
    /// What precedes each frame, where somebody wants to know.
    headers: SmallVec<[NetHeader; BURST]>,
}

/// Where the frame of a chain is, its header left out.
#[derive(Copy, Clone)]
enum Place<'r> {
    /// In one piece.
    Whole(GuestSlice<'r>),
    /// In some of the pieces.
    Pieces { first: usize, count: usize, len: usize },
    /// The chain has no proper frame.
    None,
}

impl<'r> Sent<'r> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { frames: SmallVec::new(), pieces: SmallVec::new(), headers: SmallVec::new() }
    }

    #[inline(always)]
    fn frame(&self, index: usize) -> Option<Frame<'_, 'r>> {
        match self.frames.get(index)? {
            Place::Whole(slice) => Some(Frame::new(std::slice::from_ref(slice), slice.len())),
            Place::Pieces { first, count, len } => {
                Some(Frame::new(self.pieces.get(*first..first.wrapping_add(*count))?, *len))
            }
            Place::None => None,
        }
    }
}

/// Chains taken from a transmit queue, all of them found in memory and on their way into the cache.
pub(super) struct Outgoing<'p, 'r, 'b> {
    vring: Vring<'r, 'b>,
    sent: &'p mut Sent<'r>,
    bytes: u64,
    short: u64,
    oversize: u64,
}

impl<'p, 'r, 'b> Outgoing<'p, 'r, 'b> {
    /// Takes the chains of a burst. What cannot be resolved yet, and all behind it, is not taken.
    ///
    /// # Errors
    /// What is wrong with the first chain.
    #[inline(always)]
    pub(super) fn take(vring: Vring<'r, 'b>, sent: &'p mut Sent<'r>) -> Result<Self, RingError> {
        Self::take_as::<false>(vring, sent)
    }

    /// [`Outgoing::take`], with the headers read.
    ///
    /// # Errors
    /// As there.
    pub(super) fn take_with_headers(vring: Vring<'r, 'b>, sent: &'p mut Sent<'r>) -> Result<Self, RingError> {
        Self::take_as::<true>(vring, sent)
    }

    #[inline(always)]
    fn take_as<const HEADERS: bool>(
        mut vring: Vring<'r, 'b>,
        sent: &'p mut Sent<'r>,
    ) -> Result<Self, RingError> {
        let (mut short, mut oversize) = (0u64, 0u64);
        let (burst, max) = (vring.burst(), burst_of(&vring));
        vring.take(
            max,
            #[inline(always)]
            |chain| {
                let place = match whole(burst, chain.readable) {
                    Some(frame) => {
                        frame.prefetch_read(0);
                        Place::Whole(frame)
                    }
                    None => match gather(burst, chain.readable, &mut sent.pieces)? {
                        Ok(place) => place,
                        Err(DropCause::Short) => {
                            short = short.wrapping_add(1);
                            Place::None
                        }
                        Err(_) => {
                            oversize = oversize.wrapping_add(1);
                            Place::None
                        }
                    },
                };
                sent.frames.push(place);
                if HEADERS {
                    sent.headers.push(header(burst, chain.readable));
                }
                Ok(())
            },
        )?;
        Ok(Self { vring, sent, bytes: 0, short, oversize })
    }

    /// Chains taken.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.sent.frames.len()
    }

    /// The frame of chain `index`, if there is a proper one. Each is asked for once: that is how bytes are counted.
    #[inline(always)]
    pub(super) fn frame(&mut self, index: usize) -> Option<Frame<'_, 'r>> {
        let frame = self.sent.frame(index)?;
        self.bytes = self.bytes.wrapping_add(frame.len() as u64);
        Some(frame)
    }

    /// The frame of chain `index` once more.
    pub(super) fn peek(&self, index: usize) -> Option<Frame<'_, 'r>> {
        self.sent.frame(index)
    }

    /// What precedes the frame of chain `index`; nothing in it has been checked.
    pub(super) fn header(&self, index: usize) -> NetHeader {
        self.sent.headers.get(index).copied().unwrap_or_default()
    }

    /// Whether memory was lost under this burst.
    pub(super) fn poisoned(&self) -> bool {
        self.vring.burst().poisoned()
    }

    /// Gives back the chains from `index` on, whose last frame was `unserved` bytes long: they are served later.
    pub(super) fn keep(&mut self, index: usize, unserved: usize) {
        self.vring.untake(self.sent.frames.len().saturating_sub(index));
        self.sent.frames.truncate(index);
        self.bytes = self.bytes.wrapping_sub(unserved as u64);
    }

    /// Completes every chain, publishes, and counts. True when the driver asks for a call.
    ///
    /// # Errors
    /// As [`Vring::publish`]: nothing was published.
    #[inline]
    pub(super) fn finish(mut self, stats: &QueueStats, began: u64) -> Result<bool, RingError> {
        self.vring.complete_all()?;
        let chains = self.vring.taken() as u64;
        let wants_call = self.vring.publish()?;
        stats.add_drops(DropCause::Short, self.short);
        stats.add_drops(DropCause::Oversize, self.oversize);
        stats.add_burst(chains, self.bytes, tsc::now().wrapping_sub(began));
        Ok(wants_call)
    }
}

/// The frame's length in a chain of `bytes`, if it is one.
#[inline(always)]
fn frame_len(bytes: usize) -> Option<usize> {
    bytes.checked_sub(HEADER).filter(|len| (ETHERNET_HEADER..=MAX_FRAME).contains(len))
}

/// The first bytes of a chain, which has been found in memory as a whole. Read once.
fn header(burst: &Burst<'_>, buffers: &[Buffer]) -> NetHeader {
    let mut bytes = [0; HEADER];
    let mut rest = bytes.as_mut_slice();
    let mut pieces = SgList::new();
    for buffer in buffers {
        let len = buffer.len.min(rest.len() as u32);
        if len == 0 {
            break;
        }
        pieces.clear();
        if burst.sg(buffer.iova, len, Perm::READ, &mut pieces).is_ok() {
            pieces.copy_to(0, rest);
        }
        rest = rest.get_mut(len as usize..).unwrap_or_default();
    }
    zerocopy::transmute!(bytes)
}

/// A frame as most are: in one piece, its header before it in the same buffer or in one of its own.
#[inline(always)]
fn whole<'r>(burst: &'r Burst<'_>, buffers: &[Buffer]) -> Option<GuestSlice<'r>> {
    match buffers {
        [buffer] => {
            let len = frame_len(buffer.len as usize)?;
            burst.slice(buffer.iova, buffer.len, Perm::READ).ok()?.subslice(HEADER, len)
        }
        [header, frame] if header.len == HEADER as u32 => {
            frame_len(HEADER.wrapping_add(frame.len as usize))?;
            // Nothing in it is needed, but a driver that gives a wrong address should hear of it.
            burst.slice(header.iova, header.len, Perm::READ).ok()?;
            burst.slice(frame.iova, frame.len, Perm::READ).ok()
        }
        _ => None,
    }
}

/// A frame in any number of buffers, split anywhere; or why it is none.
#[inline(never)]
fn gather<'r>(
    burst: &'r Burst<'_>,
    buffers: &[Buffer],
    pieces: &mut Pieces<'r>,
) -> Result<Result<Place<'r>, DropCause>, RingError> {
    if buffers.is_empty() {
        return Err(RingError::WrongDirection(Direction::Read));
    }
    let bytes = buffers.iter().fold(0u64, |sum, buffer| sum.saturating_add(buffer.len.into()));
    let len = match usize::try_from(bytes).ok().and_then(frame_len) {
        Some(len) if buffers.len() <= MAX_PIECES => len,
        None if bytes < MAX_FRAME as u64 => return Ok(Err(DropCause::Short)),
        _ => return Ok(Err(DropCause::Oversize)),
    };
    let first = pieces.len();
    for buffer in buffers {
        if let Err(error) = resolve(burst, *buffer, Perm::READ, pieces) {
            pieces.truncate(first);
            return Err(error.into());
        }
    }
    // The header ends somewhere in the first pieces; what precedes the frame is left behind.
    let mut start = first;
    let mut header = HEADER;
    while let Some(piece) = pieces.get_mut(start) {
        if let Some(rest) = piece.subslice(header, piece.len().saturating_sub(header))
            && !rest.is_empty()
        {
            *piece = rest;
            break;
        }
        header = header.saturating_sub(piece.len());
        start = start.saturating_add(1);
    }
    let frame = pieces.get(start..).unwrap_or_default();
    frame.iter().for_each(|piece| piece.prefetch_read(0));
    let place = match frame {
        [piece] => Place::Whole(*piece),
        _ if frame.len() > MAX_PIECES => {
            pieces.truncate(first);
            return Ok(Err(DropCause::Oversize));
        }
        _ => Place::Pieces { first: start, count: frame.len(), len },
    };
    Ok(Ok(place))
}
