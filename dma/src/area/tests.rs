use proptest::prelude::*;

use crate::tests::memory;
use crate::{Area, FileExtent, Iova, IovaRange, Perm};

fn area(file: &std::sync::Arc<crate::BackingFile>, iova: u64, offset: u64, len: u64, perm: Perm) -> Area {
    let extent = FileExtent { file: file.clone(), offset };
    Area { range: IovaRange::with_len(Iova(iova), len).unwrap(), extent: extent.into(), perm, log: None }
}

#[test]
fn an_address_translates_to_its_byte_and_none_outside() {
    let area = area(&memory(1 << 20), 0x1001, 0x33, 0x10, Perm::READ);
    assert_eq!(area.extent_at(Iova(0x1001)).unwrap().start(), 0x33);
    assert_eq!(area.extent_at(Iova(0x1010)).unwrap().start(), 0x42);
    assert!(area.extent_at(Iova(0x1011)).is_none());
    assert!(area.extent_at(Iova(0x1000)).is_none());
}

#[test]
fn an_offset_that_wraps_translates_to_nothing() {
    let area = area(&memory(1 << 20), 0, u64::MAX - 1, 0x10, Perm::READ);
    assert_eq!(area.extent_at(Iova(1)).unwrap().start(), u64::MAX);
    assert!(area.extent_at(Iova(2)).is_none());
}

proptest! {
    /// Against the naive model: translate every byte through both.
    #[test]
    fn areas_translate_alike_exactly_when_every_byte_does(
        (iova, offset, len) in (0..8_u64, 0..8_u64, 1..12_u64),
        (iova2, offset2, len2) in (0..8_u64, 0..8_u64, 1..12_u64),
        (first, span) in (0..16_u64, 1..8_u64),
        same_file: bool,
        same_perm: bool,
    ) {
        let files = [memory(1 << 20), memory(1 << 20)];
        let one = area(&files[0], iova, offset, len, Perm::READ);
        let perm = if same_perm { Perm::READ } else { Perm::READ | Perm::WRITE };
        let two = area(&files[usize::from(!same_file)], iova2, offset2, len2, perm);
        let byte = |area: &Area, at| area.extent_at(Iova(at)).map(|e| (e.file().map(|e| e.file.id()), e.start(), area.perm));
        let alike = (first..first + span).all(|at| byte(&one, at).is_some() && byte(&one, at) == byte(&two, at));
        let range = IovaRange::with_len(Iova(first), span).unwrap();
        prop_assert_eq!(one.translates_like(&two, range), alike);
        prop_assert_eq!(two.translates_like(&one, range), alike);
    }
}
