//! Headers against what the specification says in words.

use proptest::prelude::*;

use super::*;

const ALL: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_HOST_ECN
    | VIRTIO_NET_F_HOST_USO;

/// A TCP segment of 3000 bytes over IPv4, to be cut.
fn segment() -> NetHeader {
    NetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54u16.to_le(),
        gso_size: 1448u16.to_le(),
        csum_start: 34u16.to_le(),
        csum_offset: 16u16.to_le(),
        num_buffers: 0,
    }
}

#[test]
fn agreed_offloads_pass_unchanged() {
    let offloads = Offloads::from_guest(ALL);
    assert_eq!(offloads.check(segment(), 3000), Some(segment()));
    for gso_type in [4, 0x81, 0x84, 5] {
        let header = NetHeader { gso_type, ..segment() };
        assert_eq!(offloads.check(header, 3000), Some(header), "type {gso_type:#x}");
    }
    let partial = NetHeader { gso_type: 0, hdr_len: 0, gso_size: 0, ..segment() };
    assert_eq!(offloads.check(partial, 60), Some(partial));
}

#[test]
fn offloads_that_were_not_agreed_on_are_refused() {
    for (missing, gso_type) in [
        (VIRTIO_NET_F_CSUM, 1),
        (VIRTIO_NET_F_HOST_TSO4, 1),
        (VIRTIO_NET_F_HOST_TSO6, 4),
        (VIRTIO_NET_F_HOST_ECN, 0x81),
        (VIRTIO_NET_F_HOST_USO, 5),
    ] {
        let header = NetHeader { gso_type, ..segment() };
        assert_eq!(Offloads::from_guest(ALL & !missing).check(header, 3000), None, "type {gso_type:#x}");
    }
    for gso_type in [2, 3, 6, 0x80, 0x85, 0xff] {
        let header = NetHeader { gso_type, ..segment() };
        assert_eq!(Offloads::from_guest(ALL).check(header, 3000), None, "type {gso_type:#x}");
    }
}

#[test]
fn what_lies_outside_the_frame_is_refused() {
    let offloads = Offloads::from_guest(ALL);
    let change = |change: fn(&mut NetHeader)| {
        let mut header = segment();
        change(&mut header);
        offloads.check(header, 3000)
    };
    assert_eq!(change(|header| header.csum_start = 2983u16.to_le()), None);
    assert!(change(|header| header.csum_start = 2982u16.to_le()).is_some());
    assert_eq!(change(|header| header.csum_start = 13u16.to_le()), None);
    assert_eq!(change(|header| header.csum_offset = u16::MAX), None);
    assert_eq!(change(|header| header.hdr_len = 3001u16.to_le()), None);
    assert_eq!(change(|header| header.gso_size = 0), None);
    assert_eq!(change(|header| header.flags = 0), None);
}

#[test]
fn frame_that_asks_for_nothing_passes_whatever_else_the_header_says() {
    let odd = NetHeader { flags: 2 | 4, gso_type: 0, ..segment() };
    for offloads in [Offloads::default(), Offloads::from_guest(ALL)] {
        assert_eq!(offloads.check(odd, 14), Some(NetHeader::default()));
    }
}

#[test]
fn guest_hears_that_a_checksum_is_right_only_if_it_understands_that() {
    let valid = NetHeader { flags: VIRTIO_NET_HDR_F_DATA_VALID, ..NetHeader::default() };
    assert_eq!(Offloads::to_guest(VIRTIO_NET_F_GUEST_CSUM).check_from_host(valid, 60), Some(valid));
    assert_eq!(Offloads::default().check_from_host(valid, 60), Some(NetHeader::default()));
}

proptest! {
    #[test]
    fn what_passes_points_into_the_frame_and_was_agreed_on(
        bytes in prop::array::uniform12(any::<u8>()), features in any::<u64>(), len in 14usize..70_000, tame in 0u8..4,
    ) {
        let mut header: NetHeader = zerocopy::transmute!(bytes);
        if tame != 0 {
            (header.flags, header.gso_type) = (header.flags & 7, header.gso_type & 0x85);
            header.csum_start &= 0x3ff_u16.to_le();
        }
        let offloads = Offloads::from_guest(features);
        let has = |feature| features & feature != 0;
        let (start, offset) = (u16::from_le(header.csum_start), u16::from_le(header.csum_offset));
        let partial = header.flags & 1 == 1;
        let sum_ok = has(VIRTIO_NET_F_CSUM) && start >= 14 && start as usize + offset as usize + 2 <= len;
        let (kind, ecn) = (header.gso_type & 0x7f, header.gso_type & 0x80 != 0);
        let kind_ok = kind == 1 && has(VIRTIO_NET_F_HOST_TSO4)
            || kind == 4 && has(VIRTIO_NET_F_HOST_TSO6)
            || kind == 5 && has(VIRTIO_NET_F_HOST_USO) && !ecn;
        let segments_ok = kind_ok
            && (!ecn || has(VIRTIO_NET_F_HOST_ECN))
            && partial
            && header.gso_size != 0
            && u16::from_le(header.hdr_len) as usize <= len;
        let expected = (!partial || sum_ok) && (header.gso_type == 0 || segments_ok);
        let checked = offloads.check(header, len);
        prop_assert_eq!(checked.is_some(), expected);
        if let Some(checked) = checked {
            prop_assert_eq!(checked.flags, header.flags & 1);
            prop_assert_eq!(checked.gso_type, header.gso_type);
            prop_assert_eq!(checked.num_buffers, 0);
        }
    }
}
