//! The controller: what the host reads and writes to find the device, to enable it, and to give it queues.
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `mod` | what may be done to a controller |
//! | `registers` | what do the registers say (base specification, section 3.1.3) |
//! | `life` | how is it enabled, disabled, shut down and reset (sections 3.5 to 3.7) |
//! | `flush` | what does a shutdown wait for |
//! | `bus` | may it reach memory |
//! | `doorbell` | what follows from a doorbell that was trapped |
//! | `config_space`, `messages` | what is in its PCI configuration space, and in the table of its MSI-X vectors |
//! | `fuzzing` | does it stand whatever a host does |
//! | `admin` | which admin commands are there, and what do they do (section 5) |
//!
//! # Threads
//!
//! A [`Controller`] lives on the control thread, which reads and writes registers for the host and serves the admin queue. It
//! has no locks of its own and waits for nobody: I/O queues run on workers, which it reaches through its [`Host`]. What takes
//! time there, the end of a queue, is told to it later ([`Controller::stopped`]); until then the host reads that the
//! controller is not done.
//!
//! # What may go wrong
//!
//! Registers are written with anything: what has no meaning is ignored. Admin commands fail with the status that the
//! specification has for them. Where the memory of the admin queues is not there the controller looks again for a second, since
//! front-ends move memory in two steps, and then is in fatal status until the host resets it. One call serves at most
//! [`COMMANDS_AT_ONCE`] admin commands.
//!
//! # What it does not implement
//!
//! A subsystem reset, memory buffers, power states, coalesced interrupts (the feature is remembered and has no effect).

mod admin;
mod bus;
mod config_space;
mod doorbell;
mod flush;
mod fuzzing;
mod life;
mod messages;
mod registers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::{Iova, IovaRange};
use mdev_pin::Access;
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::status::Status;

use super::completion::CompletionQueue;
use super::submission::entries_at;
use super::{
    Doorbells, MAX_QUEUES, Mishap, Namespace, NvmeDevice, QueueNews, Shared, SubmissionSetup, Vectors,
};
use admin::{Aborts, AdminQueue, Events, Features};
use config_space::{Change, ConfigSpace};
use flush::Flush;
use life::Life;
use messages::MessageTable;
use registers::Registers;

pub use fuzzing::fuzz_controller;

/// Bytes of the first BAR: registers, and doorbells behind them.
pub const BAR0_LEN: u64 = 0x2000;
/// Bytes of the fifth BAR: the table of MSI-X vectors, and their pending bits behind it.
pub const BAR4_LEN: u64 = 0x2000;
/// Where in it the pending bits are.
pub const PENDING_OFFSET: u64 = 0x1000;
/// Admin commands that are served in one call.
pub const COMMANDS_AT_ONCE: u32 = 64;

/// What carries a controller.
pub trait Host {
    /// The device's attachment to guest memory.
    fn access(&self) -> &Access;

    /// An I/O submission queue begins to run. Its kick is the host's to fill in.
    fn start(&mut self, setup: SubmissionSetup);

    /// A queue that runs is to end: it takes nothing more, and what is in flight is aborted. Then [`Controller::stopped`] is to
    /// be called, by whoever called the controller, not from here.
    fn stop(&mut self, qid: u16);

    /// The address space is to keep these whole ([`mdev_pin::Ioas::keep_whole`]), and no others: where the entries of queues are, said
    /// before one of them begins to run, since each queue is read through one slice.
    fn keep_whole(&mut self, memory: Vec<IovaRange>);

    /// A command of a queue that runs is to be aborted, if that can still be done. Whether it was is told by
    /// [`Controller::queue_news`], by whoever called the controller, not from here; unless the queue ends before.
    fn abort(&mut self, qid: u16, cid: u16, number: u64);

    /// A doorbell of this I/O submission queue was trapped, or its completion queue has room again: it is to be looked at.
    fn kick(&mut self, qid: u16);
}

