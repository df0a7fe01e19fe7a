use std::mem::offset_of;

use proptest::prelude::*;

use super::blk::BlkConfig;
use super::net::{NetConfig, NetHeader};
use super::packed::{self, EventSuppress, Position};
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
fn block_layouts_are_those_of_the_specification() {
    assert_eq!((offset_of!(BlkConfig, blk_size), offset_of!(BlkConfig, opt_io_size)), (20, 28));
    assert_eq!((BlkConfig::WRITEBACK_OFFSET, offset_of!(BlkConfig, num_queues)), (32, 34));
    assert_eq!(
        (offset_of!(BlkConfig, max_discard_sectors), offset_of!(BlkConfig, max_write_zeroes_sectors)),
        (36, 48)
    );
    assert_eq!(offset_of!(BlkConfig, write_zeroes_may_unmap), 56);
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

#[test]
fn packed_layouts_are_those_of_the_specification() {
    assert_eq!((packed::DESC_LEN, packed::EVENT_LEN), (16, 4));
    assert_eq!(offset_of!(packed::Desc, len), packed::LEN_OFFSET);
    assert_eq!(offset_of!(packed::Desc, id), packed::ID_OFFSET);
    assert_eq!(offset_of!(packed::Desc, flags), packed::FLAGS_OFFSET);
    assert_eq!(offset_of!(EventSuppress, desc), packed::EVENT_DESC_OFFSET);
    assert_eq!(offset_of!(EventSuppress, flags), packed::EVENT_FLAGS_OFFSET);
    assert_eq!((packed::VIRTQ_DESC_F_AVAIL, packed::VIRTQ_DESC_F_USED), (0x80, 0x8000));
    assert!(packed::is_size(1) && packed::is_size(100) && packed::is_size(32768));
    assert!(!packed::is_size(0) && !packed::is_size(32769));
    assert_eq!(
        (Position::START.word(), Position::from_word(0x8003)),
        (0x8000, Position { slot: 3, wrap: true })
    );
}

#[test]
fn packed_descriptors_are_available_or_used_in_one_lap_only() {
    for wrap in [false, true] {
        let (available, used) = (packed::available_flags(wrap), packed::used_flags(wrap));
        assert!(packed::is_available(available | 7, wrap) && !packed::is_available(available, !wrap));
        assert!(packed::is_used(used | 7, wrap) && !packed::is_used(used, !wrap));
        assert!(!packed::is_used(available, wrap) && !packed::is_used(available, !wrap));
        assert!(!packed::is_available(used, wrap) && !packed::is_available(used, !wrap));
    }
}

proptest! {
    #[test]
    fn packed_positions_walk_as_steps_do(
        size in 1u16..=300, slot in 0u16..300, wrap in any::<bool>(), steps in 0u16..=300,
    ) {
        let from = Position { slot: slot % size, wrap };
        let steps = steps % (size + 1);
        let mut to = from;
        for _ in 0..steps {
            to.slot += 1;
            if to.slot == size {
                to = Position { slot: 0, wrap: !to.wrap };
            }
        }
        prop_assert_eq!(from.advance(steps, size), to);
        prop_assert_eq!(to.retreat(steps, size), from);
        prop_assert_eq!(from.distance(to, size), Some(steps));
        prop_assert_eq!(Position::from_word(from.word()), from);
    }

    #[test]
    fn packed_needs_event_iff_the_event_is_among_the_slots_passed(
        size in prop_oneof![1u16..=64, Just(32768u16)], slot in any::<u16>(), wrap in any::<bool>(),
        steps in 0u16..=64, ahead in 0u16..=64,
    ) {
        let from = Position { slot: slot % size, wrap };
        let steps = steps % (size + 1);
        let event = from.advance(ahead % size, size);
        let passed = (0..steps).any(|step| from.advance(step, size) == event);
        prop_assert_eq!(packed::needs_event(event, from.advance(steps, size), steps, size), passed);
    }

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
