//! Backend features (`VHOST_GET_BACKEND_FEATURES`, `VHOST_SET_BACKEND_FEATURES`).

use bitflags::bitflags;

bitflags! {
    /// What the kernel and its user have agreed to speak (`VHOST_BACKEND_F_*`). Bits nobody here knows are kept as they came.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BackendFeatures: u64 {
        /// Messages are those of version 2, the only ones that [`IotlbMessage`](super::IotlbMessage) speaks.
        const IOTLB_MSG_V2 = 1 << 1;
        /// Changes of memory come in batches.
        const IOTLB_BATCH = 1 << 2;
        /// Messages name an address space. Without this what they name is not looked at.
        const IOTLB_ASID = 1 << 3;
        /// The device can be suspended.
        const SUSPEND = 1 << 4;
        /// The device can be resumed.
        const RESUME = 1 << 5;
        /// Queues may be enabled after `DRIVER_OK` too.
        const ENABLE_AFTER_DRIVER_OK = 1 << 6;
        /// Rings may be in another address space than buffers.
        const DESC_ASID = 1 << 7;
        /// Memory stays lent across a reset.
        const IOTLB_PERSIST = 1 << 8;

        const _ = !0;
    }
}
