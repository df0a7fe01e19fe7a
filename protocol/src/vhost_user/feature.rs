//! Protocol feature bits (`GET_PROTOCOL_FEATURES`, `SET_PROTOCOL_FEATURES`).

use bitflags::bitflags;

bitflags! {
    /// What front-end and back-end have agreed to speak. Bits nobody here knows are kept as they came.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ProtocolFeatures: u64 {
        /// The number of queues can be asked for.
        const MQ = 1 << 0;
        /// The dirty log comes as a file.
        const LOG_SHMFD = 1 << 1;
        /// `SEND_RARP`.
        const RARP = 1 << 2;
        /// Any request may ask for an acknowledgement.
        const REPLY_ACK = 1 << 3;
        /// `NET_SET_MTU`.
        const MTU = 1 << 4;
        /// The back-end may send requests on a socket of its own.
        const BACKEND_REQ = 1 << 5;
        /// `SET_VRING_ENDIAN`.
        const CROSS_ENDIAN = 1 << 6;
        /// Crypto sessions.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy migration through a userfaultfd.
        const PAGEFAULT = 1 << 8;
        /// `GET_CONFIG`, `SET_CONFIG` and `CONFIG_CHANGE_MSG`.
        const CONFIG = 1 << 9;
        /// Requests of the back-end may carry descriptors.
        const BACKEND_SEND_FD = 1 << 10;
        /// `VRING_HOST_NOTIFIER_MSG`.
        const HOST_NOTIFIER = 1 << 11;
        /// The in-flight log.
        const INFLIGHT_SHMFD = 1 << 12;
        /// `RESET_DEVICE`.
        const RESET_DEVICE = 1 << 13;
        /// Kicks and calls as messages.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// Memory regions are added and removed one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// `GET_STATUS` and `SET_STATUS`.
        const STATUS = 1 << 16;
        /// Regions carry Xen's mapping flags.
        const XEN_MMAP = 1 << 17;
        /// Objects shared between back-ends.
        const SHARED_OBJECT = 1 << 18;
        /// The device's internal state can be saved and loaded.
        const DEVICE_STATE = 1 << 19;
        /// `GET_VRING_BASE` may leave requests in the in-flight log.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Ring addresses are guest physical.
        const GPA_ADDRESSES = 1 << 21;
        /// Shared memory regions of the device.
        const SHMEM = 1 << 22;

        const _ = !0;
    }
}
