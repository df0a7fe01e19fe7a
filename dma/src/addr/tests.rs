use proptest::prelude::*;

use super::{Iova, IovaRange, RangeError};

fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova(first), Iova(last)).unwrap()
}

/// Numbers near the places where sums wrap.
fn edgy() -> impl Strategy<Value = u64> {
    prop_oneof![0..16_u64, (u64::MAX - 16)..=u64::MAX, any::<u64>()]
}

#[test]
fn a_range_of_no_bytes_is_refused() {
    assert_eq!(IovaRange::with_len(Iova(7), 0), Err(RangeError::Empty { first: Iova(7) }));
    assert_eq!(RangeError::Empty { first: Iova(7) }.errno(), libc::EINVAL);
}

#[test]
fn a_range_that_wraps_is_refused_and_one_that_ends_with_the_last_byte_is_not() {
    let first = Iova(u64::MAX - 9);
    assert_eq!(IovaRange::with_len(first, 10).unwrap().last(), Iova(u64::MAX));
    let wraps = IovaRange::with_len(first, 11).unwrap_err();
    assert_eq!(wraps, RangeError::Overflow { first, len: 11 });
    assert_eq!(wraps.errno(), libc::EOVERFLOW);
}

#[test]
fn an_inverted_range_is_refused() {
    let inverted = IovaRange::new(Iova(5), Iova(4)).unwrap_err();
    assert_eq!(inverted, RangeError::Inverted { first: Iova(5), last: Iova(4) });
    assert_eq!(inverted.errno(), libc::EINVAL);
}

#[test]
fn the_full_range_holds_every_byte_and_knows_its_size() {
    assert_eq!(IovaRange::FULL.size(), 1 << 64);
    assert!(IovaRange::FULL.contains(Iova(0)) && IovaRange::FULL.contains(Iova(u64::MAX)));
}

#[test]
fn addresses_print_as_hex() {
    assert_eq!(format!("{} {:?} {}", Iova(0x1f), Iova(0x20), range(1, 0x10)), "0x1f Iova(0x20) 0x1..=0x10");
}

proptest! {
    #[test]
    fn ranges_agree_with_wide_arithmetic(first in edgy(), len in edgy(), probe in edgy()) {
        let last = u128::from(first) + u128::from(len);
        match IovaRange::with_len(Iova(first), len) {
            Ok(range) => {
                prop_assert_eq!(u128::from(range.last().0), last - 1);
                prop_assert_eq!(range.size(), u128::from(len));
                let inside = probe >= first && u128::from(probe) < last;
                prop_assert_eq!(range.contains(Iova(probe)), inside);
                prop_assert_eq!(range.offset_of(Iova(probe)), inside.then(|| probe - first));
            }
            Err(RangeError::Empty { .. }) => prop_assert_eq!(len, 0),
            Err(_) => prop_assert!(last > 1 << 64),
        }
    }

    #[test]
    fn intersection_holds_exactly_the_common_bytes(a in 0..24_u64, b in 0..24_u64, c in 0..24_u64, d in 0..24_u64) {
        let (one, two) = (range(a.min(b), a.max(b)), range(c.min(d), c.max(d)));
        let common = one.intersection(two);
        for at in (0..24).map(Iova) {
            let both = one.contains(at) && two.contains(at);
            prop_assert_eq!(common.is_some_and(|common| common.contains(at)), both);
        }
        prop_assert_eq!(one.contains_range(two), common == Some(two));
    }
}
