//! The main channel: the front-end asks, the back-end answers.

use super::header::Header;
use super::iotlb::Iotlb;
use super::list::{Config, CryptoSession, MemoryRegion, MemoryTable, ShmemConfig};
use super::payload::{
    DeviceState, Empty, Inflight, LogBase, Payload, SharedObject, Size, VringAddr, VringFd, VringState,
};
use super::table::{ACK, FdRule, ReplyRule, Row, channel, fds_or_none, size_or};
use super::{MessageError, ProtocolFeatures, with_header};
use crate::frame::{Fds, Incoming};

channel! {
    /// Requests of the front-end.
    request FrontendRequest;
    /// Requests of the front-end with their payloads.
    message FrontendMessage;
    /// Replies of the back-end with their payloads.
    reply FrontendReply;

    /// Which virtio features does the device offer?
    GetFeatures = 1 "GET_FEATURES", fds None => Own(features: u64, fds None);
    /// The virtio features that both ends use from now on.
    SetFeatures(features: u64) = 2 "SET_FEATURES", fds None => Ack;
    /// A session starts.
    SetOwner = 3 "SET_OWNER", fds None => Ack;
    /// A session ends (deprecated).
    ResetOwner = 4 "RESET_OWNER", fds None => Ack;
    /// All of guest memory; replaces what was known before.
    SetMemTable(table: MemoryTable) = 5 "SET_MEM_TABLE", fds PerRegion
        => Postcopy(table: MemoryTable, fds None);
    /// Where to log dirty pages.
    SetLogBase(base: LogBase) = 6 "SET_LOG_BASE", fds AsFlagged => AckWithLogShmfd;
    /// An eventfd to signal when the log has changed.
    SetLogFd = 7 "SET_LOG_FD", fds One => Ack;
    /// How many descriptors a vring has.
    SetVringNum(state: VringState) = 8 "SET_VRING_NUM", fds None => Ack;
    /// Where a vring lies.
    SetVringAddr(addr: VringAddr) = 9 "SET_VRING_ADDR", fds None => Ack;
    /// The available index at which a vring starts.
    SetVringBase(state: VringState) = 10 "SET_VRING_BASE", fds None => Ack;
    /// Stop a vring: at which available index has it arrived?
    GetVringBase(state: VringState) = 11 "GET_VRING_BASE", fds None => Own(state: VringState, fds None);
    /// The eventfd by which the guest announces buffers; starts the vring.
    SetVringKick(vring: VringFd) = 12 "SET_VRING_KICK", fds AsFlagged => Ack;
    /// The eventfd by which the device announces used buffers.
    SetVringCall(vring: VringFd) = 13 "SET_VRING_CALL", fds AsFlagged => Ack;
    /// The eventfd by which the device announces that a vring has failed.
    SetVringErr(vring: VringFd) = 14 "SET_VRING_ERR", fds AsFlagged => Ack;
    /// Which protocol features does the back-end offer?
    GetProtocolFeatures = 15 "GET_PROTOCOL_FEATURES", fds None
        => Own(features: ProtocolFeatures, fds None);
    /// The protocol features that both ends use from now on.
    SetProtocolFeatures(features: ProtocolFeatures) = 16 "SET_PROTOCOL_FEATURES", fds None => Ack;
    /// How many queues does the device have?
    GetQueueNum = 17 "GET_QUEUE_NUM", fds None => Own(queues: u64, fds None), needs MQ;
    /// Enable (1) or disable (0) a vring.
    SetVringEnable(state: VringState) = 18 "SET_VRING_ENABLE", fds None => Ack;
    /// Announce the guest's MAC address (the low six bytes) to the network.
    SendRarp(mac: u64) = 19 "SEND_RARP", fds None => Ack, needs RARP;
    /// The MTU that the guest sees.
    NetSetMtu(mtu: u64) = 20 "NET_SET_MTU", fds None => Ack, needs MTU;
    /// The socket on which the back-end may send requests.
    SetBackendReqFd = 21 "SET_BACKEND_REQ_FD", fds One => Ack, needs BACKEND_REQ;
    /// Change the device's IOTLB.
    IotlbMsg(iotlb: Iotlb) = 22 "IOTLB_MSG", fds None => AckAlways;
    /// Whether a legacy vring is little-endian (0) or big-endian (1).
    SetVringEndian(state: VringState) = 23 "SET_VRING_ENDIAN", fds None => Ack, needs CROSS_ENDIAN;
    /// What does this piece of configuration space hold? (No payload in the reply: it cannot be read.)
    GetConfig(piece: Config) = 24 "GET_CONFIG", fds None => Own(piece: Option<Config>, fds None), needs CONFIG;
    /// Change a piece of configuration space.
    SetConfig(piece: Config) = 25 "SET_CONFIG", fds None => Ack, needs CONFIG;
    /// Create a crypto session.
    CreateCryptoSession(session: CryptoSession) = 26 "CREATE_CRYPTO_SESSION", fds None
        => Own(session: CryptoSession, fds None), needs CRYPTO_SESSION;
    /// Close a crypto session.
    CloseCryptoSession(id: u64) = 27 "CLOSE_CRYPTO_SESSION", fds None => Ack, needs CRYPTO_SESSION;
    /// A migration that may go on after the switch is under way: open a userfaultfd.
    PostcopyAdvise = 28 "POSTCOPY_ADVISE", fds None => Own(nothing: Empty, fds AtMostOne), needs PAGEFAULT;
    /// The switch has happened: register memory with the userfaultfd.
    PostcopyListen = 29 "POSTCOPY_LISTEN", fds None => Ack, needs PAGEFAULT;
    /// The migration is over.
    PostcopyEnd = 30 "POSTCOPY_END", fds None => AckAlways, needs PAGEFAULT;
    /// Make a buffer in which requests in flight are recorded.
    GetInflightFd(inflight: Inflight) = 31 "GET_INFLIGHT_FD", fds None
        => Own(inflight: Inflight, fds AtMostOne), needs INFLIGHT_SHMFD;
    /// Use this buffer, which may record requests that are still to be done.
    SetInflightFd(inflight: Inflight) = 32 "SET_INFLIGHT_FD", fds One => Ack, needs INFLIGHT_SHMFD;
    /// The socket of the GPU protocol.
    GpuSetSocket = 33 "GPU_SET_SOCKET", fds One => Ack;
    /// Disable all vrings and return the device to its initial state.
    ResetDevice = 34 "RESET_DEVICE", fds None => Ack, needs RESET_DEVICE;
    /// A kick, as a message.
    VringKick(state: VringState) = 35 "VRING_KICK", fds None => Ack, needs INBAND_NOTIFICATIONS;
    /// How many memory regions can the back-end hold?
    GetMaxMemSlots = 36 "GET_MAX_MEM_SLOTS", fds None => Own(slots: u64, fds None), needs CONFIGURE_MEM_SLOTS;
    /// One more region of guest memory.
    AddMemReg(region: MemoryRegion) = 37 "ADD_MEM_REG", fds One
        => Postcopy(region: MemoryRegion, fds None), needs CONFIGURE_MEM_SLOTS;
    /// One region less.
    RemMemReg(region: MemoryRegion) = 38 "REM_MEM_REG", fds Dropped => Ack, needs CONFIGURE_MEM_SLOTS;
    /// The device status the guest has written; 0 asks for a reset.
    SetStatus(status: u64) = 39 "SET_STATUS", fds None => Ack, needs STATUS;
    /// Which device status is the guest to read?
    GetStatus = 40 "GET_STATUS", fds None => Own(status: u64, fds None), needs STATUS;
    /// Hand out a shared object.
    GetSharedObject(object: SharedObject) = 41 "GET_SHARED_OBJECT", fds None
        => Own(object: Option<SharedObject>, fds AtMostOne), needs SHARED_OBJECT;
    /// The file through which the device's state is saved or loaded. (The reply's low byte is an error; its bit 8
    /// says that no better file comes with it.)
    SetDeviceStateFd(state: DeviceState) = 42 "SET_DEVICE_STATE_FD", fds One
        => Own(result: u64, fds AtMostOne), needs DEVICE_STATE;
    /// Has the device's state been saved or loaded well?
    CheckDeviceState = 43 "CHECK_DEVICE_STATE", fds None => Own(result: u64, fds None), needs DEVICE_STATE;
    /// Which shared memory regions does the device have?
    GetShmemConfig = 44 "GET_SHMEM_CONFIG", fds None => Own(config: ShmemConfig, fds None), needs SHMEM;
}
