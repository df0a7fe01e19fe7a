//! How long the parts of a ring are, and where it stands.

use super::{base_of, lengths, packed_lengths, state_of};
use crate::ring::QueueState;

#[test]
fn parts_are_as_long_as_virtio_says() {
    assert_eq!(lengths(256, true), [4096, 518, 2054]);
    assert_eq!(lengths(256, false), [4096, 516, 2052]);
    assert_eq!(lengths(1, true), [16, 8, 14]);
    assert_eq!(lengths(32768, true), [524288, 65542, 262150]);
}

#[test]
fn packed_parts_are_as_long_as_virtio_says() {
    assert_eq!(packed_lengths(256), [4096, 4, 4]);
    assert_eq!(packed_lengths(100), [1600, 4, 4]);
    assert_eq!(packed_lengths(32768), [524288, 4, 4]);
}

#[test]
fn base_of_a_split_ring_is_its_available_index() {
    assert_eq!(state_of(None, false), QueueState::split(0));
    assert_eq!(state_of(Some(0xfffe), false), QueueState::split(0xfffe));
    assert_eq!(base_of(QueueState::split(0xfffe)), 0xfffe);
}

#[test]
fn base_of_a_packed_ring_has_both_positions() {
    let state = |next_avail, used| QueueState { next_avail, next_used: Some(used) };
    assert_eq!(base_of(state_of(None, true)), 0x8000_8000, "slot 0 of the first lap");
    assert_eq!(state_of(Some(0x8003_0002), true), state(0x0002, 0x8003));
    assert_eq!(base_of(state(0x0002, 0x8003)), 0x8003_0002);
    assert_eq!(state_of(Some(0x8000), true), state(0x8000, 0x8000), "as virtio-user begins");
}