/// An I/O submission queue, as far as the control thread knows it.
struct Submission {
    /// Its completion queue.
    completion: u16,
    /// Where its entries are.
    range: Option<IovaRange>,
    state: SubmissionState,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum SubmissionState {
    Running,
    /// It ends because the controller does.
    Ending,
    /// It ends because this admin command deletes it.
    Deleting(u16),
}

/// What the host was told of a namespace: blocks, and whether it can be written.
type Seen = BTreeMap<u32, (u64, bool)>;

/// A controller, as its host reads and writes it. It lives on the control thread and waits for nobody: queues run on workers, which
/// it reaches through its [`Host`], and what takes time there is told to it later ([`Controller::stopped`]). After whatever is
/// called, [`Controller::next_deadline`] says when it wants to be called again.
pub struct Controller {
    shared: Arc<Shared>,
    doorbells: Arc<Doorbells>,
    vectors: Arc<Vectors>,
    /// Pairs of I/O queues.
    pairs: u16,
    space: ConfigSpace,
    messages: MessageTable,
    registers: Registers,
    life: Life,
    /// Something is wrong that only a reset heals.
    fatal: bool,
    /// While the controller is enabled.
    admin: Option<AdminQueue>,
    submissions: BTreeMap<u16, Submission>,
    completions: BTreeMap<u16, Arc<CompletionQueue>>,
    features: Features,
    events: Events,
    aborts: Aborts,
    /// The flush of a shutdown.
    flush: Option<Flush>,
    /// The stores were flushed for the shutdown that the host has asked for, or it was given up.
    flushed: bool,
    seen: Seen,
    /// Namespaces that have changed since the host read of it.
    changed: BTreeSet<u32>,
    created: Instant,
}

impl Controller {
    /// A controller that was just powered on.
    ///
    /// `vectors` has one more than the device has pairs of I/O queues: that is what MSI-X offers.
    pub fn new(device: &NvmeDevice, doorbells: Arc<Doorbells>, vectors: Arc<Vectors>) -> Self {
        let pairs = device.config().queues.min(MAX_QUEUES);
        let shared = device.shared().clone();
        shared.pause(false);
        let (seen, features) = (seen(&shared), Features::new(pairs));
        features.apply(&shared);
        Self {
            space: ConfigSpace::new(vectors.count()),
            messages: MessageTable::new(vectors.count()),
            registers: Registers::default(),
            life: Life::Disabled,
            fatal: false,
            admin: None,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            features,
            events: Events::default(),
            aborts: Aborts::default(),
            flush: None,
            flushed: false,
            seen,
            changed: BTreeSet::new(),
            created: Instant::now(),
            shared,
            doorbells,
            vectors,
            pairs,
        }
    }

    /// The client is ready for the next event of the pin (VFIO: it unmasks it). If the host has taken all completions meanwhile
    /// the pin falls, otherwise its event is signalled again.
    pub fn pin_unmasked(&mut self) {
        self.settle_pin();
        self.vectors.look_again();
    }

    /// Reads registers: 1, 2, 4 or 8 bytes at a multiple of that. Everything else reads as zeros, as do doorbells.
    pub fn read_bar0(&mut self, offset: u64, out: &mut [u8]) {
        let status = self.status();
        self.registers.read(offset, out, status, self.vectors.masked());
    }

