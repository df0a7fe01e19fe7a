//! Commands whose store needs no time: each is carried out where it is found.

use mdev_dma::{GuestSlice, SgList};
use mdev_pin::{Burst, ResolveError};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::bucket::Bucket;
use super::data::Piece;
use super::steps::{Span, Steps};
use crate::store::{Immediate, Operation};

/// Bytes that are changed at once, without moving data: what takes a fraction of a millisecond.
const AT_ONCE: u64 = 2 << 20;

/// The memory of one command, kept from command to command of a burst for its room.
pub(super) type Memory<'s> = SmallVec<[GuestSlice<'s>; 8]>;

/// Finds the memory of a command. What is not wanted goes to the bucket.
///
/// # Errors
/// A piece that is in none, or in none that permits it.
#[inline(always)]
pub(super) fn resolve<'s>(
    burst: &'s Burst<'_>,
    bucket: &'s Bucket,
    pieces: &[Piece],
    operation: Operation,
    out: &mut Memory<'s>,
) -> Result<(), ResolveError> {
    let perm = operation.memory();
    out.clear();
    for piece in pieces {
        if piece.unwanted {
            out.push(bucket.slice(piece.len).ok_or(ResolveError::Overflow)?);
            continue;
        }
        match burst.slice(piece.at, piece.len, perm) {
            Ok(slice) => out.push(slice),
            Err(ResolveError::Split) => {
                let mut parts = SgList::new();
                burst.sg(piece.at, piece.len, perm, &mut parts)?;
                out.extend(parts.iter());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Does one step.
///
/// # Errors
/// What the store says; the rest is not done then.
pub(super) fn step(port: &mut Immediate, steps: &mut Steps) -> Result<(), Errno> {
    match steps.next(AT_ONCE) {
        Some(Span { offset, len }) => port.serve(steps.operation, offset, len, &[]),
        None => Ok(()),
    }
}
