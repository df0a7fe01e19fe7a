//! Messages and the bytes they have on the wire, written down independently of the encoder. Those marked so are what
//! QEMU 11 sends, as it was seen to.

use super::*;

/// The bytes of a VERSION with this text.
fn version(head: &str, text: &str) -> Vec<u8> {
    [bytes(head), text.as_bytes().to_vec(), vec![0]].concat()
}

/// The bytes that hexadecimal digits stand for.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    crate::vhost_user::golden::bytes(hex)
}

/// What QEMU 11 proposes.
pub(crate) fn qemu() -> Capabilities {
    Capabilities {
        max_msg_fds: 16,
        write_multiple: true,
        migration: Some(Migration::default()),
        ..Capabilities::default()
    }
}

const QEMU_TEXT: &str = r#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;
const SERVER_TEXT: &str = r#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 8, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "twin_socket": {"supported": true, "fd_index": 1}}}"#;

fn data(bytes: &[u8]) -> Data {
    Data::new(bytes).unwrap()
}

fn irqs(index: u32, start: u32, action: IrqAction, data: IrqData) -> Request {
    Request::DeviceSetIrqs(SetIrqs::new(index, start, action, data).unwrap())
}

fn write(region: u32, offset: u64, bytes: &[u8]) -> RegionWrite {
    RegionWrite { offset, region, data: data(bytes) }
}

/// Commands of the client with number 0x0102, and how many descriptors come along.
#[rustfmt::skip]
pub(crate) fn requests() -> Vec<(Request, Vec<u8>, usize)> {
    use IrqAction::{Mask, Trigger, Unmask};
    use Request as R;
    let rw = DmaFlags::READ | DmaFlags::WRITE;
    let ram = DmaMap { flags: rw, offset: 0, address: 0, size: 0x2000_0000 };
    let bios = DmaMap { flags: DmaFlags::READ, offset: 0, address: 0xfffc_0000, size: 0x4_0000 };
    let page = DmaMap { flags: rw, offset: 0, address: 0xfe40_1000, size: 0x1000 };
    let multi = RegionWriteMulti::new(vec![write(0, 0x1000, &[1, 0, 0, 0]), write(7, 4, &[6, 4])]).unwrap();
    vec![
        // QEMU, 214 bytes.
        (R::Version(Version { major: 0, minor: 0, capabilities: qemu() }), version("0201 0100 d6000000 00000000 00000000 0000 0000", QEMU_TEXT), 0),
        // QEMU: all RAM, the BIOS without a file, a page of the device's own.
        (R::DmaMap(ram), bytes("0201 0200 30000000 00000000 00000000 20000000 03000000 0000000000000000 0000000000000000 0000002000000000"), 1),
        (R::DmaMap(bios), bytes("0201 0200 30000000 00000000 00000000 20000000 01000000 0000000000000000 0000fcff00000000 0000040000000000"), 0),
        (R::DmaMap(page), bytes("0201 0200 30000000 00000000 00000000 20000000 03000000 0000000000000000 001040fe00000000 0010000000000000"), 0),
        // QEMU: the page is taken back; teardown.
        (R::DmaUnmap(DmaUnmap::Range { address: 0xfe40_1000, size: 0x1000 }), bytes("0201 0300 28000000 00000000 00000000 18000000 00000000 001040fe00000000 0010000000000000"), 0),
        (R::DmaUnmap(DmaUnmap::All), bytes("0201 0300 28000000 00000000 00000000 18000000 02000000 0000000000000000 0000000000000000"), 0),
        // QEMU: the device, BAR 0 twice, MSI-X.
        (R::DeviceGetInfo(QueryInfo { argsz: 16 }), bytes("0201 0400 20000000 00000000 00000000 10000000 00000000 00000000 00000000"), 0),
        (R::DeviceGetRegionInfo(QueryRegion { argsz: 32, index: 0 }), bytes("0201 0500 30000000 00000000 00000000 20000000 00000000 00000000 00000000 0000000000000000 0000000000000000"), 0),
        (R::DeviceGetRegionInfo(QueryRegion { argsz: 64, index: 0 }), bytes("0201 0500 30000000 00000000 00000000 40000000 00000000 00000000 00000000 0000000000000000 0000000000000000"), 0),
        (R::DeviceGetRegionIoFds(QueryIoFds { argsz: 16, index: 2 }), bytes("0201 0600 20000000 00000000 00000000 10000000 00000000 02000000 00000000"), 0),
        (R::DeviceGetIrqInfo(QueryIrq { argsz: 16, index: 2 }), bytes("0201 0700 20000000 00000000 00000000 10000000 00000000 02000000 00000000"), 0),
        // QEMU: INTx with an eventfd; INTx off; MSI-X by a placeholder, then a vector; an EOI.
        (irqs(0, 0, Trigger, IrqData::Eventfd { count: 1 }), bytes("0201 0800 24000000 00000000 00000000 14000000 24000000 00000000 00000000 01000000"), 1),
        (irqs(0, 0, Trigger, IrqData::None { count: 0 }), bytes("0201 0800 24000000 00000000 00000000 14000000 21000000 00000000 00000000 00000000"), 0),
        (irqs(2, 0, Trigger, IrqData::Eventfd { count: 1 }), bytes("0201 0800 24000000 00000000 00000000 14000000 24000000 02000000 00000000 01000000"), 0),
        (irqs(2, 5, Trigger, IrqData::Eventfd { count: 16 }), bytes("0201 0800 24000000 00000000 00000000 14000000 24000000 02000000 05000000 10000000"), 16),
        (irqs(0, 0, Unmask, IrqData::None { count: 1 }), bytes("0201 0800 24000000 00000000 00000000 14000000 11000000 00000000 00000000 01000000"), 0),
        (irqs(2, 1, Mask, IrqData::Bool(vec![true, false, true])), bytes("0201 0800 27000000 00000000 00000000 17000000 0a000000 02000000 01000000 03000000 010001"), 0),
        // QEMU: all of configuration space; PCIe device control, function level reset.
        (R::RegionRead(RegionRead { offset: 0, region: 7, count: 4096 }), bytes("0201 0900 20000000 00000000 00000000 0000000000000000 07000000 00100000"), 0),
        (R::RegionWrite(write(7, 0x50, &[0, 0x80])), bytes("0201 0a00 22000000 00000000 00000000 5000000000000000 07000000 02000000 0080"), 0),
        (R::DeviceReset, bytes("0201 0d00 10000000 00000000 00000000"), 0),
        (R::RegionWriteMulti(multi), bytes("0201 0f00 48000000 00000000 00000000 0200000000000000 0010000000000000 00000000 04000000 0100000000000000 0400000000000000 07000000 02000000 0604000000000000"), 0),
        (R::DeviceFeature(Feature { argsz: 16, flags: Feature::GET | 1, data: Data::default() }), bytes("0201 1000 18000000 00000000 00000000 10000000 01000100"), 0),
        (R::MigDataRead(MigrationRead { argsz: 0x1008, size: 0x1000 }), bytes("0201 1100 18000000 00000000 00000000 08100000 00100000"), 0),
        (R::MigDataWrite(MigrationData(data(&[7, 8]))), bytes("0201 1200 1a000000 00000000 00000000 0a000000 02000000 0708"), 0),
    ]
}

