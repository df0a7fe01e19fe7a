//! What restricts where areas may lie: allowed and reserved ranges and the size of pages; and the search for a free
//! place. Plain data under the mutex of the space.

use mdev_dma::{Area, Iova, IovaMap, IovaRange, Ranged};

use crate::error::IoasError;

/// What an access that pins pages, and a space without huge pages, align areas to.
pub const PAGE: u64 = 4096;

/// Greatest alignment that an allocation cares for: a huge page of the processor.
const HUGE_PAGE: u64 = 2 << 20;

/// Where IOVAs are allocated: neither in the first page nor in the last.
const ALLOCATABLE: (u64, u64) = (PAGE, u64::MAX - PAGE);

/// Who reserved a range: a number of the caller's choice, by which the range is given back.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeOwner(pub u64);

/// The restrictions of one space.
#[derive(Debug, Default)]
pub struct Limits {
    /// Sorted, without overlaps. None: everything is allowed.
    allowed: Vec<IovaRange>,
    /// In order of their first bytes; they may overlap.
    reserved: Vec<(IovaRange, RangeOwner)>,
    /// The huge-page option is off.
    pub small_pages: bool,
}

impl Limits {
    /// Replaces the allowed ranges, or changes nothing (`iommufd_ioas_allow_iovas`).
    pub fn allow(&mut self, ranges: &[IovaRange]) -> Result<(), IoasError> {
        if let Some(single) = ranges.iter().find(|range| range.first() == range.last()) {
            return Err(IoasError::Allowed(*single));
        }
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| range.first());
        for pair in sorted.windows(2) {
            if let [before, after] = pair
                && after.first() <= before.last()
            {
                return Err(IoasError::Allowed(*after));
            }
        }
        for wanted in &sorted {
            if let Some(by) = self.reserved_in(*wanted) {
                return Err(IoasError::InUse { wanted: *wanted, by });
            }
        }
        self.allowed = sorted;
        Ok(())
    }

    /// The first allowed range that shares a byte with `range`.
    pub fn allowed_in(&self, range: IovaRange) -> Option<IovaRange> {
        self.allowed.iter().copied().find(|allowed| allowed.intersection(range).is_some())
    }

    /// Whether an allocation may return `range`.
    pub fn allows(&self, range: IovaRange) -> bool {
        self.spans().any(|span| span.contains_range(range))
    }

    /// Adds a reserved range. The caller has looked for areas in it.
    pub fn reserve(&mut self, range: IovaRange, owner: RangeOwner) {
        let at = self.reserved.partition_point(|(other, _)| other.first() <= range.first());
        self.reserved.insert(at, (range, owner));
    }

    /// Gives back all that `owner` reserved; says how many ranges.
    pub fn unreserve(&mut self, owner: RangeOwner) -> usize {
        let before = self.reserved.len();
        self.reserved.retain(|(_, by)| *by != owner);
        before.saturating_sub(self.reserved.len())
    }

    /// The first reserved range that shares a byte with `range`.
    pub fn reserved_in(&self, range: IovaRange) -> Option<IovaRange> {
        self.reserved.iter().map(|(reserved, _)| *reserved).find(|other| other.intersection(range).is_some())
    }

    /// What is not reserved, in order of address.
    pub fn holes(&self) -> impl Iterator<Item = IovaRange> {
        let mut next = Some(Iova(0));
        // One step more than there are reserved ranges: the hole behind the last.
        let ends = self.reserved.iter().map(|(range, _)| Some(*range)).chain([None]);
        ends.filter_map(move |reserved| {
            let first = next?;
            let Some(reserved) = reserved else { return IovaRange::new(first, Iova(u64::MAX)).ok() };
            next = reserved.last().checked_add(1).map(|behind| behind.max(first));
            IovaRange::new(first, Iova(reserved.first().0.checked_sub(1)?)).ok()
        })
    }

    /// Where an allocation searches: the allowed ranges, those that touch joined.
    fn spans(&self) -> impl Iterator<Item = IovaRange> {
        let everything = self.allowed.is_empty().then_some(IovaRange::FULL);
        let mut allowed = self.allowed.iter().copied().chain(everything).peekable();
        std::iter::from_fn(move || {
            let mut span = allowed.next()?;
            while let Some(more) = allowed
                .next_if(|more| span.last().checked_add(1).is_some_and(|behind| behind == more.first()))
            {
                span = IovaRange::new(span.first(), more.last()).unwrap_or(span);
            }
            Some(span)
        })
        .filter_map(|span| {
            let (first, last) = ALLOCATABLE;
            span.intersection(IovaRange::new(Iova(first), Iova(last)).ok()?)
        })
    }

    /// The lowest place for `need` in the allowed ranges that neither an area nor a reserved range touches.
    pub fn first_fit<T: Ranged + Clone>(&self, areas: &IovaMap<T>, need: Need) -> Option<IovaRange> {
        self.spans().find_map(|span| {
            let mut from = span.first();
            loop {
                let wanted = need.at_or_behind(from)?;
                if wanted.last() > span.last() {
                    return None;
                }
                let area = areas.overlapping(wanted).next().map(Ranged::range);
                match area.or_else(|| self.reserved_in(wanted)) {
                    None => return Some(wanted),
                    Some(taken) => from = taken.last().checked_add(1)?,
                }
            }
        })
    }
}

/// What an allocation is to find (`iopt_alloc_iova`).
#[derive(Copy, Clone, Debug)]
pub struct Need {
    length: u64,
    /// A power of two.
    alignment: u64,
    /// Of the source in its page; the IOVA has the same.
    page_offset: u64,
}

impl Need {
    /// For `length` bytes at `offset` of a file in a space of that alignment: as aligned as the source, so that huge
    /// pages stay huge pages.
    pub fn new(offset: u64, length: u64, space_alignment: u64) -> Result<Need, IoasError> {
        if length >= u64::MAX / 2 {
            return Err(IoasError::TooLong { length });
        }
        let of_source = 1u64.checked_shl(offset.trailing_zeros()).unwrap_or(HUGE_PAGE);
        let alignment = length.next_power_of_two().min(of_source).min(HUGE_PAGE);
        if alignment < space_alignment || !length.is_multiple_of(space_alignment) {
            return Err(IoasError::Misaligned {
                what: "the length or the file offset",
                alignment: space_alignment,
            });
        }
        Ok(Need { length, alignment, page_offset: offset % PAGE })
    }

    /// The first place at `from` or behind it.
    fn at_or_behind(self, from: Iova) -> Option<IovaRange> {
        // An alignment beyond the page comes with an offset of zero in the page, and a smaller one divides it.
        let unit = self.alignment.max(PAGE);
        let skip = self.page_offset.wrapping_sub(from.0) & unit.wrapping_sub(1);
        IovaRange::with_len(from.checked_add(skip)?, self.length).ok()
    }
}

/// Whether an area may exist in a space of that alignment, and if not, what is wrong with it.
pub fn misaligned(area: &Area, alignment: u64) -> Option<IoasError> {
    let off = |value: u64| !value.is_multiple_of(alignment);
    // A length of 2^64 is 0 here, which every alignment divides.
    let length = area.range.last().0.wrapping_sub(area.range.first().0).wrapping_add(1);
    let what = match () {
        () if off(length) => "the length",
        () if off(area.range.first().0) => "the IOVA",
        () if off(area.extent.start() % PAGE) => "the file offset",
        () => return None,
    };
    Some(IoasError::Misaligned { what, alignment })
}

#[cfg(all(test, not(loom)))]
mod tests;
