//! Translations that queues lack: asked for on the back-end channel, one for each ring at a time.
//!
//! A queue that misses a translation is parked and asks once; it asks again when it has looked again. The update that
//! brings the translation comes on the connection itself and wakes the queue. So what is asked for here is never
//! waited for: no reply depends on it, as the front-end serves misses in the same loop in which it waits for our
//! replies. Where acknowledgements were negotiated the front-end says when it has done what it could. An update that is
//! not there by then will not come, and the queue is told to give up; but first everything the connection has to say is
//! read, since the two sockets are not read in the order in which they were written.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use mdev_dma::{Iova, IovaRange, Perm};
use mdev_protocol::frame::Received;
use mdev_protocol::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, Iotlb, IotlbPerm, ProtocolFeatures,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::vring::Run;
use super::{Queues, Session};
use crate::session::translations::Event;

/// How often answers are looked for while a ring waits for one.
const LOOK: Duration = Duration::from_millis(1);
/// Unanswered questions at most, met ones included: a front-end that does not acknowledge is not asked any more.
const MAX_SENT: usize = 256;

/// What rings have asked for.
#[derive(Default)]
pub(super) struct Misses {
    /// By ring: still to be sent.
    wanted: BTreeMap<u16, Missing>,
    /// To be acknowledged, in this order.
    sent: VecDeque<Sent>,
    /// Acknowledged without an update.
    refused: Vec<(u16, Missing)>,
}

#[derive(Copy, Clone, Debug)]
struct Missing {
    iova: Iova,
    perm: Perm,
}

struct Sent {
    /// `None`: nobody waits for it any more.
    ring: Option<u16>,
    missing: Missing,
}

impl Misses {
    /// A translation has come.
    pub(super) fn met(&mut self, range: IovaRange, perm: Perm) {
        let met = |missing: &Missing| range.contains(missing.iova) && perm.contains(missing.perm);
        self.wanted.retain(|_, missing| !met(missing));
        self.refused.retain(|(_, missing)| !met(missing));
        for sent in self.sent.iter_mut().filter(|sent| met(&sent.missing)) {
            sent.ring = None;
        }
    }

    /// A ring waits for nothing any more.
    pub(super) fn forget(&mut self, ring: u16) {
        self.wanted.remove(&ring);
        self.refused.retain(|(other, _)| *other != ring);
        for sent in self.sent.iter_mut().filter(|sent| sent.ring == Some(ring)) {
            sent.ring = None;
        }
    }

    fn waits(&self) -> bool {
        !self.wanted.is_empty()
            || !self.refused.is_empty()
            || self.sent.iter().any(|sent| sent.ring.is_some())
    }
}

impl Session {
    /// A running ring is parked because it lacks a translation for this.
    pub(super) fn translation_missed(&mut self, queues: &mut dyn Queues, index: u16, iova: Iova, perm: Perm) {
        let running = self.vrings.get(usize::from(index)).is_some_and(|vring| vring.run == Run::Running);
        let Some(iommu) = self.iommu.as_mut().filter(|_| running) else { return };
        iommu.misses.forget(index);
        iommu.misses.wanted.insert(index, Missing { iova, perm });
        self.ask(queues);
    }

    /// Looks for answers, and asks for what is still to be asked for. Says when to be called again.
    pub(super) fn look_for_answers(&mut self, queues: &mut dyn Queues, now: Instant) -> Option<Instant> {
        self.iommu.as_ref().filter(|iommu| iommu.misses.waits())?;
        self.hear();
        self.judge(queues);
        self.ask(queues);
        let waits = self.iommu.as_ref().is_some_and(|iommu| iommu.misses.waits());
        waits.then(|| now.checked_add(LOOK)).flatten()
    }

    /// Sends what is to be asked for, as far as the front-end reads.
    fn ask(&mut self, queues: &mut dyn Queues) {
        let acknowledged = self.negotiated.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let Some(iommu) = &mut self.iommu else { return };
        while let Some((&ring, &missing)) = iommu.misses.wanted.first_key_value() {
            let Some(channel) = &mut self.channel else {
                iommu.misses.forget(ring);
                self.forsake(queues, ring, missing, "there is no back-end channel to ask for it");
                return self.ask(queues);
            };
            if iommu.misses.sent.len() >= MAX_SENT {
                return;
            }
            let message = Iotlb::Miss { iova: missing.iova.0, perm: access(missing.perm) };
            let message = BackendMessage::IotlbMsg(message).to_bytes(acknowledged);
            let sent = match channel.flush() {
                Ok(true) => channel.send(&message, &[]).is_ok(),
                Ok(false) => return,
                Err(_) => false,
            };
            if !sent {
                self.channel = None;
                continue;
            }
            self.translations.count(Event::Miss);
            iommu.misses.wanted.remove(&ring);
            if acknowledged {
                iommu.misses.sent.push_back(Sent { ring: Some(ring), missing });
            }
        }
    }

    /// Takes acknowledgements.
    fn hear(&mut self) {
        let (Some(iommu), Some(channel)) = (&mut self.iommu, &mut self.channel) else { return };
        for _ in 0..MAX_SENT {
            match channel.receive() {
                Ok(Received::Message(frame)) => {
                    let asked = matches!(frame.message,
                        BackendReply::Ack { request, .. } if request == BackendRequest::IotlbMsg.id());
                    let sent = if asked { iommu.misses.sent.pop_front() } else { None };
                    if let Some(Sent { ring: Some(ring), missing }) = sent {
                        iommu.misses.refused.push((ring, missing));
                    }
                }
                Ok(Received::Rejected { .. }) => {}
                Ok(Received::WouldBlock) => return,
                Ok(Received::Closed) | Err(_) => {
                    self.channel = None;
                    return;
                }
            }
        }
    }

    /// Ends the waits for what was refused, once the connection has nothing more to say.
    fn judge(&mut self, queues: &mut dyn Queues) {
        if self.barrier.is_some() || self.has_input() {
            return;
        }
        let Some(iommu) = &mut self.iommu else { return };
        let mut refused = std::mem::take(&mut iommu.misses.refused);
        if self.channel.is_none() {
            let sent = iommu.misses.sent.drain(..);
            refused.extend(sent.filter_map(|sent| Some((sent.ring?, sent.missing))));
        }
        for (ring, missing) in refused {
            self.forsake(queues, ring, missing, "the front-end has none");
        }
    }

    /// Tells a queue that its translation will not come.
    fn forsake(&mut self, queues: &mut dyn Queues, ring: u16, missing: Missing, why: &str) {
        queues.forsake(self.conn, ring, missing.iova);
        if let Some(left_out) = self.log_limit.permit() {
            let Missing { iova, perm } = missing;
            log::warn!(
                "{}: connection {}: ring {ring} has no translation of {:#x} for {perm:?}: {why}{left_out}",
                self.name,
                self.conn,
                iova.0
            );
        }
    }

    fn has_input(&self) -> bool {
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

fn access(perm: Perm) -> IotlbPerm {
    let mut access = IotlbPerm::empty();
    access.set(IotlbPerm::READ, perm.contains(Perm::READ));
    access.set(IotlbPerm::WRITE, perm.contains(Perm::WRITE));
    access
}
