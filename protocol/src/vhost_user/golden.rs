//! Messages and the bytes they have on the wire, written down independently of the encoder.

use super::{
    BackendMessage, BackendReply, Config, CryptoSession, DeviceState, Empty, FrontendMessage, FrontendReply,
    Inflight, Iotlb, IotlbPerm, LogBase, MemoryRegion, MemoryTable, ProtocolFeatures, SharedObject, ShmemMap,
    VringAddr, VringArea, VringFd, VringState,
};

const REGION: MemoryRegion = MemoryRegion {
    guest_addr: 0x1_0000_0000,
    size: 0x1000_0000,
    user_addr: 0x7f20_53ff_f000,
    mmap_offset: 0x1000,
};
const UUID: SharedObject = SharedObject { uuid: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] };

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn table() -> MemoryTable {
    let low = MemoryRegion { guest_addr: 0, size: 0xa0000, user_addr: 0x7f20_53ff_f000, mmap_offset: 0 };
    MemoryTable::new(vec![low, REGION]).unwrap()
}

fn iotlb() -> Iotlb {
    let perm = IotlbPerm::READ | IotlbPerm::WRITE;
    Iotlb::Update { iova: 0x1000, size: 0x2000, user_addr: 0x7f00_0000_0000, perm }
}

fn config(data: &[u8]) -> Config {
    Config::new(6, 0, data.to_vec()).unwrap()
}

fn crypto(bytes: &[u8]) -> CryptoSession {
    CryptoSession::new(bytes.to_vec()).unwrap()
}

fn inflight() -> Inflight {
    Inflight { mmap_size: 0x2000, mmap_offset: 0x40, num_queues: 2, queue_size: 256 }
}

fn piece(flags: u64) -> ShmemMap {
    ShmemMap { shmid: 3, fd_offset: 0x1000, shm_offset: 0x2000, len: 0x3000, flags }
}

