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
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { files: FilePolicy::default(), barrier: Duration::from_secs(30), prefault: false }
    }
}
