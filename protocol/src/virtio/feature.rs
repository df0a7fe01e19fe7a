//! Feature bits that do not belong to one device type (virtio 1.3, section 6), and the two bits that vhost
//! borrows from that space. Each constant is a mask.

/// Logging of dirty pages (vhost's own bit 26; never shown to the guest).
pub const VHOST_F_LOG_ALL: u64 = 1 << 26;
/// The driver may use indirect descriptor tables.
pub const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event` replace the notification flags.
pub const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
/// The back-end knows `GET_PROTOCOL_FEATURES` (vhost-user's own use of bit 30; never shown to the guest).
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device complies with virtio 1.0 or later.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Addresses in rings and descriptors are IOVAs that the device must have translated.
pub const VIRTIO_F_ACCESS_PLATFORM: u64 = 1 << 33;
/// The packed ring layout.
pub const VIRTIO_F_RING_PACKED: u64 = 1 << 34;
/// The device uses buffers in the order in which they were made available.
pub const VIRTIO_F_IN_ORDER: u64 = 1 << 35;
/// Memory accesses are ordered as the platform describes.
pub const VIRTIO_F_ORDER_PLATFORM: u64 = 1 << 36;
/// The device supports single-root I/O virtualisation.
pub const VIRTIO_F_SR_IOV: u64 = 1 << 37;
/// Available-buffer notifications carry extra data.
pub const VIRTIO_F_NOTIFICATION_DATA: u64 = 1 << 38;
/// The driver takes the notification data from the device's configuration.
pub const VIRTIO_F_NOTIF_CONFIG_DATA: u64 = 1 << 39;
/// A queue can be reset by itself.
pub const VIRTIO_F_RING_RESET: u64 = 1 << 40;
