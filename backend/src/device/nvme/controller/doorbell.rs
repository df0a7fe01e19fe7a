//! Writes to registers that have effects: doorbells that were trapped, interrupt masks, the configuration.

use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::register::{CC, DOORBELLS, INTMC, INTMS};

use super::life::Life;
use super::{BAR0_LEN, Controller, Host, SubmissionState};

impl Controller {
    /// A write of 32 bits.
    pub(super) fn write_register(&mut self, offset: u32, value: u32, host: &mut dyn Host) {
        match offset {
            CC => self.configure(value, host),
            INTMS => self.vectors.mask(value),
            INTMC => self.vectors.unmask(value),
            DOORBELLS.. if u64::from(offset) < BAR0_LEN => {
                let number = offset.saturating_sub(DOORBELLS) / 4;
                // A page has 1024 of them.
                self.ring((number / 2) as u16, !number.is_multiple_of(2), value, host);
            }
            _ => self.registers.keep(offset, value),
        }
    }

    fn ring(&mut self, qid: u16, is_head: bool, value: u32, host: &mut dyn Host) {
        if self.life != Life::Enabled || self.fatal {
            return;
        }
        let known = match (qid, is_head) {
            (0, _) => true,
            (_, true) => self.completions.contains_key(&qid),
            (_, false) => self.submissions.contains_key(&qid),
        };
        if !known {
            self.event(Event::INVALID_DOORBELL_REGISTER);
            return self.serve_admin(host);
        }
        if is_head {
            self.doorbells.set_head(qid, value);
            self.consumed(qid, host);
        } else {
            self.doorbells.set_tail(qid, value);
            self.kick(qid, host);
        }
        if qid == 0 {
            self.serve_admin(host);
        }
    }

    /// A queue is to be looked at, if it runs.
    pub(super) fn kick(&self, qid: u16, host: &mut dyn Host) {
        if self.submissions.get(&qid).is_some_and(|one| one.state == SubmissionState::Running) {
            host.kick(qid);
        }
    }

    /// The host has taken entries of a completion queue: those who wait for room go on, and the pin may fall.
    fn consumed(&mut self, qid: u16, host: &mut dyn Host) {
        if let Some(completion) = self.completions.get(&qid)
            && completion.take_awaited()
        {
            let of_it = self.submissions.iter().filter(|(_, one)| one.completion == qid);
            of_it.for_each(|(sq, _)| self.kick(*sq, host));
        }
        self.settle_pin();
    }

    /// The pin falls if the host has taken all completions.
    pub(super) fn settle_pin(&mut self) {
        if self.vectors.is_asserted() && !self.shared.is_paused() && !self.has_entries() {
            self.vectors.lower();
            // Whoever posted in between raised it for nothing.
            if self.has_entries() {
                self.vectors.raise(0);
            }
        }
    }

    /// Whether a completion queue that interrupts has entries that the host has not taken.
    fn has_entries(&mut self) -> bool {
        let Some(admin) = &mut self.admin else { return false };
        let burst = admin.way.enter();
        let queues = self.completions.values().chain([&admin.completion]);
        queues.filter(|queue| queue.vector().is_some()).any(|queue| queue.has_entries(&burst))
    }
}
