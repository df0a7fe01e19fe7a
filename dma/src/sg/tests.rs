use proptest::prelude::*;

use super::SgList;
use crate::tests::segment;
use crate::{GuestSlice, Iova};

/// Bytes of guest memory that lists are made of.
const ROOM: usize = 600;

/// (start, length) of each piece; they overlap and repeat as they like.
type Pieces = Vec<(usize, usize)>;

fn pieces() -> impl Strategy<Value = Pieces> {
    prop::collection::vec((0..ROOM, prop_oneof![0..20_usize, 0..200_usize]), 0..14)
        .prop_map(|all| all.into_iter().map(|(start, len)| (start, len.min(ROOM - start))).collect())
}

fn pattern() -> Vec<u8> {
    (0..ROOM).map(|n| (n % 251) as u8).collect()
}

fn list<'a>(whole: &GuestSlice<'a>, pieces: &Pieces) -> SgList<'a> {
    let mut list = SgList::new();
    list.extend(pieces.iter().map(|(start, len)| whole.subslice(*start, *len).unwrap()));
    list
}

fn bytes(whole: &GuestSlice<'_>) -> Vec<u8> {
    let mut all = vec![0; whole.len()];
    whole.copy_to(&mut all);
    all
}

/// Where each byte of a list is, one number per byte.
fn places(pieces: &Pieces) -> Vec<usize> {
    pieces.iter().flat_map(|(start, len)| *start..start + len).collect()
}

/// The lengths in which a copy of `len` bytes proceeds: to the next end of a piece on either side.
fn steps(source: &Pieces, offset: usize, target: &Pieces, target_offset: usize, len: usize) -> Vec<usize> {
    let ends = |pieces: &Pieces, skip: usize| -> Vec<usize> {
        let mut at = 0;
        let all = pieces.iter().map(|(_, len)| {
            at += len;
            at
        });
        all.filter(|end| *end > skip).map(|end| end - skip).collect()
    };
    let (a, b) = (ends(source, offset), ends(target, target_offset));
    let total = len.min(a.last().copied().unwrap_or(0)).min(b.last().copied().unwrap_or(0));
    let mut all: Vec<usize> = a.into_iter().chain(b).filter(|end| *end < total).chain([0, total]).collect();
    all.sort_unstable();
    all.dedup();
    all.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

proptest! {
    #[test]
    fn copies_out_agree_with_a_list_of_places(pieces in pieces(), offset in 0..900_u64, len in 0..900_usize) {
        let segment = segment(4096);
        let whole = segment.slice(Iova(0), ROOM).unwrap();
        whole.copy_from(&pattern());
        let list = list(&whole, &pieces);
        let model: Vec<u8> = places(&pieces).into_iter().map(|at| pattern()[at]).collect();
        prop_assert_eq!(list.len_bytes(), model.len() as u64);
        prop_assert_eq!(list.is_empty(), model.is_empty());
        let mut out = vec![0xaa; len];
        let n = list.copy_to(offset, &mut out);
        let expected: Vec<u8> = model.into_iter().skip(offset as usize).take(len).collect();
        prop_assert_eq!(n, expected.len());
        prop_assert_eq!(&out[..n], &expected[..]);
        prop_assert!(out[n..].iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn copies_in_agree_with_a_list_of_places(pieces in pieces(), offset in 0..900_u64, len in 0..900_usize) {
        let segment = segment(4096);
        let whole = segment.slice(Iova(0), ROOM).unwrap();
        whole.copy_from(&pattern());
        let data: Vec<u8> = (0..len).map(|n| (n % 13) as u8 | 0x80).collect();
        let n = list(&whole, &pieces).copy_from(offset, &data);
        let mut model = pattern();
        let targets: Vec<usize> = places(&pieces).into_iter().skip(offset as usize).take(len).collect();
        prop_assert_eq!(n, targets.len());
        for (at, byte) in targets.into_iter().zip(data) {
            model[at] = byte;
        }
        prop_assert_eq!(bytes(&whole), model);
    }

    /// Source and target lie in the same memory, overlap themselves and each other.
    #[test]
    fn copies_between_aliasing_lists_agree_with_moves_piece_by_piece(
        source in pieces(), target in pieces(),
        offset in 0..400_usize, target_offset in 0..400_usize, len in 0..900_usize,
    ) {
        let segment = segment(4096);
        let whole = segment.slice(Iova(0), ROOM).unwrap();
        whole.copy_from(&pattern());
        let copied = list(&whole, &source).copy_to_sg(
            offset as u64, &list(&whole, &target), target_offset as u64, len as u64,
        );

        let mut model = pattern();
        let (from, to) = (places(&source), places(&target));
        let mut done = 0;
        for step in steps(&source, offset, &target, target_offset, len) {
            let moved: Vec<u8> = from[offset + done..][..step].iter().map(|at| model[*at]).collect();
            for (at, byte) in to[target_offset + done..][..step].iter().zip(moved) {
                model[*at] = byte;
            }
            done += step;
        }
        prop_assert_eq!(copied, done as u64);
        prop_assert_eq!(bytes(&whole), model);
    }
}

#[test]
fn a_cleared_list_is_empty_and_usable_again() {
    let segment = segment(4096);
    let mut list = SgList::new();
    list.push(segment.slice(Iova(0), 10).unwrap());
    list.clear();
    assert_eq!((list.len_bytes(), list.is_empty(), list.iter().count()), (0, true, 0));
    list.push(segment.slice(Iova(0), 3).unwrap());
    list.push(segment.slice(Iova(5), 0).unwrap());
    assert_eq!((list.len_bytes(), list.iter().count()), (3, 1));
}

#[test]
fn offsets_beyond_the_end_copy_nothing() {
    let segment = segment(4096);
    let mut list = SgList::new();
    list.push(segment.slice(Iova(0), 10).unwrap());
    assert_eq!(list.copy_to(u64::MAX, &mut [0; 4]), 0);
    assert_eq!(list.copy_from(10, &[1]), 0);
    assert_eq!(list.copy_to_sg(0, &list, u64::MAX, u64::MAX), 0);
    assert_eq!(list.copy_to_sg(0, &list, 0, u64::MAX), 10);
}
