//! A burst of a transmit queue: frames the guest sends.

use mdev_dma::{GuestSlice, Perm};
use mdev_pin::Burst;
use smallvec::SmallVec;

use super::header::HEADER;
use super::pieces::{BURST, MAX_PIECES, Pieces, resolve};
use crate::device::{DropCause, QueueStats};
use crate::link::{ETHERNET_HEADER, Frame, MAX_FRAME};
use crate::ring::{Buffer, Direction, RingError, Vring};

/// Chains taken from a transmit queue, all of them found in memory and on their way into the cache.
pub(super) struct Outgoing<'r, 'b> {
    vring: Vring<'r, 'b>,
    pieces: Pieces<'r>,
    spans: SmallVec<[Span; BURST]>,
    short: u64,
    oversize: u64,
}

/// Where the frame of a chain is. A chain without a proper frame has no bytes.
#[derive(Copy, Clone)]
struct Span {
    first: usize,
    count: usize,
    len: usize,
}

const NOTHING: Span = Span { first: 0, count: 0, len: 0 };

impl<'r, 'b> Outgoing<'r, 'b> {
    /// Takes up to [`BURST`] chains. What cannot be resolved yet, and all behind it, is not taken.
    ///
    /// # Errors
    /// What is wrong with the first chain.
    #[inline]
    pub(super) fn take(mut vring: Vring<'r, 'b>) -> Result<Self, RingError> {
        let (mut pieces, mut spans) = (Pieces::new(), SmallVec::new());
        let (mut short, mut oversize) = (0u64, 0u64);
        let burst = vring.burst();
        vring.take(BURST, |chain| {
            let span = match whole(burst, chain.readable) {
                Some(frame) => {
                    frame.prefetch_read(0);
                    pieces.push(frame);
                    Span { first: pieces.len().wrapping_sub(1), count: 1, len: frame.len() }
                }
                None => match gather(burst, chain.readable, &mut pieces)? {
                    Ok(span) => span,
                    Err(DropCause::Short) => {
                        short = short.wrapping_add(1);
                        NOTHING
                    }
                    Err(_) => {
                        oversize = oversize.wrapping_add(1);
                        NOTHING
                    }
                },
            };
            spans.push(span);
            Ok(())
        })?;
        Ok(Self { vring, pieces, spans, short, oversize })
    }

    /// Chains taken.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The frame of chain `index`, if there is a proper one.
    #[inline(always)]
    pub(super) fn frame(&self, index: usize) -> Option<Frame<'_, 'r>> {
        let span = self.spans.get(index)?;
        let pieces = self.pieces.get(span.first..span.first.wrapping_add(span.count))?;
        (span.len != 0).then(|| Frame::new(pieces, span.len))
    }

    /// Whether memory was lost under this burst.
    pub(super) fn poisoned(&self) -> bool {
        self.vring.burst().poisoned()
    }

    /// Gives back the chains from `index` on: they are served later.
    pub(super) fn keep(&mut self, index: usize) {
        self.vring.untake(self.spans.len().saturating_sub(index));
        self.spans.truncate(index);
    }

    /// Completes every chain, publishes, and counts. True when the driver asks for a call.
    ///
    /// # Errors
    /// As [`Vring::publish`]: nothing was published.
    #[inline]
    pub(super) fn finish(mut self, stats: &QueueStats, ticks: u64) -> Result<bool, RingError> {
        self.vring.complete_all()?;
        let wants_call = self.vring.publish()?;
        let bytes = self.spans.iter().fold(0usize, |sum, span| sum.wrapping_add(span.len));
        stats.add_drops(DropCause::Short, self.short);
        stats.add_drops(DropCause::Oversize, self.oversize);
        stats.add_burst(self.spans.len() as u64, bytes as u64, ticks);
        Ok(wants_call)
    }
}

/// The frame's length in a chain of `bytes`, if it is one.
#[inline(always)]
fn frame_len(bytes: usize) -> Option<usize> {
    bytes.checked_sub(HEADER).filter(|len| (ETHERNET_HEADER..=MAX_FRAME).contains(len))
}

/// A frame in one buffer with its header, as most are, and in one piece.
#[inline(always)]
fn whole<'r>(burst: &'r Burst<'_>, buffers: &[Buffer]) -> Option<GuestSlice<'r>> {
    let [buffer] = buffers else { return None };
    let len = frame_len(buffer.len as usize)?;
    burst.slice(buffer.iova, buffer.len, Perm::READ).ok()?.subslice(HEADER, len)
}

/// A frame in any number of buffers, split anywhere; or why it is none.
#[inline(never)]
fn gather<'r>(
    burst: &'r Burst<'_>,
    buffers: &[Buffer],
    pieces: &mut Pieces<'r>,
) -> Result<Result<Span, DropCause>, RingError> {
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
    let count = frame.len();
    if count > MAX_PIECES {
        pieces.truncate(first);
        return Ok(Err(DropCause::Oversize));
    }
    frame.iter().for_each(|piece| piece.prefetch_read(0));
    Ok(Ok(Span { first: start, count, len }))
}
