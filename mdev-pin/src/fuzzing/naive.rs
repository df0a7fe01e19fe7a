//! What the spaces should be, as lists that are searched byte by byte and area by area.

use mdev_dma::{Iova, IovaRange, Perm};

/// What pinning accesses align to.
pub const PAGE: u64 = 4096;
/// Length of a file.
pub const FILE: u64 = 8 * PAGE;

/// A result or its error number.
pub type Outcome<T> = Result<T, i32>;

#[derive(Clone, Debug)]
pub struct NaiveArea {
    pub first: u64,
    pub len: u64,
    pub file: usize,
    pub offset: u64,
    pub perm: Perm,
}

/// Bytes of a file.
#[derive(Clone, Debug)]
pub struct Part {
    pub file: usize,
    pub offset: u64,
    pub len: u64,
}

#[derive(Default)]
pub struct NaiveSpace {
    pub areas: Vec<NaiveArea>,
    /// How many accesses that pin pages are attached.
    pinning: usize,
}

pub struct NaiveFile {
    pub bytes: Vec<u8>,
    pub len: u64,
    /// Pages were taken away: nothing is known of its bytes any more.
    pub lost: bool,
}

pub struct Naive {
    pub spaces: [NaiveSpace; 2],
    pub files: [NaiveFile; 2],
    /// Where each device is attached.
    attached: [Option<usize>; 3],
}

/// The device that pins pages.
const PINNING: usize = 2;

impl NaiveArea {
    pub fn range(&self) -> Option<IovaRange> {
        IovaRange::with_len(Iova(self.first), self.len).ok()
    }

    /// A range alone.
    pub fn over(range: IovaRange) -> Option<NaiveArea> {
        let len = u64::try_from(range.size()).ok()?;
        Some(NaiveArea { first: range.first().0, len, file: 0, offset: 0, perm: Perm::empty() })
    }

    pub fn last(&self) -> u64 {
        self.first + self.len - 1
    }

    fn overlaps(&self, other: &NaiveArea) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }

    /// The bytes of both, as part of this one.
    fn common(&self, other: &NaiveArea) -> Option<NaiveArea> {
        let first = self.first.max(other.first);
        let len = self.last().min(other.last()).checked_add(1)?.checked_sub(first).filter(|len| *len > 0)?;
        Some(NaiveArea { first, len, offset: self.offset + (first - self.first), ..self.clone() })
    }
}

impl NaiveSpace {
    pub fn alignment(&self) -> u64 {
        if self.pinning > 0 { PAGE } else { 1 }
    }

    /// The area of a byte.
    pub fn at(&self, at: u64) -> Option<&NaiveArea> {
        self.areas.iter().find(|area| area.first <= at && at <= area.last())
    }

    fn permits(&self, area: &NaiveArea) -> Outcome<()> {
        let aligned = [area.first, area.len, area.offset].iter().all(|n| n.is_multiple_of(self.alignment()));
        if aligned { Ok(()) } else { Err(22) }
    }

    fn admits(&self, area: &NaiveArea) -> Outcome<()> {
        self.permits(area)?;
        if self.areas.iter().any(|other| other.overlaps(area)) { Err(17) } else { Ok(()) }
    }

    /// What is mapped at a range, area by area, as far as there is no hole; and whether it is all.
    fn parts(&self, range: &NaiveArea) -> (Vec<NaiveArea>, bool) {
        let mut parts = Vec::new();
        let mut next = range.first;
        while next <= range.last() {
            let Some(part) = self.at(next).and_then(|area| area.common(range)) else { return (parts, false) };
            next = part.last() + 1;
            parts.push(part);
        }
        (parts, true)
    }
}

impl Naive {
    pub fn new() -> Naive {
        let file = |number: u64| NaiveFile {
            bytes: (0..FILE).map(|at| ((at >> 8) ^ at.wrapping_mul(7) ^ (number << 7)) as u8).collect(),
            len: FILE,
            lost: false,
        };
        Naive { spaces: Default::default(), files: [file(0), file(1)], attached: [None; 3] }
    }

    pub fn is_lost(&self, file: usize) -> bool {
        self.files.get(file).is_some_and(|file| file.lost)
    }

    pub fn in_file(&self, area: &NaiveArea) -> bool {
        self.files.get(area.file).is_some_and(|file| area.offset + area.len <= file.len)
    }

    /// Whether length and offset keep to the alignment of a space.
    pub fn source_aligned(&self, space: usize, area: &NaiveArea) -> bool {
        self.spaces
            .get(space)
            .is_some_and(|space| space.permits(&NaiveArea { first: 0, ..area.clone() }).is_ok())
    }

    pub fn bytes(&self, part: &Part) -> Option<&[u8]> {
        let (first, end) =
            (usize::try_from(part.offset).ok()?, usize::try_from(part.offset + part.len).ok()?);
        self.files.get(part.file)?.bytes.get(first..end)
    }

