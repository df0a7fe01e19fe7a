//! The virtio-net wire: feature bits and the header before each frame (virtio 1.3, 5.1).

/// Bytes of `struct virtio_net_hdr_v1`, on every frame of a VERSION_1 device.
pub(super) const HEADER: usize = 12;

/// VIRTIO_NET_F_MTU: the configuration space has an MTU.
pub(super) const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC: the configuration space has an address.
pub(super) const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_MRG_RXBUF: a frame may fill several receive chains.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS: the configuration space has the link's state.
pub(super) const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_GUEST_ANNOUNCE: the guest announces itself after it moved.
pub(super) const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// VIRTIO_NET_F_MQ: several queue pairs.
pub(super) const F_MQ: u64 = 1 << 22;
/// VIRTIO_F_INDIRECT_DESC.
pub(super) const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_RING_PACKED.
pub(super) const F_RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER. A promise: every chain of a queue is completed in the burst that takes it, in order.
pub(super) const F_IN_ORDER: u64 = 1 << 35;
/// VIRTIO_F_VERSION_1.
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// The header of a received frame: no offload of any kind, and how many chains it fills. In two words as they are
/// stored, the second four bytes long.
#[inline(always)]
pub(super) fn received(num_buffers: u16) -> (u64, u32) {
    (0, u32::from(num_buffers) << 16)
}
