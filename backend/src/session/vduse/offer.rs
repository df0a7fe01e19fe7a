//! What a device is to the kernel: the features that it may have there, and its configuration space.
//!
//! The kernel wants `VIRTIO_F_ACCESS_PLATFORM`, since nothing else than its table says where memory is, and takes no device whose
//! configuration space drivers may write or that has a control queue. Without a control queue there are no pairs of queues to
//! choose between, and nothing to announce.

use mdev_protocol::vduse::DeviceKind;
use mdev_protocol::virtio::blk::VIRTIO_BLK_F_CONFIG_WCE;
use mdev_protocol::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET};
use mdev_protocol::virtio::net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ};

use crate::device::VirtioDevice;

/// Features of the transport, of which devices know nothing.
pub(super) const OF_TRANSPORT: u64 = VIRTIO_F_ACCESS_PLATFORM;

/// The features that a device offers here.
pub fn features(device: &dyn VirtioDevice) -> u64 {
    let hidden = match DeviceKind::from_id(device.device_id()) {
        Some(DeviceKind::Net) => VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ | VIRTIO_NET_F_GUEST_ANNOUNCE,
        _ => VIRTIO_BLK_F_CONFIG_WCE,
    };
    // Where a packed ring stands is known to its log only, and a device that uses chains in order keeps none.
    let packed = if device.tracks_in_flight() { 0 } else { VIRTIO_F_RING_PACKED };
    (device.features() & !hidden & !packed & !VIRTIO_F_RING_RESET) | OF_TRANSPORT
}

/// The configuration space as drivers are to read it now.
///
/// # Errors
/// The device's.
pub fn space(device: &dyn VirtioDevice) -> Result<Vec<u8>, String> {
    let mut space = vec![0; device.config_len()];
    device.config(0, &mut space)?;
    Ok(space)
}
