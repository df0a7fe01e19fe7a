//! Whether the function may reach memory: the bus initiator bit of the PCI command register.
//!
//! A host that takes it back has its queues paused: after the burst that is under way nothing is fetched, no data of commands that
//! need no time are moved, nothing is posted, nobody is interrupted. Only what stores have in flight still moves its data. Nothing
//! is asked of a client that keeps memory, though it may answer what it was asked before. A host that never sets the bit is served, since
//! some clients know nothing of it.

use std::sync::atomic::Ordering;

use super::{Controller, Host};
use crate::device::nvme::Shared;

impl Shared {
    /// Whether nothing may be taken from the host's memory or put there, nor asked of a client that keeps it.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(super) fn pause(&self, paused: bool) {
        if self.paused.swap(paused, Ordering::AcqRel) && !paused {
            self.pauses.fetch_add(1, Ordering::Release);
        }
    }

    /// How often it was paused and is permitted again.
    pub(in super::super) fn pauses(&self) -> u32 {
        self.pauses.load(Ordering::Acquire)
    }
}

impl Controller {
    /// The function may reach memory from now on, or must not any more.
    pub(super) fn permit(&mut self, permitted: bool, host: &mut dyn Host) {
        self.shared.pause(!permitted);
        if permitted {
            self.submissions.keys().for_each(|qid| self.kick(*qid, host));
            self.serve_admin(host);
        }
    }
}
