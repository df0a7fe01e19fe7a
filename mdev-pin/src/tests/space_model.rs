//! Two spaces on one set of windows against naive maps of units, a quarter of a page each, over random operations:
//! the same outcome or error number, the same areas, ranges and alignment, and the same bytes at every address.
//!
//! `MDEVD_MODEL_CASES` is how many sequences are tried.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::{IoasError, Place, RangeOwner};

const UNIT: u64 = PAGE / 4;
/// Where steps put things. Allocations may end behind it, but before `ALL`.
const NEAR: u64 = 48;
const ALL: u64 = 1024;
const FILE_UNITS: u64 = 24;
const RW: Perm = Perm::READ.union(Perm::WRITE);

/// First unit and how many.
type Span = (u64, u64);

#[derive(Clone, Debug)]
struct Extent {
    file: usize,
    offset: u64,
    perm: Perm,
}

#[derive(Clone, Debug)]
enum Step {
    Map(Span, Extent),
    Anywhere(u64, Extent),
    Unmap(Span),
    Copy { from: usize, span: Span, to: Option<u64>, perm: Perm },
    Replace(Vec<(Span, Extent)>),
    Allow(Vec<Span>),
    Reserve(Span, u64),
    Unreserve(u64),
    HugePages(bool),
    Pinning(bool),
}

/// Mostly whole pages, so that a space that demands them does not refuse everything.
fn units(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![2 => (0..most / 4).prop_map(|page| page * 4), 1 => 0..most]
}

fn span() -> impl Strategy<Value = Span> {
    (units(NEAR), units(16).prop_map(|len| len.max(1)))
}

fn perm() -> impl Strategy<Value = Perm> {
    prop_oneof![2 => Just(RW), 1 => Just(Perm::READ)]
}

fn extent() -> impl Strategy<Value = Extent> {
    (0..2usize, units(FILE_UNITS), perm()).prop_map(|(file, offset, perm)| Extent { file, offset, perm })
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        6 => (span(), extent()).prop_map(|(span, extent)| Step::Map(span, extent)),
        4 => (span(), extent()).prop_map(|((_, len), extent)| Step::Anywhere(len, extent)),
        4 => (units(NEAR), 1..NEAR).prop_map(Step::Unmap),
        8 => (0..2usize, (units(24), 1..9u64), prop::option::of(units(NEAR)), perm())
            .prop_map(|(from, span, to, perm)| Step::Copy { from, span, to, perm }),
        1 => prop::collection::vec((span(), extent()), 0..4).prop_map(Step::Replace),
        2 => prop::collection::vec(span(), 0..3).prop_map(Step::Allow),
        2 => (span(), 0..2u64).prop_map(|((first, len), owner)| Step::Reserve((first, len.min(3)), owner)),
        2 => (0..2u64).prop_map(Step::Unreserve),
        1 => any::<bool>().prop_map(Step::HugePages),
        1 => any::<bool>().prop_map(Step::Pinning),
    ];
    (0..2usize, step)
}

fn overlap(a: Span, b: Span) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

type Outcome<T> = Result<T, i32>;

#[derive(Clone, Default)]
struct Naive {
    areas: Vec<(Span, Extent)>,
    allowed: Vec<Span>,
    reserved: Vec<(Span, u64)>,
    small_pages: bool,
    pinning: bool,
}

impl Naive {
    /// In units.
    fn alignment(&self) -> u64 {
        if self.small_pages || self.pinning { 4 } else { 1 }
    }

    /// In units, where everything is a multiple of one.
    fn unaligned(&self, (first, len): Span, offset: u64) -> bool {
        [first, len, offset].iter().any(|value| !value.is_multiple_of(self.alignment()))
    }

    fn at(&self, unit: u64) -> Option<(Extent, bool)> {
        let ((first, _), extent) = self.areas.iter().find(|(span, _)| overlap(*span, (unit, 1)))?;
        let offset = extent.offset + unit - first;
        Some((Extent { offset, ..extent.clone() }, *first == unit))
    }