/// Replies of the server to commands with number 0x0102, which [`asked`] heads, and how many descriptors come along.
#[rustfmt::skip]
pub(crate) fn replies() -> Vec<(Command, Reply, Vec<u8>, usize)> {
    use Command as C;
    use Reply as R;
    let settled = Capabilities {
        max_msg_fds: 8,
        twin_socket: Some(TwinSocket { supported: true, fd_index: Some(1) }),
        ..Capabilities::default()
    };
    let doorbells = RegionInfo::new(0, RegionFlags::all(), 0x4000, 0x2000);
    let doorbells = doorbells.with_areas(vec![SparseArea { offset: 0x1000, size: 0x1000 }]).unwrap();
    let bar = RegionInfo::new(4, RegionFlags::READ | RegionFlags::WRITE, 0x2000, 0);
    let eventfd = SubRegion { offset: 0x1000, size: 4, fd_index: 0, flags: 1, kind: IoFdKind::Ioeventfd { datamatch: 7 } };
    let regionfd = SubRegion { offset: 0x2000, size: 0, fd_index: 1, flags: 2, kind: IoFdKind::Ioregionfd { user_data: 9 } };
    let io_fds = RegionIoFds::new(2, vec![eventfd, regionfd]).unwrap();
    let info = DeviceInfo { flags: DeviceFlags::RESET | DeviceFlags::PCI, num_regions: 9, num_irqs: 5 };
    let msix = IrqInfo { flags: IrqFlags::EVENTFD | IrqFlags::NORESIZE, index: 2, count: 128 };
    vec![
        (C::Version, R::Version(Version { major: 0, minor: 0, capabilities: settled }), version("0201 0100 b3000000 01000000 00000000 0000 0000", SERVER_TEXT), 2),
        (C::DmaMap, R::DmaMap, bytes("0201 0200 10000000 01000000 00000000"), 0),
        (C::DmaMap, R::Failed(17), bytes("0201 0200 10000000 21000000 11000000"), 0),
        (C::DmaUnmap, R::DmaUnmap(DmaUnmap::Range { address: 0xfe40_1000, size: 0x1000 }), bytes("0201 0300 28000000 01000000 00000000 18000000 00000000 001040fe00000000 0010000000000000"), 0),
        (C::DeviceGetInfo, R::DeviceGetInfo(info), bytes("0201 0400 20000000 01000000 00000000 10000000 03000000 09000000 05000000"), 0),
        (C::DeviceGetRegionInfo, R::DeviceGetRegionInfo(bar), bytes("0201 0500 30000000 01000000 00000000 20000000 03000000 04000000 00000000 0020000000000000 0000000000000000"), 0),
        (C::DeviceGetRegionInfo, R::DeviceGetRegionInfo(doorbells.clone()), bytes("0201 0500 50000000 01000000 00000000 40000000 0f000000 00000000 20000000 0040000000000000 0020000000000000 0100 0100 00000000 01000000 00000000 0010000000000000 0010000000000000"), 1),
        (C::DeviceGetRegionInfo, R::DeviceGetRegionInfo(doorbells.fit(32)), bytes("0201 0500 30000000 01000000 00000000 40000000 0f000000 00000000 20000000 0040000000000000 0020000000000000"), 1),
        (C::DeviceGetRegionIoFds, R::DeviceGetRegionIoFds(io_fds.clone()), bytes("0201 0600 70000000 01000000 00000000 60000000 00000000 02000000 02000000 0010000000000000 0400000000000000 00000000 00000000 01000000 00000000 0700000000000000 0020000000000000 0000000000000000 01000000 01000000 02000000 00000000 0900000000000000"), 2),
        (C::DeviceGetRegionIoFds, R::DeviceGetRegionIoFds(io_fds.fit(16)), bytes("0201 0600 20000000 01000000 00000000 60000000 00000000 02000000 02000000"), 0),
        (C::DeviceGetIrqInfo, R::DeviceGetIrqInfo(msix), bytes("0201 0700 20000000 01000000 00000000 10000000 09000000 02000000 80000000"), 0),
        (C::DeviceSetIrqs, R::DeviceSetIrqs, bytes("0201 0800 10000000 01000000 00000000"), 0),
        (C::RegionRead, R::RegionRead(RegionReadDone { offset: 0x1c, region: 0, data: data(&[1, 0, 0, 0]) }), bytes("0201 0900 24000000 01000000 00000000 1c00000000000000 00000000 04000000 01000000"), 0),
        (C::RegionWrite, R::RegionWrite(RegionWriteDone { offset: 0x50, region: 7, count: 2 }), bytes("0201 0a00 20000000 01000000 00000000 5000000000000000 07000000 02000000"), 0),
        (C::DeviceReset, R::DeviceReset, bytes("0201 0d00 10000000 01000000 00000000"), 0),
        (C::RegionWriteMulti, R::RegionWriteMulti(2), bytes("0201 0f00 18000000 01000000 00000000 0200000000000000"), 0),
        (C::DeviceFeature, R::DeviceFeature(Feature { argsz: 16, flags: Feature::GET | 1, data: data(&[2, 0, 0, 0, 0, 0, 0, 0]) }), bytes("0201 1000 20000000 01000000 00000000 10000000 01000100 0200000000000000"), 0),
        (C::MigDataRead, R::MigDataRead(MigrationData(data(&[7, 8]))), bytes("0201 1100 1a000000 01000000 00000000 0a000000 02000000 0708"), 0),
        (C::MigDataWrite, R::MigDataWrite, bytes("0201 1200 10000000 01000000 00000000"), 0),
    ]
}

