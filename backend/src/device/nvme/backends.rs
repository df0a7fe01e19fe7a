//! The ends of one queue at the stores of its controller's namespaces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Shared;
use super::namespace::Namespace;
use super::queued;
use crate::limit::LogLimit;
use crate::store::{Completion, Port, Queued};
use crate::sys::EventFd;

static UNUSABLE: LogLimit = LogLimit::new(5, Duration::from_secs(10));

/// A namespace, and the queue's end at its store.
pub(super) struct Backend {
    pub(super) nsid: u32,
    pub(super) namespace: Arc<Namespace>,
    /// None where the kernel refused it.
    pub(super) port: Option<Port>,
    /// Requests that the store has.
    pub(super) in_flight: usize,
    /// It is not attached any more, and stays for its requests alone.
    gone: bool,
}

/// All of them.
pub(super) struct Backends {
    list: Vec<Backend>,
    generation: u64,
    bell: Arc<EventFd>,
}

impl Backend {
    fn new(shared: &Shared, namespace: Arc<Namespace>, bell: &Arc<EventFd>) -> Self {
        let nsid = namespace.nsid;
        let port = namespace.store.port(bell.clone());
        let port = port.map_err(|error| {
            if let Some(left_out) = UNUSABLE.permit() {
                let name = &shared.name;
                log::error!("{name}: a queue cannot use the store of namespace {nsid}: {error}{left_out}");
            }
        });
        Backend { nsid, namespace, port: port.ok(), in_flight: 0, gone: false }
    }

    pub(super) fn queued(&mut self) -> Option<&mut Queued> {
        match &mut self.port {
            Some(Port::Queued(port)) => Some(port),
            Some(Port::Immediate(_)) | None => None,
        }
    }

    /// Appends what its store has ended.
    pub(super) fn take(&mut self, out: &mut Vec<Completion>) {
        if self.in_flight > 0
            && let Some(port) = self.queued()
        {
            port.take(out);
            self.in_flight = self.in_flight.saturating_sub(out.len());
        }
    }
}

impl Backends {
    /// None yet: see [`Backends::refresh`].
    pub(super) fn new(bell: Arc<EventFd>) -> Self {
        // No generation is that one.
        Backends { list: Vec::new(), generation: 0, bell }
    }

    /// Those that are attached now, if that has changed.
    #[inline(always)]
    pub(super) fn refresh(&mut self, shared: &Shared) {
        if self.generation != shared.namespaces.generation() {
            self.refresh_now(shared);
        }
    }

    #[cold]
    fn refresh_now(&mut self, shared: &Shared) {
        let (generation, attached) = shared.namespaces.attached();
        self.generation = generation;
        for backend in &mut self.list {
            let stays = attached.iter().any(|namespace| Arc::ptr_eq(namespace, &backend.namespace));
            backend.gone |= !stays;
        }
        self.sweep();
        for namespace in attached.iter() {
            let there = |backend: &Backend| !backend.gone && Arc::ptr_eq(&backend.namespace, namespace);
            if !self.list.iter().any(there) {
                let backend = Backend::new(shared, namespace.clone(), &self.bell);
                self.list.push(backend);
            }
        }
    }

    /// Lets go of those that are not attached any more and have nothing in flight.
    pub(super) fn sweep(&mut self) {
        self.list.retain(|backend| !backend.gone || backend.in_flight > 0);
    }

    /// The one of an attached namespace.
    #[inline(always)]
    pub(super) fn find(&mut self, nsid: u32) -> Option<&mut Backend> {
        self.list.iter_mut().find(|backend| backend.nsid == nsid && !backend.gone)
    }

    /// Has the first store flushed whose namespace comes after this one, among those that are attached and whose stores take their
    /// time. False if there is none.
    ///
    /// # Errors
    /// `ENODEV`: the kernel refused it.
    pub(super) fn flush_after(&mut self, nsid: u32, tag: u64) -> Result<bool, Errno> {
        let waits =
            |backend: &&mut Backend| !backend.gone && !matches!(backend.port, Some(Port::Immediate(_)));
        let behind = self.list.iter_mut().filter(|backend| backend.nsid > nsid).filter(waits);
        let Some(backend) = behind.min_by_key(|backend| backend.nsid) else { return Ok(false) };
        let Some(Port::Queued(port)) = &mut backend.port else { return Err(Errno::NODEV) };
        queued::flush(port, tag);
        backend.in_flight = backend.in_flight.saturating_add(1);
        Ok(true)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Backend> {
        self.list.iter_mut()
    }

    /// What was submitted is to begin now.
    pub(super) fn begin(&mut self) {
        self.queued().for_each(Queued::begin);
    }

    /// Ends what can be ended at once.
    pub(super) fn cancel(&mut self) {
        self.queued().for_each(Queued::cancel);
    }

    /// The same for one request.
    pub(super) fn cancel_one(&mut self, tag: u64) {
        self.queued().for_each(|port| port.cancel_one(tag));
    }

    /// The bell is wanted. True if something has ended already.
    pub(super) fn arm(&mut self) -> bool {
        self.queued().fold(false, |work, port| port.arm() | work)
    }

    pub(super) fn disarm(&mut self) {
        self.queued().for_each(Queued::disarm);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of = |backend: &Backend| match &backend.port {
            Some(Port::Queued(port)) => port.next_deadline(),
            Some(Port::Immediate(_)) | None => None,
        };
        self.list.iter().filter_map(of).min()
    }

    fn queued(&mut self) -> impl Iterator<Item = &mut Queued> {
        self.list.iter_mut().filter_map(Backend::queued)
    }
}