    fn permits(&self, span: Span, extent: &Extent) -> Outcome<()> {
        let reserved = self.reserved.iter().any(|(reserved, _)| overlap(*reserved, span));
        if self.unaligned(span, extent.offset) || reserved { Err(22) } else { Ok(()) }
    }

    fn admit(&self, span: Span, extent: &Extent) -> Outcome<()> {
        self.permits(span, extent)?;
        if self.areas.iter().any(|(area, _)| overlap(*area, span)) { Err(17) } else { Ok(()) }
    }

    fn in_file(len: u64, extent: &Extent) -> Outcome<()> {
        if extent.offset + len > FILE_UNITS { Err(22) } else { Ok(()) }
    }

    /// Tries every unit.
    fn room(&self, offset: u64, len: u64) -> Outcome<u64> {
        let of_source = if offset == 0 { u64::MAX } else { 1 << offset.trailing_zeros() };
        let alignment = len.next_power_of_two().min(of_source);
        if alignment < self.alignment() || !len.is_multiple_of(self.alignment()) {
            return Err(22);
        }
        let usable = |unit| {
            let span = (unit, 1);
            let allowed =
                self.allowed.is_empty() || self.allowed.iter().any(|allowed| overlap(*allowed, span));
            unit >= 4
                && allowed
                && self.at(unit).is_none()
                && !self.reserved.iter().any(|(reserved, _)| overlap(*reserved, span))
        };
        let fits = |first: &u64| {
            first.is_multiple_of(alignment) && first % 4 == offset % 4 && (*first..first + len).all(usable)
        };
        (0..ALL - len).find(fits).ok_or(28)
    }

    fn apply(&mut self, other: &Naive, same: bool, step: &Step) -> Outcome<u64> {
        match step {
            Step::Map(span, extent) => {
                self.admit(*span, extent)?;
                Self::in_file(span.1, extent)?;
                self.areas.push((*span, extent.clone()));
                Ok(0)
            }
            Step::Anywhere(len, extent) => {
                let first = self.room(extent.offset, *len)?;
                Self::in_file(*len, extent)?;
                self.areas.push(((first, *len), extent.clone()));
                Ok(first * UNIT)
            }
            Step::Unmap((first, len)) => {
                let (hit, rest): (Vec<_>, Vec<_>) =
                    self.areas.iter().cloned().partition(|(span, _)| overlap(*span, (*first, *len)));
                let whole = |((at, n), _): &(Span, Extent)| at >= first && at + n <= first + len;
                if hit.is_empty() || !hit.iter().all(whole) {
                    return Err(2);
                }
                self.areas = rest;
                Ok(hit.iter().map(|((_, len), _)| len * UNIT).sum())
            }
            Step::Copy { span: (first, len), to, perm, .. } => {
                let source = if same { self.clone() } else { other.clone() };
                let mut parts: Vec<(Span, Extent)> = Vec::new();
                for unit in *first..first + len {
                    let (extent, begins) = source.at(unit).ok_or(2)?;
                    match parts.last_mut() {
                        Some(((_, n), _)) if !begins => *n += 1,
                        _ => parts.push(((unit, 1), extent)),
                    }
                }
                let to = match to {
                    Some(at) => *at,
                    None => self.room(parts[0].1.offset, *len)?,
                };
                let mut new = Vec::new();
                for ((at, len), extent) in parts {
                    if !extent.perm.contains(*perm) {
                        return Err(1);
                    }
                    let span = (to + at - first, len);
                    self.admit(span, &extent)?;
                    new.push((span, Extent { perm: *perm, ..extent }));
                }
                self.areas.extend(new);
                Ok(to * UNIT)
            }
            Step::Replace(areas) => {
                let clash = |i: usize| areas[..i].iter().any(|(span, _)| overlap(*span, areas[i].0));
                if (0..areas.len()).any(clash) {
                    return Err(17);
                }
                for (span, extent) in areas {
                    Self::in_file(span.1, extent)?;
                    self.permits(*span, extent)?;
                }
                self.areas = areas.clone();
                Ok(0)
            }
            Step::Allow(spans) => {
                if (0..spans.len()).any(|i| spans[..i].iter().any(|span| overlap(*span, spans[i]))) {
                    return Err(22);
                }
                if spans.iter().any(|span| self.reserved.iter().any(|(other, _)| overlap(*other, *span))) {
                    return Err(98);
                }
                self.allowed = spans.clone();
                Ok(0)
            }
            Step::Reserve(span, owner) => {
                let taken = self.areas.iter().map(|(area, _)| area).chain(&self.allowed);
                if taken.into_iter().any(|other| overlap(*other, *span)) {
                    return Err(98);
                }
                self.reserved.push((*span, *owner));
                Ok(0)
            }
            Step::Unreserve(owner) => {
                let before = self.reserved.len();
                self.reserved.retain(|(_, by)| by != owner);
                Ok((before - self.reserved.len()) as u64)
            }
            Step::HugePages(on) => self.change(|naive| naive.small_pages = !on),
            Step::Pinning(on) => {
                if *on == self.pinning {
                    return Err(if *on { 22 } else { 2 });
                }
                self.change(|naive| naive.pinning = *on)
            }
        }
    }