/// The bytes that a line of hexadecimal digits stands for.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// Every request of the front-end, none asking for a reply.
#[rustfmt::skip]
pub(crate) fn frontend_messages() -> Vec<(FrontendMessage, &'static str)> {
    use FrontendMessage as M;
    vec![
        (M::GetFeatures, "01000000 01000000 00000000"),
        (M::SetFeatures(0x1_4000_0044), "02000000 01000000 08000000 4400004001000000"),
        (M::SetOwner, "03000000 01000000 00000000"),
        (M::ResetOwner, "04000000 01000000 00000000"),
        (M::SetMemTable(table()), "05000000 01000000 48000000 0200000000000000 0000000000000000 00000a0000000000 00f0ff53207f0000 0000000000000000 0000000001000000 0000001000000000 00f0ff53207f0000 0010000000000000"),
        (M::SetLogBase(LogBase::File { size: 0x4000, offset: 0x1000 }), "06000000 01000000 10000000 0040000000000000 0010000000000000"),
        (M::SetLogFd, "07000000 01000000 00000000"),
        (M::SetVringNum(state(1, 256)), "08000000 01000000 08000000 0100000000010000"),
        (M::SetVringAddr(VringAddr { index: 1, flags: VringAddr::LOG, desc: 0x1000, used: 0x3000, avail: 0x2000, log: 0x9000 }), "09000000 01000000 28000000 0100000001000000 0010000000000000 0030000000000000 0020000000000000 0090000000000000"),
        (M::SetVringBase(state(1, 0xbbe)), "0a000000 01000000 08000000 01000000be0b0000"),
        (M::GetVringBase(state(1, 0)), "0b000000 01000000 08000000 0100000000000000"),
        (M::SetVringKick(VringFd { index: 2, has_fd: true }), "0c000000 01000000 08000000 0200000000000000"),
        (M::SetVringCall(VringFd { index: 3, has_fd: false }), "0d000000 01000000 08000000 0301000000000000"),
        (M::SetVringErr(VringFd { index: 255, has_fd: true }), "0e000000 01000000 08000000 ff00000000000000"),
        (M::GetProtocolFeatures, "0f000000 01000000 00000000"),
        (M::SetProtocolFeatures(ProtocolFeatures::MQ | ProtocolFeatures::SHMEM), "10000000 01000000 08000000 0100400000000000"),
        (M::GetQueueNum, "11000000 01000000 00000000"),
        (M::SetVringEnable(state(1, 1)), "12000000 01000000 08000000 0100000001000000"),
        (M::SendRarp(0x0605_0403_0201), "13000000 01000000 08000000 0102030405060000"),
        (M::NetSetMtu(1500), "14000000 01000000 08000000 dc05000000000000"),
        (M::SetBackendReqFd, "15000000 01000000 00000000"),
        (M::IotlbMsg(iotlb()), "16000000 01000000 20000000 0010000000000000 0020000000000000 00000000007f0000 0302000000000000"),
        (M::SetVringEndian(state(1, 0)), "17000000 01000000 08000000 0100000000000000"),
        (M::GetConfig(config(&[0, 0])), "18000000 01000000 0e000000 0600000002000000 000000000000"),
        (M::SetConfig(config(&[1, 0])), "19000000 01000000 0e000000 0600000002000000 000000000100"),
        (M::CreateCryptoSession(crypto(&[1, 2, 3])), "1a000000 01000000 03000000 010203"),
        (M::CloseCryptoSession(7), "1b000000 01000000 08000000 0700000000000000"),
        (M::PostcopyAdvise, "1c000000 01000000 00000000"),
        (M::PostcopyListen, "1d000000 01000000 00000000"),
        (M::PostcopyEnd, "1e000000 01000000 00000000"),
        (M::GetInflightFd(inflight()), "1f000000 01000000 18000000 0020000000000000 4000000000000000 0200000100000000"),
        (M::SetInflightFd(inflight()), "20000000 01000000 18000000 0020000000000000 4000000000000000 0200000100000000"),
        (M::GpuSetSocket, "21000000 01000000 00000000"),
        (M::ResetDevice, "22000000 01000000 00000000"),
        (M::VringKick(state(1, 0)), "23000000 01000000 08000000 0100000000000000"),
        (M::GetMaxMemSlots, "24000000 01000000 00000000"),
        (M::AddMemReg(REGION), "25000000 01000000 28000000 0000000000000000 0000000001000000 0000001000000000 00f0ff53207f0000 0010000000000000"),
        (M::RemMemReg(REGION), "26000000 01000000 28000000 0000000000000000 0000000001000000 0000001000000000 00f0ff53207f0000 0010000000000000"),
        (M::SetStatus(15), "27000000 01000000 08000000 0f00000000000000"),
        (M::GetStatus, "28000000 01000000 00000000"),
        (M::GetSharedObject(UUID), "29000000 01000000 10000000 0001020304050607 08090a0b0c0d0e0f"),
        (M::SetDeviceStateFd(DeviceState { direction: 1, phase: 0 }), "2a000000 01000000 08000000 0100000000000000"),
        (M::CheckDeviceState, "2b000000 01000000 00000000"),
        (M::GetShmemConfig, "2c000000 01000000 00000000"),
    ]
}

