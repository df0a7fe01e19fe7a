use super::*;

fn body(words: [u64; 3], perm: u8, kind: u8) -> Vec<u8> {
    let mut body = words.as_bytes().to_vec();
    body.extend([perm, kind, 0, 0, 0, 0, 0, 0]);
    body
}

fn decoded(words: [u64; 3], perm: u8, kind: u8) -> Result<Iotlb, &'static str> {
    Iotlb::decode(&body(words, perm, kind))
}

/// `struct vhost_iotlb_msg` of `linux/vhost_types.h`: three words, then two bytes.
#[test]
fn each_kind_has_the_layout_of_the_kernel_header() {
    let rw = IotlbPerm::READ | IotlbPerm::WRITE;
    let cases = [
        (Iotlb::Miss { iova: 0x1000, perm: IotlbPerm::WRITE }, body([0x1000, 0, 0], 2, 1)),
        (
            Iotlb::Update { iova: 0x1000, size: 0x2000, user_addr: 0x7f00_0000_0000, perm: rw },
            body([0x1000, 0x2000, 0x7f00_0000_0000], 3, 2),
        ),
        (Iotlb::Invalidate { iova: 0x1000, size: 0x2000 }, body([0x1000, 0x2000, 0], 0, 3)),
        (Iotlb::AccessFail { iova: 0x1000, size: 1, perm: IotlbPerm::READ }, body([0x1000, 1, 0], 1, 4)),
    ];
    for (message, bytes) in cases {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        assert_eq!(encoded, bytes);
        assert_eq!(Iotlb::decode(&bytes), Ok(message));
        assert_eq!(Iotlb::decode(bytes.get(..26).unwrap()), Ok(message), "without the padding");
    }
}

#[test]
fn kinds_and_permissions_that_nobody_knows_are_rejected() {
    for kind in [0, 5, 6, 7, 255] {
        assert!(decoded([0, 1, 0], 3, kind).is_err(), "{kind}");
    }
    for perm in [4, 7, 128, 255] {
        for kind in [MISS, UPDATE, ACCESS_FAIL] {
            assert!(decoded([0, 1, 0], perm, kind).is_err(), "{perm} {kind}");
        }
        assert!(decoded([0, 1, 0], perm, INVALIDATE).is_ok(), "an invalidation has no permission");
    }
}

#[test]
fn update_that_is_empty_wraps_or_permits_nothing_is_rejected() {
    let max = u64::MAX;
    for words in [[0, 0, 0], [2, max, 0], [0, max, 2], [max, 2, 0], [0, 2, max]] {
        assert!(decoded(words, 3, UPDATE).is_err(), "{words:x?}");
    }
    for words in [[1, max, 1], [max, 1, max], [0, max, 0]] {
        assert!(decoded(words, 3, UPDATE).is_ok(), "{words:x?}");
    }
    assert!(decoded([0, 1, 0], 0, UPDATE).is_err());
}

#[test]
fn invalidation_that_is_empty_or_wraps_concerns_all_that_follows() {
    let max = u64::MAX;
    assert_eq!(Iotlb::concerned(0, max), (0, max - 1));
    assert_eq!(Iotlb::concerned(0, 0), (0, max));
    assert_eq!(Iotlb::concerned(0x1000, 0), (0x1000, max));
    assert_eq!(Iotlb::concerned(0x1000, 0x1000), (0x1000, 0x1fff));
    assert_eq!(Iotlb::concerned(max, 1), (max, max));
    assert_eq!(Iotlb::concerned(max, 2), (max, max));
}
