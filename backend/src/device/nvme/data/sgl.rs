//! SGL descriptors: blocks of data, bit buckets, and segments with more descriptors. Keyed and transport descriptors are not served,
//! nor lists that describe more bytes than are moved. A bit bucket takes bytes that go to the host; among those that come from
//! it, it is as if it were not there.

use mdev_dma::Iova;
use mdev_protocol::nvme::data::{
    SGL_ADDRESS, SGL_BIT_BUCKET, SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor,
};
use mdev_protocol::nvme::status::Status;
use zerocopy::IntoBytes;

use super::{Fault, Lists, Piece, push};

/// Descriptors that one command may have, segments among them.
const MAX: u32 = 512;
/// Descriptors that are read at once.
const AT_ONCE: u32 = 64;

const LEN: u32 = SglDescriptor::LEN as u32;

fn refused<T>(status: Status) -> Result<T, Fault> {
    Err(Fault::Refused(status.do_not_retry()))
}

/// A descriptor, as far as it is served.
enum Meaning {
    Data { at: u64, len: u32 },
    Bucket { len: u32 },
    Segment(Segment),
}

/// So many descriptors at an address; the last of them is a segment unless these are the last.
#[derive(Copy, Clone)]
struct Segment {
    at: u64,
    count: u32,
    last: bool,
}

fn meaning(descriptor: SglDescriptor) -> Result<Meaning, Fault> {
    let SglDescriptor { address: at, len, .. } = descriptor;
    if descriptor.sub_kind() != SGL_ADDRESS {
        return refused(Status::SGL_TYPE_INVALID);
    }
    match descriptor.kind() {
        SGL_DATA_BLOCK => Ok(Meaning::Data { at, len }),
        SGL_BIT_BUCKET => Ok(Meaning::Bucket { len }),
        SGL_SEGMENT | SGL_LAST_SEGMENT if len == 0 || !len.is_multiple_of(LEN) => {
            refused(Status::INVALID_SGL_SEGMENT)
        }
        kind @ (SGL_SEGMENT | SGL_LAST_SEGMENT) => {
            Ok(Meaning::Segment(Segment { at, count: len / LEN, last: kind == SGL_LAST_SEGMENT }))
        }
        _ => refused(Status::SGL_TYPE_INVALID),
    }
}

/// See [`super::locate`].
pub(super) fn walk(
    lists: &impl Lists,
    dptr: [u64; 2],
    len: u32,
    to_host: bool,
    out: &mut Vec<Piece>,
) -> Result<(), Fault> {
    let mut list = List { out, to_host, left: len, descriptors: 1 };
    let mut next = match meaning(SglDescriptor::from_pointer(dptr))? {
        Meaning::Data { at, len } => {
            list.add(at, len)?;
            None
        }
        Meaning::Bucket { len } => {
            list.throw(len)?;
            None
        }
        Meaning::Segment(segment) => Some(segment),
    };
    while let Some(segment) = next {
        next = list.go_through(lists, segment)?;
    }
    // Too short.
    if list.left == 0 { Ok(()) } else { refused(Status::SGL_DATA_LENGTH_INVALID) }
}

/// What was described so far.
struct List<'o> {
    out: &'o mut Vec<Piece>,
    to_host: bool,
    /// Bytes that are not described yet.
    left: u32,
    /// Descriptors that were read, or will be.
    descriptors: u32,
}

impl List<'_> {
    fn count(&mut self, len: u32) -> Result<(), Fault> {
        let Some(left) = self.left.checked_sub(len) else { return refused(Status::SGL_DATA_LENGTH_INVALID) };
        self.left = left;
        Ok(())
    }

    /// A bit bucket.
    fn throw(&mut self, len: u32) -> Result<(), Fault> {
        if self.to_host {
            self.count(len)?;
            if len > 0 {
                self.out.push(Piece { at: Iova(0), len, unwanted: true });
            }
        }
        Ok(())
    }

    fn add(&mut self, at: u64, len: u32) -> Result<(), Fault> {
        self.count(len)?;
        if len > 0 {
            push(self.out, at, len);
        }
        Ok(())
    }

    /// The descriptors of a segment. Where they go on, if they do.
    fn go_through(&mut self, lists: &impl Lists, segment: Segment) -> Result<Option<Segment>, Fault> {
        let Segment { mut at, mut count, last } = segment;
        self.descriptors = self.descriptors.saturating_add(count);
        if self.descriptors > MAX {
            return refused(Status::INVALID_SGL_COUNT);
        }
        let mut some = [SglDescriptor::default(); AT_ONCE as usize];
        while count > 0 {
            let here = some.get_mut(..count.min(AT_ONCE) as usize).unwrap_or_default();
            lists.read(Iova(at), here.as_mut_bytes())?;
            for descriptor in here {
                count = count.wrapping_sub(1);
                match meaning(*descriptor)? {
                    Meaning::Data { at, len } => self.add(at, len)?,
                    Meaning::Bucket { len } => self.throw(len)?,
                    Meaning::Segment(_) if last => return refused(Status::INVALID_SGL_SEGMENT),
                    Meaning::Segment(next) if count == 0 => return Ok(Some(next)),
                    Meaning::Segment(_) => return refused(Status::INVALID_SGL_COUNT),
                }
            }
            // Wraps only where no memory can be.
            at = at.wrapping_add(u64::from(AT_ONCE).wrapping_mul(LEN.into()));
        }
        // One that is not the last ends with another.
        if last { Ok(None) } else { refused(Status::INVALID_SGL_SEGMENT) }
    }
}
