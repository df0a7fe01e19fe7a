//! The device status field (virtio 1.3, section 2.1). Each constant is a mask.

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The guest knows how to drive it.
pub const DRIVER: u8 = 2;
/// The driver is ready: the device is live.
pub const DRIVER_OK: u8 = 4;
/// The driver has acknowledged the features it understands.
pub const FEATURES_OK: u8 = 8;
/// The device has met an error it cannot recover from without a reset.
pub const DEVICE_NEEDS_RESET: u8 = 64;
/// The guest has given up on the device.
pub const FAILED: u8 = 128;