    /// The byte at an address, if it may be read.
    pub fn byte(&self, area: Option<&NaiveArea>, at: u64) -> Option<u8> {
        let area = area.filter(|area| area.perm.contains(Perm::READ))?;
        let offset = area.offset + (at - area.first);
        self.bytes(&Part { file: area.file, offset, len: 1 })?.first().copied()
    }

    pub fn map(&mut self, space: usize, area: NaiveArea) -> Outcome<()> {
        let in_file = self.in_file(&area);
        let space = self.spaces.get_mut(space).ok_or(2)?;
        space.admits(&area)?;
        if !in_file {
            return Err(22);
        }
        space.areas.push(area);
        Ok(())
    }

    pub fn unmap(&mut self, space: usize, range: IovaRange) -> Outcome<u64> {
        let areas = &mut self.spaces.get_mut(space).ok_or(2)?.areas;
        let hit = |area: &&NaiveArea| area.range().and_then(|other| other.intersection(range)).is_some();
        let whole = |area: &NaiveArea| area.range().is_some_and(|other| range.contains_range(other));
        if !areas.iter().filter(hit).all(whole)
            || (range != IovaRange::FULL && areas.iter().filter(hit).count() == 0)
        {
            return Err(2);
        }
        let bytes = areas.iter().filter(hit).map(|area| area.len).sum();
        areas.retain(|area| !hit(&area));
        Ok(bytes)
    }

    /// Copies to `at`; `None` if there was no room, for a reason that is not known here.
    pub fn copy(&mut self, from: (usize, &NaiveArea), space: usize, at: Option<u64>) -> Outcome<u64> {
        let (parts, whole) = self.spaces.get(from.0).ok_or(2)?.parts(from.1);
        if !whole {
            return Err(2);
        }
        let space = self.spaces.get_mut(space).ok_or(2)?;
        let forbids =
            |part: &NaiveArea| from.1.perm.contains(Perm::WRITE) && !part.perm.contains(Perm::WRITE);
        let Some(at) = at else { return Err(if parts.iter().any(forbids) { 1 } else { 22 }) };
        let mut copies = Vec::new();
        for part in parts {
            if forbids(&part) {
                return Err(1);
            }
            let first = at + (part.first - from.1.first);
            let copy = NaiveArea { first, perm: from.1.perm, ..part };
            space.admits(&copy)?;
            copies.push(copy);
        }
        space.areas.extend(copies);
        Ok(at)
    }

    pub fn replace(&mut self, space: usize, wanted: Vec<NaiveArea>) -> Outcome<u64> {
        let clash =
            |(at, area): (usize, &NaiveArea)| wanted.iter().take(at).any(|other| other.overlaps(area));
        if wanted.iter().enumerate().any(clash) {
            return Err(17);
        }
        if wanted.iter().any(|area| !self.is_lost(area.file) && !self.in_file(area)) {
            return Err(22);
        }
        let space = self.spaces.get_mut(space).ok_or(2)?;
        wanted.iter().try_for_each(|area| space.permits(area))?;
        let stays = |old: &NaiveArea| {
            let same = |new: &NaiveArea| {
                let (mine, theirs) = (old.common(new)?, new.common(old)?);
                let alike = (mine.file, mine.offset, mine.perm) == (theirs.file, theirs.offset, theirs.perm);
                alike.then_some(mine.len)
            };
            wanted.iter().filter_map(same).sum::<u64>()
        };
        let gone = space.areas.iter().map(|old| old.len - stays(old)).sum();
        space.areas = wanted;
        Ok(gone)
    }

    fn joins(&mut self, device: usize, space: usize) -> Outcome<()> {
        let space = self.spaces.get_mut(space).ok_or(2)?;
        if device == PINNING {
            space.pinning += 1;
            if space.areas.iter().any(|area| space.permits(area).is_err()) {
                space.pinning -= 1;
                return Err(98);
            }
        }
        Ok(())
    }

    fn leaves(&mut self, device: usize, space: usize) {
        if let Some(space) = self.spaces.get_mut(space).filter(|_| device == PINNING) {
            space.pinning -= 1;
        }
    }

    fn attached(&self, device: usize) -> Option<usize> {
        self.attached.get(device).copied().flatten()
    }

    fn attach_to(&mut self, device: usize, space: Option<usize>) {
        if let Some(attached) = self.attached.get_mut(device) {
            *attached = space;
        }
    }

    pub fn attach(&mut self, device: usize, space: usize) -> Outcome<()> {
        if self.attached(device).is_some() {
            return Err(22);
        }
        self.joins(device, space)?;
        self.attach_to(device, Some(space));
        Ok(())
    }

