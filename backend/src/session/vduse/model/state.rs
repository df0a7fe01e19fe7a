//! What the kernel knows of a device, and the messages about it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mdev_protocol::vduse::{Answer, Expected, MESSAGE_LEN, RequestKind, Response, VqState};
use mdev_protocol::virtio::feature::VIRTIO_F_RING_PACKED;
use mdev_protocol::virtio::packed::Position;
use mdev_protocol::virtio::status::DRIVER_OK;
use rustix::io::{read, write};
use rustix::net::{Shutdown, shutdown};

use super::Action;
use super::table::Table;
use crate::sys::EventFd;

/// Where a driver has put a queue.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Descriptors of its ring.
    pub size: u32,
    /// The addresses of its parts: descriptors, driver's, device's.
    pub parts: [u64; 3],
    /// Where it is to start, if that is not its beginning.
    pub state: Option<VqState>,
}

/// A request.
pub(super) struct Message {
    pub(super) bytes: [u8; MESSAGE_LEN],
    pub(super) expected: Expected,
    /// Whoever has the file open can read it, or has.
    pub(super) sent: bool,
}

pub(super) struct Vq {
    pub(super) place: Place,
    pub(super) ready: bool,
    kicked: bool,
    kick: Option<EventFd>,
    pub(super) call: Arc<EventFd>,
    pub(super) calls: u64,
}

pub(super) struct State {
    queues: Vec<Vq>,
    pub(super) space: Vec<u8>,
    pub(super) config_calls: u64,
    pub(super) status: u8,
    pub(super) features: u64,
    pub(super) suspended: bool,
    broken: bool,
    pub(super) table: Table,
    pub(super) starved: bool,
    next: u32,
    /// By number, which is the order in which they were asked.
    pub(super) unanswered: BTreeMap<u32, Message>,
    answers: BTreeMap<u32, Answer>,
    pub(super) unheard: u64,
    channel: Option<OwnedFd>,
    /// Which of those that have opened the file has it.
    pub(super) generation: u64,
}

impl State {
    pub(super) fn new(queues: u16, space: Vec<u8>) -> io::Result<State> {
        let queue = |_| {
            let call = Arc::new(EventFd::new()?);
            let (place, calls) = Default::default();
            Ok(Vq { place, ready: false, kicked: false, kick: None, call, calls })
        };
        Ok(State {
            queues: (0..queues).map(queue).collect::<io::Result<_>>()?,
            space,
            config_calls: 0,
            status: 0,
            features: 0,
            suspended: false,
            broken: false,
            table: Table::default(),
            starved: false,
            next: 1,
            unanswered: BTreeMap::new(),
            answers: BTreeMap::new(),
            unheard: 0,
            channel: None,
            generation: 0,
        })
    }

