//! The life of a controller: enabled, disabled, shut down, reset.
//!
//! The end of the queues takes time. Until all have ended the controller is *ending*: it serves nothing, and the host reads that it is
//! still ready, or shutting down. A host that enables it again meanwhile has it enabled when it has ended. A normal shutdown also
//! waits for the stores to be flushed ([`super::flush`]); whoever disables or resets the controller meanwhile without wanting that
//! shutdown any more does not.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::register::{
    Configuration,
    csts::{FATAL, READY, SHUT_DOWN, SHUTTING_DOWN},
};

use super::admin::{Aborts, AdminQueue, Events, Features};
use super::flush::Flush;
use super::{Controller, Host, SubmissionState, seen};
use crate::limit::LogLimit;

/// The shutdown that makes data durable (`CC.SHN`).
const NORMAL: u8 = 1;

/// Hosts can cause these.
pub(super) static FAILURES: LogLimit = LogLimit::new(8, Duration::from_secs(10));

/// Where a controller is in its life.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It was reset, or could not be enabled.
    Disabled,
    /// It serves its queues.
    Enabled,
    /// Its queues end.
    Ending(Ending),
    /// They have ended, and it waits for its reset.
    ShutDown,
}

/// What comes when the queues have ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Disabled,
    ShutDown,
}

impl Controller {
    /// The register CSTS.
    pub(super) fn status(&self) -> u32 {
        let wants_shutdown = self.registers.configuration.shutdown() != 0;
        let (ready, shutdown) = match self.life {
            Life::Disabled if wants_shutdown => (0, SHUT_DOWN),
            Life::Disabled => (0, 0),
            Life::Enabled => (READY, 0),
            Life::Ending(Ending::Disabled) => {
                // What is waited for once the queues have ended is a flush.
                let ready = if self.submissions.is_empty() { 0 } else { READY };
                (ready, if wants_shutdown { SHUTTING_DOWN } else { 0 })
            }
            Life::Ending(Ending::ShutDown) => (READY, SHUTTING_DOWN),
            Life::ShutDown => (READY, SHUT_DOWN),
        };
        ready | shutdown | if self.fatal { FATAL } else { 0 }
    }

    /// A write to CC.
    pub(super) fn configure(&mut self, value: u32, host: &mut dyn Host) {
        let old = self.registers.configuration;
        let mut new = Configuration(value & Configuration::FIELDS);
        if old.enabled() && new.enabled() {
            new = Configuration(new.0 & !Configuration::FIXED | old.0 & Configuration::FIXED);
        }
        self.registers.configuration = new;
        if new.shutdown() == 0 {
            self.flushed = false;
        }
        match (old.enabled(), new.enabled()) {
            (false, true) if self.life == Life::Disabled => self.enable(host),
            (true, false) => self.end(Ending::Disabled, host),
            _ => {}
        }
        match self.life {
            Life::Enabled if new.shutdown() != 0 => self.end(Ending::ShutDown, host),
            // There is nothing to end, but there may be data that are not durable.
            Life::Disabled if !new.enabled() && new.shutdown() == NORMAL && !self.flushed => {
                self.end(Ending::Disabled, host);
            }
            // It may not want a shutdown any more.
            _ => self.settle(host),
        }
    }

    fn enable(&mut self, host: &mut dyn Host) {
        let super::Registers { configuration, attributes, submission, completion } = self.registers;
        if configuration.command_set() != 0 || configuration.page() != 0 || configuration.arbitration() != 0 {
            return self
                .fail(format_args!("CC is {:#x}, which the controller does not support", configuration.0));
        }
        if attributes.submission() == 0 || attributes.completion() == 0 {
            return self.fail(format_args!("AQA is {:#x}, but a queue has two entries", attributes.0));
        }
        self.flushed = false;
        self.doorbells.reset();
        let bases = (submission, completion);
        self.admin = Some(AdminQueue::new(
            host.access(),
            &self.shared,
            attributes,
            bases,
            &self.doorbells,
            &self.vectors,
        ));
        host.keep_whole(self.queue_memory());
        self.seen = seen(&self.shared);
        self.life = Life::Enabled;
    }

    /// All queues end; then what is said.
    pub(super) fn end(&mut self, then: Ending, host: &mut dyn Host) {
        if then == Ending::Disabled {
            self.admin = None;
        }
        self.life = Life::Ending(then);
        for (qid, submission) in &mut self.submissions {
            if submission.state == SubmissionState::Running {
                host.stop(*qid);
            }
            submission.state = SubmissionState::Ending;
        }
        self.settle(host);
    }

    /// Whether the host wants a normal shutdown, and the stores have not been flushed for it yet. An abrupt one does not wait for
    /// them, nor does a reset.
    fn is_flushing(&mut self) -> bool {
        if self.flushed || self.registers.configuration.shutdown() != NORMAL {
            return false;
        }
        let now = Instant::now();
        let flush = self.flush.get_or_insert_with(|| Flush::new(now));
        self.flushed = flush.is_over(&self.shared, now);
        !self.flushed
    }

    /// If the queues had to end and have ended: what comes then.
    pub(super) fn settle(&mut self, host: &mut dyn Host) {
        let Life::Ending(then) = self.life else { return };
        if !self.submissions.is_empty() || self.is_flushing() {
            return;
        }
        self.flush = None;
        match then {
            Ending::ShutDown => self.life = Life::ShutDown,
            Ending::Disabled => {
                self.life = Life::Disabled;
                self.fatal = false;
                self.admin = None;
                self.completions.clear();
                self.features = Features::new(self.pairs);
                self.features.apply(&self.shared);
                self.events = Events::default();
                self.aborts = Aborts::default();
                self.changed.clear();
                self.doorbells.reset();
                self.vectors.lower();
                self.vectors.unmask(u32::MAX);
                if self.registers.configuration.enabled() {
                    self.enable(host);
                }
            }
        }
    }
}
