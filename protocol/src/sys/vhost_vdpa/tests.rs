use std::mem::offset_of;

use rustix::ioctl::Opcode;

use super::*;

/// What the macros of `linux/vhost.h` of Linux 7.3.4 are on x86-64, as a C compiler evaluates them.
pub(in crate::sys) const GOLDEN: [(&str, Opcode); 29] = [
    ("VHOST_GET_FEATURES", 0x8008_af00),
    ("VHOST_SET_FEATURES", 0x4008_af00),
    ("VHOST_SET_OWNER", 0xaf01),
    ("VHOST_SET_VRING_NUM", 0x4008_af10),
    ("VHOST_SET_VRING_ADDR", 0x4028_af11),
    ("VHOST_SET_VRING_BASE", 0x4008_af12),
    ("VHOST_GET_VRING_BASE", 0xc008_af12),
    ("VHOST_SET_VRING_KICK", 0x4008_af20),
    ("VHOST_SET_VRING_CALL", 0x4008_af21),
    ("VHOST_SET_VRING_ERR", 0x4008_af22),
    ("VHOST_SET_BACKEND_FEATURES", 0x4008_af25),
    ("VHOST_GET_BACKEND_FEATURES", 0x8008_af26),
    ("VHOST_VDPA_GET_DEVICE_ID", 0x8004_af70),
    ("VHOST_VDPA_GET_STATUS", 0x8001_af71),
    ("VHOST_VDPA_SET_STATUS", 0x4001_af72),
    ("VHOST_VDPA_GET_CONFIG", 0x8008_af73),
    ("VHOST_VDPA_SET_CONFIG", 0x4008_af74),
    ("VHOST_VDPA_SET_VRING_ENABLE", 0x4008_af75),
    ("VHOST_VDPA_GET_VRING_NUM", 0x8002_af76),
    ("VHOST_VDPA_SET_CONFIG_CALL", 0x4004_af77),
    ("VHOST_VDPA_GET_IOVA_RANGE", 0x8010_af78),
    ("VHOST_VDPA_GET_CONFIG_SIZE", 0x8004_af79),
    ("VHOST_VDPA_GET_AS_NUM", 0x8004_af7a),
    ("VHOST_VDPA_GET_VRING_GROUP", 0xc008_af7b),
    ("VHOST_VDPA_SET_GROUP_ASID", 0x4008_af7c),
    ("VHOST_VDPA_SUSPEND", 0xaf7d),
    ("VHOST_VDPA_RESUME", 0xaf7e),
    ("VHOST_VDPA_GET_VQS_COUNT", 0x8004_af80),
    ("VHOST_VDPA_GET_GROUP_NUM", 0x8004_af81),
];

#[test]
fn numbers_are_those_of_linux_7_3() {
    let numbers = [
        GET_FEATURES.opcode(),
        SET_FEATURES.opcode(),
        SET_OWNER.opcode(),
        SET_VRING_NUM.opcode(),
        SET_VRING_ADDR.opcode(),
        SET_VRING_BASE.opcode(),
        GET_VRING_BASE.opcode(),
        SET_VRING_KICK.opcode(),
        SET_VRING_CALL.opcode(),
        SET_VRING_ERR.opcode(),
        SET_BACKEND_FEATURES.opcode(),
        GET_BACKEND_FEATURES.opcode(),
        GET_DEVICE_ID.opcode(),
        GET_STATUS.opcode(),
        SET_STATUS.opcode(),
        GET_CONFIG.opcode(),
        SET_CONFIG.opcode(),
        SET_VRING_ENABLE.opcode(),
        GET_VRING_NUM.opcode(),
        SET_CONFIG_CALL.opcode(),
        GET_IOVA_RANGE.opcode(),
        GET_CONFIG_SIZE.opcode(),
        GET_AS_NUM.opcode(),
        GET_VRING_GROUP.opcode(),
        SET_GROUP_ASID.opcode(),
        SUSPEND.opcode(),
        RESUME.opcode(),
        GET_VQS_COUNT.opcode(),
        GET_GROUP_NUM.opcode(),
    ];
    for ((name, golden), number) in GOLDEN.iter().zip(numbers) {
        assert_eq!(number, *golden, "{name}: {number:#x}");
    }
}

#[test]
fn structures_are_those_of_linux_7_3() {
    assert_eq!((size_of::<VringState>(), offset_of!(VringState, num)), (8, 4));
    assert_eq!((size_of::<VringFile>(), offset_of!(VringFile, fd)), (8, 4));
    assert_eq!((size_of::<VringAddr>(), offset_of!(VringAddr, flags)), (40, 4));
    assert_eq!((offset_of!(VringAddr, desc), offset_of!(VringAddr, used)), (8, 16));
    assert_eq!((offset_of!(VringAddr, avail), offset_of!(VringAddr, log)), (24, 32));
    assert_eq!((size_of::<ConfigHead>(), offset_of!(ConfigHead, len)), (8, 4));
    assert_eq!((size_of::<IovaRange>(), offset_of!(IovaRange, last)), (16, 8));
}