    /// A change of alignment, which the areas may not allow.
    fn change(&mut self, change: impl Fn(&mut Naive)) -> Outcome<u64> {
        let mut next = self.clone();
        change(&mut next);
        if next.areas.iter().any(|(span, extent)| next.unaligned(*span, extent.offset)) {
            return Err(98);
        }
        *self = next;
        Ok(0)
    }

    fn holes(&self) -> Vec<IovaRange> {
        let free: Vec<u64> = (0..ALL)
            .filter(|unit| !self.reserved.iter().any(|(span, _)| overlap(*span, (*unit, 1))))
            .collect();
        let runs = free.chunk_by(|a, b| a + 1 == *b).map(|run| (run[0], run[run.len() - 1]));
        let end = |unit| if unit == ALL - 1 { u64::MAX } else { unit * UNIT + UNIT - 1 };
        runs.map(|(first, last)| IovaRange::new(Iova(first * UNIT), Iova(end(last))).unwrap()).collect()
    }
}

/// A space with an access to look through, and one that pins.
struct Real {
    space: Space,
    pinning: Access,
}

fn span_range((first, len): Span) -> IovaRange {
    range(first * UNIT, len * UNIT)
}

impl Real {
    fn new(windows: Arc<Windows>) -> Real {
        let ioas = Ioas::new(windows.clone());
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        Real { space: Space { windows, ioas, access }, pinning: Access::pinning(Arc::new(IgnoreUnmap)) }
    }

    fn apply(&self, source: &Ioas, files: &[Arc<BackingFile>; 2], step: &Step) -> Outcome<u64> {
        let ioas = &self.space.ioas;
        let area = |span: &Span, extent: &Extent| Area {
            perm: extent.perm,
            ..area(&files[extent.file], span.0 * UNIT, span.1 * UNIT, extent.offset * UNIT)
        };
        let done: Result<u64, IoasError> = match step {
            Step::Map(span, extent) => ioas.map(area(span, extent)).map(|()| 0),
            Step::Anywhere(len, extent) => {
                let at = FileExtent { file: files[extent.file].clone(), offset: extent.offset * UNIT };
                ioas.map_anywhere(at, len * UNIT, extent.perm).map(|at| at.0)
            }
            Step::Unmap(span) => ioas.unmap(span_range(*span), LONG),
            Step::Copy { span, to, perm, .. } => {
                let to = to.map_or(Place::Anywhere, |unit| Place::At(Iova(unit * UNIT)));
                ioas.copy_from(source, Iova(span.0 * UNIT), span.1 * UNIT, to, *perm).map(|at| at.0)
            }
            Step::Replace(areas) => {
                let areas = areas.iter().map(|(span, extent)| area(span, extent)).collect();
                ioas.replace_table(areas, LONG).map(|()| 0)
            }
            Step::Allow(spans) => {
                ioas.allow_iovas(&spans.iter().copied().map(span_range).collect::<Vec<_>>()).map(|()| 0)
            }
            Step::Reserve(span, owner) => ioas.reserve(span_range(*span), RangeOwner(*owner)).map(|()| 0),
            Step::Unreserve(owner) => Ok(ioas.unreserve(RangeOwner(*owner)) as u64),
            Step::HugePages(on) => ioas.set_huge_pages(*on).map(|()| 0),
            Step::Pinning(on) => {
                let done = if *on { self.pinning.attach(ioas) } else { self.pinning.detach(LONG) };
                return done.map(|()| 0).map_err(|error| error.errno());
            }
        };
        done.map_err(|error| error.errno())
    }
}

