//! UNSAFETY: one test makes a slice of memory that it holds as an address.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::GuestSlice;
use crate::Iova;
use crate::tests::segment;

const LEN: usize = 4096;

/// A descriptor's shape: several fields, 16 bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Shape {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn bytes(slice: &GuestSlice<'_>) -> Vec<u8> {
    let mut all = vec![0; slice.len()];
    assert_eq!(slice.copy_to(&mut all), all.len());
    all
}

#[test]
fn every_length_and_alignment_copies_exactly_its_bytes() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 512).unwrap();
    for len in 0..150 {
        for start in 0..17 {
            whole.fill(0xee);
            let part = whole.subslice(start, len).unwrap();
            let data = pattern(len as u8, len);
            assert_eq!(part.copy_from(&data), len);
            let mut expected = vec![0xee; 512];
            expected[start..start + len].copy_from_slice(&data);
            assert_eq!(bytes(&whole), expected);
            let mut out = vec![0xdd; len + 2];
            assert_eq!(part.copy_to(&mut out), len);
            assert_eq!((&out[..len], &out[len..]), (&data[..], &[0xdd, 0xdd][..]));
        }
    }
}

#[test]
fn a_copy_moves_what_both_ends_have() {
    let segment = segment(LEN as u64);
    let (short, long) = (segment.slice(Iova(0), 4).unwrap(), segment.slice(Iova(100), 40).unwrap());
    assert_eq!(short.copy_from(b"abcdefgh"), 4);
    assert_eq!(long.copy_from(b"abcdefgh"), 8);
    assert_eq!(short.copy_to_slice(&long), 4);
    assert_eq!(long.copy_to_slice(&short), 4);
    assert_eq!(short.copy_to(&mut []), 0);
}

#[test]
fn values_read_back_at_every_alignment_and_not_beyond_the_end() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 64).unwrap();
    let shape = Shape { address: 0x0123_4567_89ab_cdef, len: 0xfeed_beef, flags: 0x1234, next: 0x5678 };
    for offset in 0..=64 - 16 {
        whole.fill(0);
        assert_eq!(whole.write(offset, shape), Some(()));
        assert_eq!(whole.read::<Shape>(offset), Some(shape));
        assert_eq!(whole.read::<[u8; 16]>(offset).unwrap(), shape.as_bytes());
        assert_eq!(bytes(&whole)[offset..offset + 16], *shape.as_bytes());
        assert_eq!(bytes(&whole).iter().map(|b| usize::from(*b != 0)).sum::<usize>(), 16);
        assert_eq!(whole.write(offset, [1_u8, 2, 3]), Some(()));
        assert_eq!(whole.read::<[u8; 3]>(offset), Some([1, 2, 3]));
    }
    assert_eq!(whole.read::<Shape>(64 - 15), None);
    assert_eq!(whole.write(64 - 15, shape), None);
    assert_eq!(whole.read::<u8>(64), None);
    assert_eq!(whole.read::<u64>(usize::MAX), None);
    assert_eq!(whole.read::<()>(64), Some(()));
}

#[test]
fn atomics_refuse_what_is_misaligned_or_out_of_bounds() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 16).unwrap();
    for offset in 0..20 {
        let fits = |size: usize| offset % size == 0 && offset + size <= 16;
        assert_eq!(whole.store_u16(offset, 0x1122, Ordering::Release).is_some(), fits(2));
        assert_eq!(whole.load_u16(offset, Ordering::Acquire), fits(2).then_some(0x1122));
        assert_eq!(whole.store_u32(offset, 0x1122_3344, Ordering::Release).is_some(), fits(4));
        assert_eq!(whole.load_u32(offset, Ordering::Acquire), fits(4).then_some(0x1122_3344));
        assert_eq!(whole.store_u64(offset, 1 << 63, Ordering::Release).is_some(), fits(8));
        assert_eq!(whole.load_u64(offset, Ordering::Acquire), fits(8).then_some(1 << 63));
    }
    // Aligned is meant in memory, not within the slice.
    let odd = whole.subslice(1, 15).unwrap();
    assert_eq!(odd.load_u16(0, Ordering::Relaxed), None);
    assert!(odd.load_u16(1, Ordering::Relaxed).is_some());
    assert_eq!(whole.load_u16(usize::MAX, Ordering::Relaxed), None);
}

