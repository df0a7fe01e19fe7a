//! What control paths find at a range: host memory, and bytes in another process that are copied there and back.

use std::sync::Arc;

use mdev_dma::{Extent, IovaRange, ProcessExtent, Ranged, UserAddr, try_with_capacity};

use crate::{
    burst::Burst,
    error::{AccessError, ResolveError},
    pages::Rw,
    slot::Slot,
    sys::{piece::Found, snapshot::Snapshot},
    view::Elsewhere,
};

/// Bytes are fetched so many at a time: memory is taken for what was there, not for what was asked for.
const CHUNK: usize = 64 << 10;

/// A part of a range that lies in one area.
#[derive(Copy, Clone)]
pub enum Part<'s> {
    Here(Found<'s>),
    There(&'s Elsewhere),
}

impl Burst<'_> {
    /// Calls `each` with every part of the range, and offset and length of the range in it, as [`Burst::walk`] does for
    /// host memory. Does not ask for permission.
    pub(crate) fn parts<'s>(
        &'s self,
        range: IovaRange,
        mut each: impl FnMut(Part<'s>, u64, u64) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let mut at = range.first();
        loop {
            let (part, whole) = match self.found_at(at) {
                Ok(found) => (Part::Here(found), found.piece().range()),
                Err(ResolveError::Elsewhere) => {
                    let elsewhere = self.elsewhere_at(at).ok_or(ResolveError::Hole)?;
                    (Part::There(elsewhere), elsewhere.range())
                }
                Err(error) => return Err(error.into()),
            };
            let end = whole.last().min(range.last());
            let size = end.0.wrapping_sub(at.0).wrapping_add(1);
            each(part, at.0.wrapping_sub(whole.first().0), size)?;
            if end == range.last() {
                return Ok(());
            }
            at = end.checked_add(1).ok_or(ResolveError::Overflow)?;
        }
    }
}

impl<'s> Part<'s> {
    pub fn perm(&self) -> mdev_dma::Perm {
        match self {
            Part::Here(found) => found.piece().perm(),
            Part::There(elsewhere) => elsewhere.perm,
        }
    }

    /// The IOVA of its first byte.
    pub fn first(&self) -> u64 {
        match self {
            Part::Here(found) => found.piece().first(),
            Part::There(elsewhere) => elsewhere.range().first().0,
        }
    }

    /// Where its first byte is: in its file, or its address.
    pub fn start(&self) -> u64 {
        match self {
            Part::Here(found) => found.piece().file_bytes().0,
            Part::There(elsewhere) => elsewhere.extent.start(),
        }
    }
}

impl Elsewhere {
    /// The place at `offset`, if the kernel can copy to and from it.
    pub fn in_process(&self, offset: u64) -> Result<ProcessExtent, ResolveError> {
        match &self.extent {
            Extent::Process(extent) => extent.checked_add(offset).ok_or(ResolveError::Overflow),
            Extent::File(_) | Extent::Remote(_) => Err(ResolveError::Elsewhere),
        }
    }

    /// Copies `len` bytes at `offset` and advances the caller's buffer.
    pub fn copy(&self, offset: u64, len: u64, data: &mut Rw<'_>) -> Result<(), AccessError> {
        let ProcessExtent { process, address } = self.in_process(offset)?;
        let len = usize::try_from(len).map_err(|_| ResolveError::Overflow)?;
        match data {
            Rw::Read(to) => {
                let (now, rest) = std::mem::take(to).split_at_mut_checked(len).unwrap_or_default();
                *to = rest;
                process.read(address, now)?;
            }
            Rw::Write(from) => {
                let (now, rest) = from.split_at_checked(len).unwrap_or_default();
                *from = rest;
                process.write(address, now)?;
            }
        }
        Ok(())
    }
}

/// Bytes of another process, as they were when they were pinned.
pub struct Copied {
    from: ProcessExtent,
    /// Where they are mapped, and the slot they are counted on, by which their area is revoked.
    range: IovaRange,
    slot: Slot,
    pub snapshot: Arc<Snapshot>,
}

impl Elsewhere {
    /// A copy of `len` bytes at `offset`.
    pub fn snapshot(&self, offset: u64, len: u64) -> Result<Copied, AccessError> {
        let from = self.in_process(offset)?;
        let first = self.range().first().checked_add(offset).ok_or(ResolveError::Overflow)?;
        let range = IovaRange::with_len(first, len).map_err(|_| ResolveError::Overflow)?;
        let len = usize::try_from(len).map_err(|_| ResolveError::Overflow)?;
        let mut bytes: Vec<u8> = try_with_capacity(len)?;
        while bytes.len() < len {
            let done = bytes.len();
            bytes.resize(done.saturating_add(CHUNK).min(len), 0);
            let at = from.address.0.checked_add(done as u64).ok_or(ResolveError::Overflow)?;
            from.process.read(UserAddr(at), bytes.get_mut(done..).unwrap_or_default())?;
        }
        Ok(Copied { from, range, slot: self.slot.clone(), snapshot: Snapshot::new(bytes) })
    }
}

impl Copied {
    /// Whether the area was revoked.
    pub fn is_void(&self) -> bool {
        self.slot.is_revoked(self.range)
    }

    /// Writes them back where they came from, as far as that is still there and nobody took it away.
    pub fn write_back(&self) {
        self.slot.unless_revoked(self.range, || self.write());
    }

    fn write(&self) {
        let bytes = self.snapshot.slice();
        let mut chunk = [0; 4096];
        let mut done = 0;
        while let Some(part) = bytes.subslice(done, chunk.len().min(bytes.len().saturating_sub(done)))
            && !part.is_empty()
        {
            let len = part.copy_to(&mut chunk);
            let Some(at) = self.from.address.0.checked_add(done as u64) else { return };
            // The owner is gone, or does not want it: nobody is left who could miss it.
            if self.from.process.write(UserAddr(at), chunk.get(..len).unwrap_or_default()).is_err() {
                return;
            }
            done = done.saturating_add(len);
        }
    }
}
