//! Commands whose store takes its time: their memory is pinned, and the store has them before the burst ends. So an unmap
//! that has waited for the bursts finds every pin.

use mdev_pin::{Burst, Lane, ResolveError};

use super::bucket;
use super::data::Piece;
use super::flying::{Flown, Flying};
use super::steps::{Span, Steps};
use crate::store::{Limits, Operation, Pins, Queued, Request};

/// Holds the memory of a command. `bucket` is the way to where what is not wanted goes.
///
/// # Errors
/// A piece that is in none, or in none that permits it. Nothing is held.
pub(super) fn pin(
    burst: &Burst<'_>,
    bucket: &mut Lane,
    pieces: &[Piece],
    operation: Operation,
) -> Result<Pins, ResolveError> {
    let perm = operation.memory();
    let mut pin = |piece: &Piece| match piece.unwanted {
        false => burst.pin(piece.at, piece.len, perm),
        true => bucket::pin(bucket, piece.len),
    };
    pieces.iter().map(&mut pin).collect()
}

/// Gives a command that moves data to its store. There is room for it. `remote`: see [`Flown`].
pub(super) fn transfer(
    flying: &mut Flying,
    port: &mut Queued,
    cid: u16,
    operation: Operation,
    span: Span,
    memory: Pins,
    remote: Option<u64>,
) {
    let Span { offset, len } = span;
    let flown = Flown { cid, operation, offset, rest: None, everywhere: false, remote };
    let Some(tag) = flying.add(flown) else { return };
    port.submit(Request { tag, operation, offset, len, memory });
}

/// Gives the first step of a command to its store. There is room for it, and there is such a step.
pub(super) fn change(flying: &mut Flying, port: &mut Queued, cid: u16, mut steps: Steps, limits: &Limits) {
    let operation = steps.operation;
    let Some(Span { offset, len }) = steps.next(at_once(operation, limits)) else { return };
    let rest = (!steps.is_done()).then(|| Box::new(steps));
    let flown = Flown { cid, operation, offset, rest, everywhere: false, remote: None };
    let Some(tag) = flying.add(flown) else { return };
    port.submit(request(tag, operation, offset, len));
}

/// Gives the next step of a command to its store. False if there is none.
pub(super) fn go_on(flown: &mut Flown, tag: u64, port: &mut Queued, limits: &Limits) -> bool {
    let Flown { operation, offset, rest, .. } = flown;
    let most = at_once(*operation, limits);
    let Some(span) = rest.as_mut().and_then(|rest| rest.next(most)) else { return false };
    *offset = span.offset;
    port.submit(request(tag, *operation, span.offset, span.len));
    true
}

/// Has a store flushed, for a command that flushes all.
pub(super) fn flush(port: &mut Queued, tag: u64) {
    port.submit(request(tag, Operation::Flush, 0, 0));
}

fn request(tag: u64, operation: Operation, offset: u64, len: u64) -> Request {
    Request { tag, operation, offset, len, memory: Pins::new() }
}

/// Bytes of one request, at most.
fn at_once(operation: Operation, limits: &Limits) -> u64 {
    match operation {
        Operation::Discard => limits.max_discard,
        Operation::WriteZeroes { .. } => limits.max_zeroes,
        _ => u64::MAX,
    }
}