    pub(super) fn queue_mut(&mut self, index: u16) -> Option<&mut Vq> {
        self.queues.get_mut(usize::from(index))
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn is_packed(&self) -> bool {
        self.features & VIRTIO_F_RING_PACKED != 0
    }

    /// Whether the driver can be interrupted.
    pub(super) fn listens(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.suspended
    }

    /// Somebody opens the file: as whom.
    pub(super) fn open(&mut self, channel: OwnedFd) -> u64 {
        // What was answered before its death counts.
        self.receive();
        self.release(self.generation);
        self.generation = self.generation.wrapping_add(1);
        if self.broken {
            let _ = shutdown(&channel, Shutdown::Both);
        }
        self.channel = Some(channel);
        self.send();
        self.generation
    }

    /// Whoever has the file closes it.
    pub(super) fn release(&mut self, generation: u64) {
        if generation == self.generation {
            self.receive();
            self.channel = None;
            self.unanswered.values_mut().for_each(|message| message.sent = false);
        }
    }

    pub(super) fn expected(&self, kind: RequestKind) -> Expected {
        match kind {
            RequestKind::GetVqState { .. } if self.is_packed() => Expected::Packed,
            RequestKind::GetVqState { .. } => Expected::Split,
            _ => Expected::Done,
        }
    }

    pub(super) fn ask(&mut self, message: impl FnOnce(u32) -> Message) -> u32 {
        let id = self.next;
        self.next = id.wrapping_add(1);
        // Of a broken device nothing is asked: the request fails at once.
        if !self.broken {
            self.unanswered.insert(id, message(id));
            self.send();
        }
        id
    }

    pub(super) fn take_answer(&mut self, id: u32) -> Option<Answer> {
        self.answers.remove(&id)
    }

    pub(super) fn forget(&mut self, id: u32) {
        self.unanswered.remove(&id);
        self.answers.remove(&id);
    }

    /// Sends what there is room for, and takes what was answered.
    pub(super) fn exchange(&mut self) {
        self.receive();
        self.send();
    }

    fn send(&mut self) {
        let Some(channel) = &self.channel else { return };
        for message in self.unanswered.values_mut().filter(|message| !message.sent) {
            message.sent = write(channel, &message.bytes).is_ok();
            if !message.sent {
                return;
            }
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; MESSAGE_LEN + 1];
        while let Some(channel) = &self.channel
            && let Ok(len) = read(channel.as_fd(), &mut bytes[..])
            && len > 0
        {
            let told = bytes.get(..len).unwrap_or_default();
            let id = told.first_chunk().map_or(0, |id| u32::from_ne_bytes(*id));
            let Some(message) = self.unanswered.get(&id) else {
                self.unheard = self.unheard.saturating_add(1);
                continue;
            };
            // What makes no sense is refused, and the request is still to be answered.
            if let Ok(Response { answer, .. }) = Response::decode(told, message.expected) {
                self.unanswered.remove(&id);
                self.answers.insert(id, answer);
            }
        }
    }

    pub(super) fn break_device(&mut self) {
        self.broken = true;
        self.unanswered.clear();
        if let Some(channel) = &self.channel {
            let _ = shutdown(channel, Shutdown::Both);
        }
    }

    /// What was asked for takes effect, or does not.
    pub(super) fn apply(&mut self, action: &Action, done: bool) {
        match action {
            Action::SetStatus(status) if done => self.status = *status,
            Action::Reset => self.reset(),
            Action::SetReady { index, ready } if done => {
                if let Some(queue) = self.queue_mut(*index) {
                    queue.ready = *ready;
                }
            }
            Action::SetReady { .. } => self.break_device(),
            Action::SetMap(_) if !done => self.table.set(Vec::new()),
            Action::Suspend if done => self.suspended = true,
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.status, self.features, self.suspended) = (0, 0, false);
        for queue in &mut self.queues {
            queue.place = Place::default();
            (queue.ready, queue.kicked, queue.kick) = (false, false, None);
        }
    }

    pub(super) fn kick(&mut self, index: u16) {
        let suspended = self.suspended;
        let Some(queue) = self.queue_mut(index).filter(|queue| !suspended && queue.ready) else { return };
        match &queue.kick {
            Some(kick) => kick.signal(),
            None => queue.kicked = true,
        }
    }

    pub(super) fn state_of(&self, place: Place) -> VqState {
        let fresh = match self.is_packed() {
            // Nobody has said anything: all zero, which is a position with its counter at 0.
            true => {
                let zero = Position { slot: 0, wrap: false };
                VqState::Packed { avail: zero, used: zero }
            }
            false => VqState::Split { avail_index: 0 },
        };
        place.state.unwrap_or(fresh)
    }
}

impl Vq {
    pub(super) fn set_kick(&mut self, kick: Option<EventFd>) {
        self.kick = kick;
        if let Some(kick) = self.kick.as_ref().filter(|_| self.ready && self.kicked) {
            kick.signal();
            self.kicked = false;
        }
    }

    /// An interrupt of a queue that is not enabled is lost.
    pub(super) fn interrupt(&mut self) {
        if self.ready {
            self.calls = self.calls.saturating_add(1);
            self.call.signal();
        }
    }
}