fn agree(real: &Real, naive: &Naive) -> Result<(), TestCaseError> {
    let ioas = &real.space.ioas;
    let mut areas: Vec<_> = naive.areas.iter().map(|(span, _)| span_range(*span)).collect();
    areas.sort_by_key(|range| range.first());
    prop_assert_eq!(ioas.areas().iter().map(|area| area.range).collect::<Vec<_>>(), areas);
    let mut holes = [IovaRange::FULL; ALL as usize];
    let found = ioas.iova_ranges(&mut holes).unwrap();
    prop_assert_eq!(&holes[..found.count], &naive.holes()[..]);
    prop_assert_eq!(found.alignment, if naive.alignment() == 4 { PAGE } else { 1 });

    let end = naive.areas.iter().map(|((first, len), _)| first + len).max().unwrap_or(0);
    let mut lane = real.space.access.lane();
    let burst = lane.enter();
    for unit in 0..end + 4 {
        let expected = naive.at(unit).map(|(extent, _)| [extent.file as u8, extent.offset as u8]);
        for byte in [0, UNIT - 2] {
            let at = Iova(unit * UNIT + byte);
            let seen = burst.slice(at, 2, Perm::READ).ok().map(|slice| slice.read::<[u8; 2]>(0).unwrap());
            prop_assert_eq!(seen, expected, "at {:?}", at);
        }
        let writable = naive.at(unit).is_some_and(|(extent, _)| extent.perm == RW);
        prop_assert_eq!(burst.slice(Iova(unit * UNIT), 1, Perm::WRITE).is_ok(), writable, "unit {}", unit);
    }
    Ok(())
}

/// Every unit of a file says which file and which unit it is.
fn files() -> &'static [Arc<BackingFile>; 2] {
    static FILES: OnceLock<[Arc<BackingFile>; 2]> = OnceLock::new();
    FILES.get_or_init(|| {
        [0, 1].map(|number: u8| {
            let file = memory(FILE_UNITS / 4);
            let bytes: Vec<u8> =
                (0..FILE_UNITS).flat_map(|unit| [number, unit as u8].repeat(UNIT as usize / 2)).collect();
            assert_eq!(rustix::io::pwrite(file.as_fd(), &bytes, 0), Ok(bytes.len()));
            file
        })
    })
}

fn cases() -> u32 {
    std::env::var("MDEVD_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn spaces_agree_with_naive_units(steps in prop::collection::vec(step(), 1..60)) {
        let windows = Windows::new().unwrap();
        let real = [Real::new(windows.clone()), Real::new(windows.clone())];
        let mut naive = [Naive::default(), Naive::default()];
        for (which, step) in steps {
            let from = match step { Step::Copy { from, .. } => from, _ => which };
            let other = naive[1 - which].clone();
            let expected = naive[which].apply(&other, from == which, &step);
            let done = real[which].apply(&real[from].space.ioas, files(), &step);
            prop_assert_eq!(done, expected, "space {}: {:?}", which, step);
            agree(&real[which], &naive[which])?;
        }
        for real in &real {
            real.space.ioas.unmap_all(LONG).unwrap();
        }
        prop_assert_eq!(windows.live(), 0);
    }
}
