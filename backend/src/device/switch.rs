//! Whether a vring is enabled, as its session and its worker both see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether a vring is enabled (vhost-user, "Ring states").
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Enabled {
    /// It has not been enabled since it was started: it is left alone until it is.
    NotYet,
    /// It moves data.
    Yes,
    /// It was disabled while it ran: it supplies nothing, and what it is given is discarded.
    No,
}

/// The switch of one vring; cloning shares it.
///
/// Shared rather than told, because a driver may use the ring as soon as its front-end has the reply: a worker that has
/// seen the driver's chain then sees the switch as it was set before the reply. Explored by the hostile suite, whose
/// guests send as soon as their rings are enabled.
#[derive(Clone, Debug)]
pub struct Switch(Arc<AtomicU8>);

impl Switch {
    /// A switch that nobody has touched.
    pub fn new(enabled: Enabled) -> Self {
        Switch(Arc::new(AtomicU8::new(enabled as u8)))
    }

    /// Where it is.
    #[inline(always)]
    pub fn get(&self) -> Enabled {
        // Acquire, and Release below: whoever sees it set sees what its session did before.
        match self.0.load(Ordering::Acquire) {
            YES => Enabled::Yes,
            NO => Enabled::No,
            _ => Enabled::NotYet,
        }
    }

    /// Turns it.
    pub fn set(&self, enabled: Enabled) {
        self.0.store(enabled as u8, Ordering::Release);
    }
}

const YES: u8 = Enabled::Yes as u8;
const NO: u8 = Enabled::No as u8;
