use std::mem::offset_of;

use proptest::prelude::*;

use super::net::{NetConfig, NetHeader};
use super::split::{self, Desc, UsedElem};

#[test]
fn layouts_are_those_of_the_specification() {
    assert_eq!((size_of::<Desc>(), size_of::<UsedElem>()), (16, 8));
    assert_eq!((offset_of!(Desc, len), offset_of!(Desc, flags), offset_of!(Desc, next)), (8, 12, 14));
    assert_eq!((NetHeader::LEN, offset_of!(NetHeader, num_buffers)), (12, NetHeader::NUM_BUFFERS_OFFSET));
    assert_eq!((offset_of!(NetHeader, csum_start), offset_of!(NetHeader, csum_offset)), (6, 8));
    assert_eq!(NetConfig::LEN, 24);
    assert_eq!((offset_of!(NetConfig, status), offset_of!(NetConfig, max_virtqueue_pairs)), (6, 8));
    assert_eq!((offset_of!(NetConfig, mtu), offset_of!(NetConfig, speed)), (10, 12));
}

#[test]
fn ring_parts_have_the_lengths_of_the_specification() {
    assert_eq!(split::desc_len(256), 4096);
    assert_eq!((split::avail_len(256, false), split::avail_len(256, true)), (516, 518));
    assert_eq!((split::used_len(256, false), split::used_len(256, true)), (2052, 2054));
    assert_eq!((split::avail_entry(3), split::used_entry(3)), (10, 28));
    assert_eq!(split::desc_len(split::MAX_SIZE), 512 * 1024);
    let sizes: Vec<u32> = (0..=70_000).filter(|size| split::is_size(*size)).collect();
    assert_eq!(sizes, (0..=15).map(|bit| 1 << bit).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn needs_event_iff_the_step_that_passes_the_event_is_among_those_taken(
        old in any::<u16>(), steps in 0u16..600, ahead in -700i32..700,
    ) {
        let event = old.wrapping_add(ahead as u16);
        let new = old.wrapping_add(steps);
        let passed = (0..steps).any(|step| old.wrapping_add(step) == event);
        prop_assert_eq!(split::needs_event(event, new, old), passed);
    }
}