    pub fn detach(&mut self, device: usize) -> Outcome<()> {
        let space = self.attached(device).ok_or(2)?;
        self.leaves(device, space);
        self.attach_to(device, None);
        Ok(())
    }

    pub fn change_space(&mut self, device: usize, space: usize) -> Outcome<()> {
        let from = self.attached(device).ok_or(2)?;
        if from != space {
            self.joins(device, space)?;
            self.leaves(device, from);
            self.attach_to(device, Some(space));
        }
        Ok(())
    }

    /// The areas that a device meets on its way through a range, as far as there is no hole; and whether that is all.
    fn meets(&self, device: usize, wanted: &NaiveArea) -> (Vec<NaiveArea>, bool) {
        let space = self.attached(device).and_then(|space| self.spaces.get(space));
        space.map_or((Vec::new(), false), |space| space.parts(wanted))
    }

    /// The bytes of a range for a device that wants to touch them, and the error that ends the way.
    fn ways(&self, device: usize, wanted: &NaiveArea) -> (Vec<Part>, Outcome<()>) {
        let (areas, whole) = self.meets(device, wanted);
        let mut parts = Vec::new();
        for area in areas {
            if !area.perm.contains(wanted.perm) {
                return (parts, Err(1));
            }
            parts.push(Part { file: area.file, offset: area.offset, len: area.len });
        }
        (parts, if whole { Ok(()) } else { Err(2) })
    }

    /// What is mapped where a device is attached.
    pub fn areas_of(&self, device: usize) -> &[NaiveArea] {
        let space = self.attached(device).and_then(|space| self.spaces.get(space));
        space.map_or(&[], |space| &space.areas)
    }

    /// Whether all of a range is mapped for a device.
    pub fn maps(&self, device: usize, range: IovaRange) -> bool {
        NaiveArea::over(range).is_some_and(|wanted| self.meets(device, &wanted).1)
    }

    /// Whether a range is mapped for a device as these parts, however they are cut.
    pub fn shows(&self, device: usize, range: IovaRange, parts: &[Part]) -> bool {
        let Some(wanted) = NaiveArea::over(range) else { return false };
        let bytes = |part: &Part| {
            let file = part.file;
            (part.offset..part.offset + part.len).map(move |at| (file, at)).collect::<Vec<_>>()
        };
        let now = self.walk(device, &wanted);
        now.is_ok_and(|now| now.iter().flat_map(bytes).eq(parts.iter().flat_map(bytes)))
    }

    /// All bytes of a range.
    pub fn walk(&self, device: usize, wanted: &NaiveArea) -> Outcome<Vec<Part>> {
        let (parts, done) = self.ways(device, wanted);
        done.map(|()| parts)
    }

    pub fn touches_lost(&self, device: usize, wanted: &NaiveArea) -> bool {
        self.meets(device, wanted).0.iter().any(|area| self.is_lost(area.file))
    }

    /// A pin in a burst. A device that pins pages meets what it may not do at the first area that is in order.
    pub fn pin(&self, device: usize, wanted: &NaiveArea) -> Outcome<Vec<Part>> {
        match self.ways(device, wanted) {
            (parts, _) if device == PINNING && !parts.is_empty() => Err(22),
            (parts, done) => done.map(|()| parts),
        }
    }

    pub fn pin_pages(&self, device: usize, wanted: &NaiveArea) -> Outcome<()> {
        if device != PINNING {
            return Err(22);
        }
        let (areas, whole) = self.meets(device, wanted);
        for area in areas {
            let ends = area.last() == wanted.last() || (area.offset + area.len).is_multiple_of(PAGE);
            if !area.offset.is_multiple_of(PAGE) || !ends {
                return Err(22);
            }
            if !area.perm.contains(wanted.perm) {
                return Err(1);
            }
        }
        if whole { Ok(()) } else { Err(2) }
    }

    pub fn read(&self, device: usize, wanted: &NaiveArea) -> Outcome<Vec<u8>> {
        let parts = self.walk(device, &NaiveArea { perm: Perm::READ, ..wanted.clone() })?;
        Ok(parts.iter().filter_map(|part| self.bytes(part)).flatten().copied().collect())
    }

    /// Up to the byte that cannot be written.
    pub fn write(&mut self, device: usize, wanted: &NaiveArea, from: &[u8]) -> Outcome<()> {
        let (parts, done) = self.ways(device, &NaiveArea { perm: Perm::WRITE, ..wanted.clone() });
        let mut from = from.iter();
        for part in parts {
            let file = self.files.get_mut(part.file).map(|file| file.bytes.iter_mut());
            let skip = usize::try_from(part.offset).unwrap_or(usize::MAX);
            let len = usize::try_from(part.len).unwrap_or(0);
            let to = file.into_iter().flatten().skip(skip).take(len);
            for (to, from) in to.zip(from.by_ref()) {
                *to = *from;
            }
        }
        done
    }
}