#[test]
fn pairs_are_the_words_of_the_slice_without_a_rest_and_refuse_what_is_misaligned() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 40).unwrap();
    let pairs = whole.pairs().unwrap();
    assert_eq!(pairs.len(), 2);
    pairs[1][1].store(7, Ordering::Release);
    assert_eq!(whole.load_u64(24, Ordering::Acquire), Some(7));
    whole.store_u64(16, 9, Ordering::Release).unwrap();
    assert_eq!(pairs[1][0].load(Ordering::Acquire), 9);
    assert!(whole.subslice(4, 32).unwrap().pairs().is_none());
    assert_eq!(whole.subslice(8, 32).unwrap().pairs().unwrap()[1][0].load(Ordering::Acquire), 7);
    assert!(whole.subslice(8, 8).unwrap().pairs().unwrap().is_empty());
}

#[test]
fn hints_change_nothing_wherever_they_point() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 256).unwrap();
    whole.copy_from(&pattern(3, 256));
    for offset in [0, 255, 256, 1 << 40, usize::MAX] {
        whole.prefetch_read(offset);
        whole.prefetch_write(offset);
    }
    assert_eq!(bytes(&whole), pattern(3, 256));
}

#[test]
fn a_slice_taken_apart_and_put_together_is_the_same_bytes() {
    let segment = segment(LEN as u64);
    let whole = segment.slice(Iova(0), 8).unwrap();
    whole.copy_from(b"original");
    let (address, len) = whole.as_io_vec_parts();
    // SAFETY: the segment keeps the memory mapped to the end of this function.
    let again = unsafe { GuestSlice::from_raw_parts(address, len) };
    assert_eq!(bytes(&again), b"original");
}

proptest! {
    #[test]
    fn subslices_agree_with_slices_of_bytes(
        outer in (0..LEN + 2, 0..LEN + 2),
        inner in (0..LEN + 2, prop_oneof![0..LEN + 2, Just(usize::MAX)]),
    ) {
        let segment = segment(LEN as u64);
        let whole = segment.slice(Iova(0), LEN).unwrap();
        let data = pattern(1, LEN);
        whole.copy_from(&data);
        let model = |bytes: &[u8], (start, len): (usize, usize)| {
            Some(bytes.get(start..start.checked_add(len)?)?.to_vec())
        };
        let part = whole.subslice(outer.0, outer.1);
        prop_assert_eq!(part.map(|part| bytes(&part)), model(&data, outer));
        if let (Some(part), Some(data)) = (part, model(&data, outer)) {
            prop_assert_eq!(part.subslice(inner.0, inner.1).map(|part| bytes(&part)), model(&data, inner));
        }
    }

    #[test]
    fn overlapping_copies_agree_with_copy_within(
        from in 0..300_usize, to in 0..300_usize,
        len in prop_oneof![0..70_usize, 0..400_usize],
        fewer in 0..3_usize,
    ) {
        let segment = segment(LEN as u64);
        let whole = segment.slice(Iova(0), 700).unwrap();
        let mut model = pattern(9, 700);
        whole.copy_from(&model);
        let source = whole.subslice(from, len).unwrap();
        let target = whole.subslice(to, len.saturating_sub(fewer)).unwrap();
        let n = source.copy_to_slice(&target);
        prop_assert_eq!(n, len.saturating_sub(fewer));
        model.copy_within(from..from + n, to);
        prop_assert_eq!(bytes(&whole), model);
    }
}
