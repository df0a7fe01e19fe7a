//! Whether the function may reach memory: the bus initiator bit of the PCI command register.
//!
//! A host that takes it back has its queues paused: after the burst that is under way nothing is fetched, no data of commands that
//! need no time are moved, nothing is posted, nobody is interrupted. Only what stores have in flight still moves its data. Nothing
//! is asked of a client that keeps memory, though it may answer what it was asked before. A host that never sets the bit is served, since
//! some clients know nothing of it.

use super::{Controller, Host};

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
