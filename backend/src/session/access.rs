//! What a device promises to the address space of a session.

use std::sync::Arc;

use mdev_dma::IovaRange;
use mdev_pin::{Access, AccessOps};

use crate::device::Device;

/// A device lets go of pins when its requests end, not when it is told.
struct Diverted {
    device: Arc<dyn Device>,
}

impl AccessOps for Diverted {
    fn on_unmap(&self, _range: IovaRange) {}

    fn cancel(&self, _range: IovaRange) -> bool {
        !self.device.gives_memory_to_kernel()
    }
}

/// The attachment of a device. A pin that outlives a burst goes when its request ends: an unmap waits for that, up to its
/// deadline.
pub(super) fn access_of(device: Arc<dyn Device>) -> Access {
    let create = if device.holds_pins() { Access::new } else { Access::without_pins };
    create(Arc::new(Diverted { device }))
}
