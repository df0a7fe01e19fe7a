//! Asynchronous events: what the host wants to hear, and has not heard yet.
//!
//! An event is told once for each time it happens, as long as nobody has read of it. After one was told, others of its type stay
//! silent until the host reads the log page that belongs to it (section 5.2).

use std::collections::VecDeque;

use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::status::Status;

use super::{Answer, Outcome, refused};

/// Requests that the host may have waiting.
pub(super) const MAX_REQUESTS: usize = 8;

/// See the [module](self).
#[derive(Debug, Default)]
pub(in super::super) struct Events {
    requests: VecDeque<u16>,
    /// What happened; each once.
    pending: Vec<Event>,
    /// What was told and not read of.
    told: Vec<Event>,
    /// Requests that were aborted.
    aborted: Vec<u16>,
}

impl Events {
    /// The host waits for an event.
    pub(super) fn request(&mut self, cid: u16) -> Outcome {
        if self.requests.len() >= MAX_REQUESTS {
            return refused(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        }
        self.requests.push_back(cid);
        Ok(Answer::Later)
    }

    /// Something happened.
    pub(super) fn push(&mut self, event: Event) {
        if !self.pending.contains(&event) {
            self.pending.push(event);
        }
    }

    /// Answers requests as far as there is something to tell: `end` gets the command and the event.
    pub(super) fn tell(&mut self, mut end: impl FnMut(u16, Event)) {
        while let Some(at) = self.pending.iter().position(|event| !self.is_silent(*event))
            && let Some(cid) = self.requests.pop_front()
        {
            let event = self.pending.remove(at);
            self.told.push(event);
            end(cid, event);
        }
    }

    fn is_silent(&self, event: Event) -> bool {
        self.told.iter().any(|told| told.kind == event.kind)
    }

    /// The host has read a log page: events of its type are told again. What the page says is not news any more.
    pub(super) fn read(&mut self, page: u8) {
        self.told.retain(|told| told.log_page != page);
        self.pending.retain(|pending| pending.log_page != page);
    }

    /// Takes back a request. False if there is none with this identifier.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let Some(at) = self.requests.iter().position(|request| *request == cid) else { return false };
        self.requests.remove(at);
        self.aborted.push(cid);
        true
    }

    /// The requests that were taken back, whose host is to be told.
    pub(super) fn take_aborted(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.aborted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &mut Events) -> Vec<(u16, Event)> {
        let mut told = Vec::new();
        events.tell(|cid, event| told.push((cid, event)));
        told
    }

    #[test]
    fn events_of_one_type_are_silent_until_their_log_is_read() {
        let mut events = Events::default();
        for cid in 1..=4 {
            events.request(cid).unwrap();
        }
        events.push(Event::NAMESPACES_CHANGED);
        assert_eq!(told(&mut events), [(1, Event::NAMESPACES_CHANGED)]);
        events.push(Event::NAMESPACES_CHANGED);
        events.push(Event::INVALID_DOORBELL_VALUE);
        assert_eq!(told(&mut events), [(2, Event::INVALID_DOORBELL_VALUE)]);
        events.push(Event::INVALID_DOORBELL_REGISTER);
        assert_eq!(told(&mut events), [], "two errors before the log was read");
        events.read(Event::NAMESPACES_CHANGED.log_page);
        assert_eq!(told(&mut events), [], "what the log has said is told");
        events.push(Event::NAMESPACES_CHANGED);
        assert_eq!(told(&mut events), [(3, Event::NAMESPACES_CHANGED)]);
    }

    #[test]
    fn event_waits_for_a_request_and_happens_once() {
        let mut events = Events::default();
        events.push(Event::TEMPERATURE);
        events.push(Event::TEMPERATURE);
        assert_eq!(told(&mut events), []);
        events.request(9).unwrap();
        events.request(10).unwrap();
        assert_eq!(told(&mut events), [(9, Event::TEMPERATURE)]);
        assert!(events.abort(10) && !events.abort(10) && !events.abort(9));
        assert_eq!((events.take_aborted(), events.take_aborted()), (vec![10], vec![]));
    }

    #[test]
    fn too_many_requests_are_refused() {
        let mut events = Events::default();
        for cid in 0..MAX_REQUESTS as u16 {
            assert_eq!(events.request(cid), Ok(Answer::Later));
        }
        assert_eq!(events.request(99), refused(Status::ASYNC_EVENT_LIMIT_EXCEEDED));
    }
}