/// Every kind of reply of the back-end.
#[rustfmt::skip]
pub(crate) fn frontend_replies() -> Vec<(FrontendReply, &'static str)> {
    use FrontendReply as M;
    vec![
        (M::Ack { request: 9, value: 1 }, "09000000 05000000 08000000 0100000000000000"),
        (M::GetFeatures(0x1_4000_0044), "01000000 05000000 08000000 4400004001000000"),
        (M::SetMemTable(table()), "05000000 05000000 48000000 0200000000000000 0000000000000000 00000a0000000000 00f0ff53207f0000 0000000000000000 0000000001000000 0000001000000000 00f0ff53207f0000 0010000000000000"),
        (M::GetVringBase(state(1, 0xbbe)), "0b000000 05000000 08000000 01000000be0b0000"),
        (M::GetProtocolFeatures(ProtocolFeatures::MQ | ProtocolFeatures::SHMEM), "0f000000 05000000 08000000 0100400000000000"),
        (M::GetQueueNum(4), "11000000 05000000 08000000 0400000000000000"),
        (M::GetConfig(Some(config(&[1, 0]))), "18000000 05000000 0e000000 0600000002000000 000000000100"),
        (M::GetConfig(None), "18000000 05000000 00000000"),
        (M::CreateCryptoSession(crypto(&[1, 2, 3])), "1a000000 05000000 03000000 010203"),
        (M::PostcopyAdvise(Empty), "1c000000 05000000 00000000"),
        (M::GetInflightFd(inflight()), "1f000000 05000000 18000000 0020000000000000 4000000000000000 0200000100000000"),
        (M::GetMaxMemSlots(509), "24000000 05000000 08000000 fd01000000000000"),
        (M::AddMemReg(REGION), "25000000 05000000 28000000 0000000000000000 0000000001000000 0000001000000000 00f0ff53207f0000 0010000000000000"),
        (M::GetStatus(0x4f), "28000000 05000000 08000000 4f00000000000000"),
        (M::GetSharedObject(Some(UUID)), "29000000 05000000 10000000 0001020304050607 08090a0b0c0d0e0f"),
        (M::SetDeviceStateFd(0x100), "2a000000 05000000 08000000 0001000000000000"),
        (M::CheckDeviceState(0), "2b000000 05000000 08000000 0000000000000000"),
    ]
}

/// Every request of the back-end, each asking for a reply.
#[rustfmt::skip]
pub(crate) fn backend_messages() -> Vec<(BackendMessage, &'static str)> {
    use BackendMessage as M;
    vec![
        (M::IotlbMsg(Iotlb::Miss { iova: 0x1000, perm: IotlbPerm::WRITE }), "01000000 09000000 20000000 0010000000000000 0000000000000000 0000000000000000 0201000000000000"),
        (M::ConfigChangeMsg, "02000000 09000000 00000000"),
        (M::VringHostNotifierMsg(VringArea { vring: VringFd { index: 1, has_fd: true }, size: 0x1000, offset: 0x2000 }), "03000000 09000000 18000000 0100000000000000 0010000000000000 0020000000000000"),
        (M::VringCall(state(1, 0)), "04000000 09000000 08000000 0100000000000000"),
        (M::VringErr(state(1, 0)), "05000000 09000000 08000000 0100000000000000"),
        (M::SharedObjectAdd(UUID), "06000000 09000000 10000000 0001020304050607 08090a0b0c0d0e0f"),
        (M::SharedObjectRemove(UUID), "07000000 09000000 10000000 0001020304050607 08090a0b0c0d0e0f"),
        (M::SharedObjectLookup(UUID), "08000000 09000000 10000000 0001020304050607 08090a0b0c0d0e0f"),
        (M::ShmemMap(piece(ShmemMap::WRITABLE)), "09000000 09000000 28000000 0300000000000000 0010000000000000 0020000000000000 0030000000000000 0100000000000000"),
        (M::ShmemUnmap(piece(0)), "0a000000 09000000 28000000 0300000000000000 0010000000000000 0020000000000000 0030000000000000 0000000000000000"),
    ]
}

/// Every kind of reply of the front-end.
#[rustfmt::skip]
pub(crate) fn backend_replies() -> Vec<(BackendReply, &'static str)> {
    use BackendReply as M;
    vec![
        (M::Ack { request: 1, value: 0 }, "01000000 05000000 08000000 0000000000000000"),
        (M::SharedObjectLookup(1), "08000000 05000000 08000000 0100000000000000"),
    ]
}
