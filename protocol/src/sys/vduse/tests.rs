use std::mem::offset_of;

use rustix::ioctl::Opcode;

use super::*;

/// What the macros of `linux/vduse.h` of Linux 7.3.4 are on x86-64, as a C compiler evaluates them.
pub(in crate::sys) const GOLDEN: [(&str, Opcode); 18] = [
    ("VDUSE_GET_API_VERSION", 0x8008_8100),
    ("VDUSE_SET_API_VERSION", 0x4008_8101),
    ("VDUSE_CREATE_DEV", 0x4150_8102),
    ("VDUSE_DESTROY_DEV", 0x4100_8103),
    ("VDUSE_GET_FEATURES", 0x8008_8104),
    ("VDUSE_SET_FEATURES", 0x4008_8105),
    ("VDUSE_IOTLB_GET_FD", 0xc020_8110),
    ("VDUSE_DEV_GET_FEATURES", 0x8008_8111),
    ("VDUSE_DEV_SET_CONFIG", 0x4008_8112),
    ("VDUSE_DEV_INJECT_CONFIG_IRQ", 0x8113),
    ("VDUSE_VQ_SETUP", 0x4020_8114),
    ("VDUSE_VQ_GET_INFO", 0xc030_8115),
    ("VDUSE_VQ_SETUP_KICKFD", 0x4008_8116),
    ("VDUSE_VQ_INJECT_IRQ", 0x4004_8117),
    ("VDUSE_IOTLB_REG_UMEM", 0x4030_8118),
    ("VDUSE_IOTLB_DEREG_UMEM", 0x4030_8119),
    ("VDUSE_IOTLB_GET_INFO", 0xc030_811a),
    ("VDUSE_IOTLB_GET_FD2", 0xc050_811b),
];

#[test]
fn numbers_are_those_of_linux_7_3() {
    let numbers = [
        GET_API_VERSION.opcode(),
        SET_API_VERSION.opcode(),
        CREATE_DEV.opcode(),
        DESTROY_DEV.opcode(),
        GET_FEATURES.opcode(),
        SET_FEATURES.opcode(),
        IOTLB_GET_FD.opcode(),
        DEV_GET_FEATURES.opcode(),
        DEV_SET_CONFIG.opcode(),
        DEV_INJECT_CONFIG_IRQ.opcode(),
        VQ_SETUP.opcode(),
        VQ_GET_INFO.opcode(),
        VQ_SETUP_KICKFD.opcode(),
        VQ_INJECT_IRQ.opcode(),
        IOTLB_REG_UMEM.opcode(),
        IOTLB_DEREG_UMEM.opcode(),
        IOTLB_GET_INFO.opcode(),
        IOTLB_GET_FD2.opcode(),
    ];
    for ((name, golden), number) in GOLDEN.iter().zip(numbers) {
        assert_eq!(number, *golden, "{name}: {number:#x}");
    }
}

#[test]
fn structures_are_those_of_linux_7_3() {
    assert_eq!((size_of::<DevConfig>(), align_of::<DevConfig>()), (336, 8));
    assert_eq!((offset_of!(DevConfig, vendor_id), offset_of!(DevConfig, device_id)), (256, 260));
    assert_eq!((offset_of!(DevConfig, features), offset_of!(DevConfig, vq_num)), (264, 272));
    assert_eq!((offset_of!(DevConfig, vq_align), offset_of!(DevConfig, ngroups)), (276, 280));
    assert_eq!((offset_of!(DevConfig, nas), offset_of!(DevConfig, reserved)), (284, 288));
    assert_eq!(offset_of!(DevConfig, config_size), 332);
    assert_eq!((size_of::<IotlbEntry>(), offset_of!(IotlbEntry, start)), (32, 8));
    assert_eq!((offset_of!(IotlbEntry, last), offset_of!(IotlbEntry, perm)), (16, 24));
    assert_eq!(size_of::<IotlbEntryV2>(), 80);
    assert_eq!((offset_of!(IotlbEntryV2, asid), offset_of!(IotlbEntryV2, reserved)), (32, 36));
    assert_eq!((size_of::<ConfigData>(), offset_of!(ConfigData, length)), (8, 4));
    assert_eq!((size_of::<VqConfig>(), offset_of!(VqConfig, max_size)), (32, 4));
    assert_eq!((offset_of!(VqConfig, group), offset_of!(VqConfig, reserved2)), (8, 12));
    assert_eq!((size_of::<VqInfo>(), offset_of!(VqInfo, num)), (48, 4));
    assert_eq!((offset_of!(VqInfo, desc_addr), offset_of!(VqInfo, driver_addr)), (8, 16));
    assert_eq!((offset_of!(VqInfo, device_addr), offset_of!(VqInfo, state)), (24, 32));
    assert_eq!(offset_of!(VqInfo, ready), 40);
    assert_eq!((size_of::<VqEventFd>(), offset_of!(VqEventFd, fd)), (8, 4));
    assert_eq!((size_of::<IovaUmem>(), offset_of!(IovaUmem, iova)), (48, 8));
    assert_eq!((offset_of!(IovaUmem, size), offset_of!(IovaUmem, asid)), (16, 24));
    assert_eq!((size_of::<IovaInfo>(), offset_of!(IovaInfo, last)), (48, 8));
    assert_eq!((offset_of!(IovaInfo, capability), offset_of!(IovaInfo, asid)), (16, 24));
}
