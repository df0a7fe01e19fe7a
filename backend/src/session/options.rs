//! What the operator of a session may choose.

use std::time::Duration;

use mdev_dma::FilePolicy;

/// What an operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Which files guest memory may lie in.
    pub files: FilePolicy,
    /// How long the device may take to let go of memory or rings before a reply says that it did not.
    pub barrier: Duration,
    /// Whether memory is populated when it is announced, instead of at its first access.
    pub prefault: bool,
    /// Whether drivers may reset single rings (`VIRTIO_F_RING_RESET`). Only for front-ends that stop such a ring here and
    /// start it anew; QEMU 11 passes the feature on to the guest and keeps the reset to itself.
    pub ring_reset: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            files: FilePolicy::default(),
            barrier: Duration::from_secs(30),
            prefault: false,
            ring_reset: false,
        }
    }
}
