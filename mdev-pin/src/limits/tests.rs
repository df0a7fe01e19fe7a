use proptest::prelude::*;

use super::*;

fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova(first), Iova(last)).unwrap()
}

#[derive(Clone)]
struct Taken(IovaRange);

impl Ranged for Taken {
    fn range(&self) -> IovaRange {
        self.0
    }
}

fn nothing() -> IovaMap<Taken> {
    IovaMap::new()
}

fn fit(limits: &Limits, areas: &IovaMap<Taken>, offset: u64, length: u64) -> Option<u64> {
    limits.first_fit(areas, Need::new(offset, length, 1).unwrap()).map(|range| range.first().0)
}

#[test]
fn allocation_starts_behind_the_first_page_and_keeps_the_alignment_of_length_and_offset() {
    let limits = Limits::default();
    assert_eq!(fit(&limits, &nothing(), 0, 1), Some(PAGE));
    assert_eq!(fit(&limits, &nothing(), 0, 3 * PAGE), Some(4 * PAGE), "the length, rounded up");
    assert_eq!(fit(&limits, &nothing(), 2 * PAGE, 8 * PAGE), Some(2 * PAGE), "the lowest bit of the offset");
    assert_eq!(fit(&limits, &nothing(), 0, 1 << 30), Some(2 << 20), "at most a huge page");
    assert_eq!(fit(&limits, &nothing(), 0x5234, PAGE), Some(0x1234), "the offset in the page");
}

#[test]
fn allocation_never_touches_the_last_page() {
    let limits = Limits { allowed: vec![range(u64::MAX - 4 * PAGE + 1, u64::MAX)], ..Limits::default() };
    assert_eq!(fit(&limits, &nothing(), PAGE, 3 * PAGE), Some(u64::MAX - 4 * PAGE + 1));
    assert_eq!(fit(&limits, &nothing(), PAGE, 3 * PAGE + 1), None);
    let limits = Limits { allowed: vec![range(u64::MAX - PAGE + 1, u64::MAX)], ..Limits::default() };
    assert_eq!(fit(&limits, &nothing(), 0, 16), None);
}

#[test]
fn allowed_ranges_that_touch_serve_as_one() {
    let mut limits = Limits::default();
    limits.allow(&[range(0x4000, 0x4fff), range(0x2000, 0x3fff)]).unwrap();
    assert_eq!(fit(&limits, &nothing(), PAGE, 3 * PAGE), Some(0x2000));
    assert_eq!(fit(&limits, &nothing(), PAGE, 4 * PAGE), None);
}

#[test]
fn holes_of_overlapping_reserved_ranges_do_not_overlap() {
    let mut limits = Limits::default();
    assert_eq!(limits.holes().collect::<Vec<_>>(), [IovaRange::FULL]);
    for (first, last) in [(0x4000, 0x4fff), (0x1000, 0x8fff), (0x9000, 0x9fff), (0xc000, u64::MAX)] {
        limits.reserve(range(first, last), RangeOwner(1));
    }
    assert_eq!(limits.holes().collect::<Vec<_>>(), [range(0, 0xfff), range(0xa000, 0xbfff)]);
    limits.reserve(range(0, 0), RangeOwner(2));
    assert_eq!(limits.holes().next(), Some(range(1, 0xfff)));
    assert_eq!((limits.unreserve(RangeOwner(1)), limits.unreserve(RangeOwner(1))), (4, 0));
    assert_eq!(limits.holes().collect::<Vec<_>>(), [range(1, u64::MAX)]);
}

/// Units of a quarter page, so that ranges start within pages.
const UNIT: u64 = PAGE / 4;

fn units() -> impl Strategy<Value = Vec<IovaRange>> {
    let one = (0..64u64, 1..9u64);
    prop::collection::vec(one.prop_map(|(first, len)| range(first * UNIT, (first + len) * UNIT - 1)), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn first_fit_agrees_with_trying_every_address(
        (allowed, reserved, areas) in (units(), units(), units()), offset in 0..32u64, length in 1..24u64,
    ) {
        let (offset, length) = (offset * UNIT, length * UNIT);
        let mut limits = Limits::default();
        // Half of the lists overlap themselves: those change nothing.
        let _ = limits.allow(&allowed);
        let legal = limits.allowed.clone();
        for range in &reserved {
            limits.reserve(*range, RangeOwner(0));
        }
        let areas: IovaMap<Taken> =
            areas.iter().fold(IovaMap::new(), |map, range| map.insert(Taken(*range)).unwrap_or(map));
        let alignment = length.next_power_of_two().min(if offset == 0 { HUGE_PAGE } else { 1 << offset.trailing_zeros() });
        let within = |at: u64, list: &[IovaRange]| list.iter().any(|range| range.contains(Iova(at)));
        // Every byte of a unit shares its fate.
        let usable = |at: u64| at >= PAGE
            && (legal.is_empty() || within(at, &legal))
            && !within(at, &reserved)
            && areas.lookup(Iova(at)).is_none();
        let naive = (0..256u64).map(|unit| unit * UNIT).find(|at| {
            at % alignment == 0
                && at % PAGE == offset % PAGE
                && (0..length / UNIT).all(|unit| usable(at + unit * UNIT))
        });
        prop_assert_eq!(fit(&limits, &areas, offset, length), naive);
    }
}