    /// Writes registers: 4 or 8 bytes at a multiple of that. Everything else is ignored.
    pub fn write_bar0(&mut self, offset: u64, data: &[u8], host: &mut dyn Host) {
        let Ok(offset) = u32::try_from(offset) else { return };
        let (low, high) = match *data {
            [a, b, c, d] if offset.is_multiple_of(4) => ([a, b, c, d], None),
            [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => ([a, b, c, d], Some([e, f, g, h])),
            _ => return,
        };
        self.write_register(offset, u32::from_le_bytes(low), host);
        if let Some(high) = high {
            self.write_register(offset | 4, u32::from_le_bytes(high), host);
        }
    }

    /// Reads the table of MSI-X vectors or their pending bits, at any place. What is beyond them reads as zeros.
    pub fn read_bar4(&self, offset: u64, out: &mut [u8]) {
        self.messages.read(offset, out, &self.vectors);
    }

    /// Writes the table of MSI-X vectors, at any place. What is beyond it is ignored. Masks are heeded; addresses and data are only
    /// remembered, since clients tell by other means where interrupts go.
    pub fn write_bar4(&mut self, offset: u64, data: &[u8]) {
        self.messages.write(offset, data, &self.vectors);
    }

    /// Reads the PCI configuration space, at any place. What is beyond it reads as zeros.
    pub fn read_config(&self, offset: u64, out: &mut [u8]) {
        self.space.read(offset, out, self.vectors.is_asserted());
    }

    /// Writes the PCI configuration space, at any place. What is beyond it, or read-only, is ignored. May reset the controller.
    pub fn write_config(&mut self, offset: u64, data: &[u8], host: &mut dyn Host) {
        let Change { reset, by_message, messages_masked, pin_disabled, initiator } =
            self.space.write(offset, data);
        if let Some(masked) = messages_masked {
            self.vectors.mask_messages(masked);
        }
        if let Some(by_message) = by_message {
            self.vectors.set_by_message(by_message);
        }
        if let Some(disabled) = pin_disabled {
            self.vectors.disable_pin(disabled);
        }
        if let Some(permitted) = initiator {
            self.permit(permitted, host);
        }
        if reset {
            self.reset(host);
        }
    }

    /// A queue that [`Host::stop`] was called for has ended.
    pub fn stopped(&mut self, qid: u16, host: &mut dyn Host) {
        let Some(submission) = self.submissions.remove(&qid) else { return };
        self.aborts.queue_ended(qid);
        if let (SubmissionState::Deleting(cid), Some(admin)) = (submission.state, &mut self.admin) {
            admin.succeeded(cid);
            self.serve_admin(host);
        }
        self.settle(host);
    }

    /// The engine of a queue has told of trouble, or of an abort.
    pub fn queue_news(&mut self, qid: u16, news: QueueNews, host: &mut dyn Host) {
        match news {
            QueueNews::InvalidDoorbell { .. } => self.event(Event::INVALID_DOORBELL_VALUE),
            QueueNews::Abort { number, aborted } => self.aborts.told(number, aborted),
            failure if self.submissions.contains_key(&qid) => {
                self.fail(format_args!("queue {qid} has failed, {failure}"));
            }
            _ => {}
        }
        self.serve_admin(host);
    }

    /// [`Controller::next_deadline`] has passed: looks at what is waited for.
    pub fn look(&mut self, host: &mut dyn Host) {
        self.settle(host);
        self.aborts.expire(Instant::now());
        self.serve_admin(host);
    }

    /// Looks at the admin queue: one of its doorbells was written by a client that maps them.
    pub fn serve_admin(&mut self, host: &mut dyn Host) {
        if self.life != Life::Enabled || self.fatal || self.shared.is_paused() {
            return;
        }
        let Some(mut admin) = self.admin.take() else { return };
        let now = Instant::now();
        match self.serve(&mut admin, host) {
            Ok(more) => admin.rest(more, now),
            Err(error) if admin.lacks(error, now) => {
                self.fail(format_args!("the memory of the admin queue cannot be used, {error}"));
            }
            Err(_) => admin.rest(false, now),
        }
        self.admin = Some(admin);
    }

    /// When to call [`Controller::look`] even though nobody wrote a doorbell: commands are left, or memory is not there, or the host
    /// has no room for completions; an abort has waited for long enough; a shutdown waits for its flush.
    pub fn next_deadline(&self) -> Option<Instant> {
        let serves = self.life == Life::Enabled && !self.fatal && !self.shared.is_paused();
        let admin = self.admin.as_ref().filter(|_| serves);
        let queue = admin.and_then(AdminQueue::deadline);
        let abort = admin.and_then(|_| self.aborts.deadline());
        let flush = self.flush.as_ref().map(Flush::deadline);
        queue.into_iter().chain(abort).chain(flush).min()
    }

    /// The function is reset: by its device control register, by the transport, or because its client is gone. All queues end;
    /// registers, features and the configuration space are as after power-on.
    pub fn reset(&mut self, host: &mut dyn Host) {
        self.space.reset();
        self.messages.reset();
        self.registers = Registers::default();
        self.vectors.reset();
        self.shared.pause(false);
        self.end(life::Ending::Disabled, host);
    }

    /// Where the entries of its queues are, while it is enabled: what the address space is to keep whole
    /// ([`mdev_pin::Ioas::keep_whole`]), since each queue is read through one slice.
    pub fn queue_memory(&self) -> Vec<IovaRange> {
        let Registers { attributes, submission, completion, .. } = self.registers;
        let admin = self.admin.iter().flat_map(|_| {
            let count = |entries: u16| u32::from(entries).saturating_add(1);
            [
                entries_at(Iova(submission), count(attributes.submission()), Command::LEN),
                entries_at(Iova(completion), count(attributes.completion()), Completion::LEN),
            ]
        });
        let completions = self.completions.values().map(|queue| queue.range());
        let submissions = self.submissions.values().map(|queue| queue.range);
        admin.chain(completions).chain(submissions).flatten().collect()
    }

    /// Whether none of its queues runs.
    pub fn is_quiet(&self) -> bool {
        self.submissions.is_empty()
    }

    /// Namespaces may have come, gone or changed their size: the host is told.
    pub fn namespaces_changed(&mut self, host: &mut dyn Host) {
        self.notice_namespaces();
        self.serve_admin(host);
    }

    /// What is in flight takes too long for whoever waits for it: all queues end, and the host reads a fatal status until it resets
    /// the controller.
    pub fn give_up(&mut self, host: &mut dyn Host) {
        self.fail(format_args!("its commands do not end in time"));
        for (qid, submission) in &mut self.submissions {
            if submission.state == SubmissionState::Running {
                submission.state = SubmissionState::Ending;
                host.stop(*qid);
            }
        }
    }

    /// Only a reset helps.
    fn fail(&mut self, why: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.fatal, true)
            && let Some(left_out) = life::FAILURES.permit()
        {
            log::warn!(
                "{}: the controller failed until its host resets it: {why}{left_out}",
                self.shared.name
            );
        }
    }
}

/// What hosts are told of the namespaces that are attached.
fn seen(shared: &Shared) -> Seen {
    let (_, attached) = shared.namespaces.attached();
    attached.iter().map(|one: &Arc<Namespace>| (one.nsid, (one.blocks(), one.read_only))).collect()
}

/// A command of the admin queue that failed, for the log.
fn mishap(cid: u16, nsid: u32, status: Status) -> Mishap {
    Mishap { qid: 0, cid, status, location: u16::MAX, block: 0, nsid }
}

#[cfg(test)]
mod tests;