/// The header of the command with number 0x0102 that a reply answers.
pub(crate) fn asked(command: Command) -> Header {
    Header::command(0x0102, command.id(), 0, false)
}

/// Commands of the server with number 0x0102.
#[rustfmt::skip]
pub(crate) fn dma_requests() -> Vec<(DmaRequest, Vec<u8>)> {
    vec![
        (DmaRequest::DmaRead(DmaRead { address: 0xfffc_0000, count: 4096 }), bytes("0201 0b00 20000000 00000000 00000000 0000fcff00000000 0010000000000000")),
        (DmaRequest::DmaWrite(DmaWrite { address: 0x1000, data: data(&[1, 2, 3]), layout: DmaLayout::Specified }), bytes("0201 0c00 23000000 00000000 00000000 0010000000000000 0300000000000000 010203")),
        (DmaRequest::DmaWrite(DmaWrite { address: 0x1000, data: data(&[1, 2, 3]), layout: DmaLayout::Narrow }), bytes("0201 0c00 23000000 00000000 00000000 0010000000000000 03000000 010203 00000000")),
    ]
}

/// Replies of the client to commands with number 0x0102.
#[rustfmt::skip]
pub(crate) fn dma_replies() -> Vec<(Command, DmaReply, Vec<u8>)> {
    use Command as C;
    use DmaReply as R;
    vec![
        (C::DmaRead, R::DmaRead(DmaReadDone { address: 0x1000, data: data(&[1, 2, 3]), layout: DmaLayout::Specified }), bytes("0201 0b00 23000000 01000000 00000000 0010000000000000 0300000000000000 010203")),
        (C::DmaRead, R::Failed(14), bytes("0201 0b00 10000000 21000000 0e000000")),
        (C::DmaWrite, R::DmaWrite(DmaWriteDone::Silent), bytes("0201 0c00 10000000 01000000 00000000")),
        (C::DmaWrite, R::DmaWrite(DmaWriteDone::Told { address: 0x1000, count: 3 }), bytes("0201 0c00 20000000 01000000 00000000 0010000000000000 0300000000000000")),
        (C::DmaRead, R::DmaRead(DmaReadDone { address: 0x1000, data: data(&[1, 2, 3]), layout: DmaLayout::Narrow }), bytes("0201 0b00 23000000 01000000 00000000 0010000000000000 03000000 010203 00000000")),
    ]
}
