//! Kicks, calls and failures as messages (`INBAND_NOTIFICATIONS`), for rings that were given no eventfds for them.
//!
//! A worker never sends a message. It signals an eventfd of ours, as it does a driver's; the control thread finds that
//! through one descriptor ([`Session::notices`]) and says it on the back-end channel. A front-end that does not read its
//! channel holds nobody up: what it has not been told is remembered once for each ring, and told when there is room.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use mdev_protocol::frame::Connection;
use mdev_protocol::vhost_user::{BackendMessage, BackendReply, ProtocolFeatures, VringState};

use super::error::Refusal;
use super::reply::Outcome;
use super::vring::{Kick, Run};
use super::{Queues, Session};
use crate::sys::{EventFd, Interest, Kicks, Poll, Ready};

type Channel = Connection<BackendReply>;

/// What the back-end channel goes by in the poll; calls go by the indices of their rings.
const CHANNEL: u64 = 1 << 32;

/// What is watched and what is unsaid.
pub(super) struct InBand {
    poll: Poll,
    ready: Vec<Ready>,
    /// What the channel had no room for.
    unsaid: BTreeSet<(u16, Notice)>,
}

/// What there is to say of a ring.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notice {
    /// Buffers were used.
    Call,
    /// It has failed.
    Err,
}

impl InBand {
    /// Readable when there is something to say. The same as long as there is one.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// The channel is not watched any more.
    pub(super) fn leave(&self, channel: &Channel) {
        self.poll.remove(channel);
    }

    fn new() -> io::Result<Self> {
        Ok(InBand { poll: Poll::new()?, ready: Vec::new(), unsaid: BTreeSet::new() })
    }
}

impl Session {
    /// Tells the front-end what has come up.
    pub(super) fn say_in_band(&mut self) {
        let Some(in_band) = &mut self.in_band else { return };
        if in_band.poll.wait(Some(Duration::ZERO), &mut in_band.ready).is_err() {
            return;
        }
        let ready = std::mem::take(&mut in_band.ready);
        for &(key, _) in &ready {
            match u16::try_from(key) {
                Ok(index) => self.say_call(index),
                Err(_) => self.say_rest(),
            }
        }
        if let Some(in_band) = &mut self.in_band {
            in_band.ready = ready;
        }
    }

    /// A kick: starts the ring if it has been described, and is passed on to its worker if it runs. A ring that was told
    /// to be polled is.
    pub(super) fn vring_kick(
        &mut self,
        queues: &mut dyn Queues,
        state: VringState,
    ) -> Result<Outcome, Refusal> {
        let index = self.ring_index(state.index)?;
        match self.vrings.get(usize::from(index)).and_then(|vring| vring.kick.as_ref()) {
            Some(Kick::Event(event)) => {
                event.signal();
                self.start_ring(queues, index);
            }
            Some(Kick::Polled) => {}
            None => {
                let event = Arc::new(EventFd::new().map_err(Refusal::EventFd)?);
                event.signal();
                self.start_with(queues, index, Kick::Event(event));
            }
        }
        Ok(Outcome::Done)
    }

    /// The eventfd for a ring that starts without having been told of one: ours, if calls are messages.
    pub(super) fn call_of(&mut self, index: u16) -> Option<Arc<EventFd>> {
        let says = self.says_notices();
        let vring = self.vrings.get_mut(usize::from(index))?;
        if vring.call.is_some() || vring.call_told || !says {
            return vring.call.clone();
        }
        match own_call(&mut self.in_band, index) {
            Ok(event) => vring.call = Some(event),
            Err(error) => {
                if let Some(left_out) = self.log_limit.permit() {
                    let (name, conn) = (&self.name, self.conn);
                    log::warn!("{name}: connection {conn}: ring {index} cannot call: {error}{left_out}");
                }
            }
        }
        vring.call.clone()
    }

    /// The front-end has said how a ring is to call: not by a message.
    pub(super) fn forget_own_call(&mut self, index: u16) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        if let (false, Some(call), Some(in_band)) = (vring.call_told, &vring.call, &mut self.in_band) {
            in_band.poll.remove(call.as_ref());
            in_band.unsaid.remove(&(index, Notice::Call));
        }
        vring.call_told = true;
    }

    /// Passes a call on that a worker has made, if it has made one.
    pub(super) fn say_call(&mut self, index: u16) {
        let Some(vring) = self.vrings.get(usize::from(index)).filter(|vring| !vring.call_told) else {
            return;
        };
        let called = vring.call.as_ref().is_some_and(|call| matches!(call.drain(), Kicks::Some(_)));
        if called && vring.run != Run::Stopped {
            self.say(index, Notice::Call);
        }
    }

    /// A ring has failed, and its front-end wants to know by a message.
    pub(super) fn say_failure(&mut self, index: u16) {
        let told = self.vrings.get(usize::from(index)).is_none_or(|vring| vring.err_told);
        if !told && self.says_notices() {
            self.say(index, Notice::Err);
        }
    }

    fn says_notices(&self) -> bool {
        let agreed = ProtocolFeatures::INBAND_NOTIFICATIONS | ProtocolFeatures::BACKEND_REQ;
        self.negotiated.protocol.contains(agreed)
    }

    fn say(&mut self, index: u16, notice: Notice) {
        let Some(channel) = &mut self.channel else { return };
        let state = VringState { index: index.into(), num: 0 };
        let message = match notice {
            Notice::Call => BackendMessage::VringCall(state),
            Notice::Err => BackendMessage::VringErr(state),
        };
        let sent = match channel.flush() {
            Ok(true) => channel.send(&message.to_bytes(false), &[]).map_err(drop),
            Ok(false) => {
                if self.in_band.is_none() {
                    self.in_band = InBand::new().ok();
                }
                let Some(in_band) = &mut self.in_band else { return };
                if in_band.unsaid.is_empty() {
                    // Watched already is as good.
                    let _ = in_band.poll.add(&*channel, CHANNEL, Interest::WRITE);
                }
                in_band.unsaid.insert((index, notice));
                Ok(())
            }
            Err(_) => Err(()),
        };
        if sent.is_err() {
            self.channel = None;
        }
    }

    /// There is room in the channel again, or it is gone.
    pub(super) fn say_rest(&mut self) {
        let Some(in_band) = &mut self.in_band else { return };
        let unsaid = std::mem::take(&mut in_band.unsaid);
        if let Some(channel) = &self.channel {
            in_band.leave(channel);
        }
        for (index, notice) in unsaid {
            self.say(index, notice);
        }
    }
}

fn own_call(in_band: &mut Option<InBand>, index: u16) -> io::Result<Arc<EventFd>> {
    let event = Arc::new(EventFd::new()?);
    let in_band = match in_band {
        Some(there) => there,
        None => in_band.insert(InBand::new()?),
    };
    in_band.poll.add(event.as_ref(), index.into(), Interest::READ)?;
    Ok(event)
}
