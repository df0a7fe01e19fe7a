//! How long the parts of a ring are.

use super::lengths;

#[test]
fn parts_are_as_long_as_virtio_says() {
    assert_eq!(lengths(256, true), [4096, 518, 2054]);
    assert_eq!(lengths(256, false), [4096, 516, 2052]);
    assert_eq!(lengths(1, true), [16, 8, 14]);
    assert_eq!(lengths(32768, true), [524288, 65542, 262150]);
}
