//! Messages about rings, and their life between a connection and a worker.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_protocol::frame::Fds;
use mdev_protocol::vhost_user::{VringAddr, VringFd, VringState};

use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::reply::{Asker, Outcome};
use super::vring::{Kick, Memory, Plan, Run, Vring, VringError, base_of};
use super::{Queues, Session, StartError};
use crate::device::{Call, Enabled, QueueSetup};
use crate::ring::{QueueState, RingSetup};
use crate::sys::EventFd;

impl Session {
    pub(super) fn set_vring_num(&mut self, state: VringState) -> Result<Outcome, Refusal> {
        let max = self.device.max_ring_size();
        let packed = self.negotiated.is_packed();
        let (_, vring) = self.idle_ring(state.index)?;
        match u16::try_from(state.num) {
            Ok(size) if (size.is_power_of_two() || packed && size != 0) && size <= max => {
                vring.size = Some(size);
            }
            _ if packed => return Err(Refusal::PackedRingSize { size: state.num, max }),
            _ => return Err(Refusal::RingSize { size: state.num, max }),
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_base(&mut self, state: VringState) -> Result<Outcome, Refusal> {
        let packed = self.negotiated.is_packed();
        let (_, vring) = self.idle_ring(state.index)?;
        if !packed && u16::try_from(state.num).is_err() {
            return Err(Refusal::Base(state.num));
        }
        vring.base = Some(state.num);
        Ok(Outcome::Done)
    }

    /// The addresses are the front-end's; from here on only the place in the file counts. Behind an IOMMU they are the
    /// guest's and stay what they are. A running ring may be told again where it is.
    pub(super) fn set_vring_addr(&mut self, addr: &VringAddr) -> Result<Outcome, Refusal> {
        let index = self.ring_index(addr.index)?;
        let memory = Memory::of(&self.regions, &self.negotiated);
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return Ok(Outcome::Done) };
        if vring.is_idle() {
            vring.place(addr, memory);
        } else if !vring.is_placed_at(addr, memory) {
            return Err(Refusal::RingRuns(addr.index));
        }
        Ok(Outcome::Done)
    }

    /// Starts the ring. One that runs is stopped where it is and goes on with the new eventfd.
    pub(super) fn set_vring_kick(
        &mut self,
        queues: &mut dyn Queues,
        of: VringFd,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        let index = self.ring_index(u32::from(of.index))?;
        let kick = match eventfd(of, fds) {
            Ok(Some(event)) => Kick::Event(event),
            Ok(None) => Kick::Polled,
            Err(refusal) => {
                // Whoever did not ask to be told has a ring now that does not start.
                self.latch(index, VringError::Kick);
                return Err(refusal);
            }
        };
        self.start_with(queues, index, kick);
        Ok(Outcome::Done)
    }

    /// Starts a ring, which is kicked like this. One that runs is stopped where it is and goes on.
    pub(super) fn start_with(&mut self, queues: &mut dyn Queues, index: u16, kick: Kick) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        vring.failed = false;
        vring.kick = Some(kick);
        if std::mem::take(&mut vring.distrusted) {
            self.latch(index, VringError::Refused);
        }
        match self.stop_ring(queues, index) {
            Run::Stopping { .. } => {}
            _ => self.start_ring(queues, index),
        }
    }

    pub(super) fn set_vring_call(
        &mut self,
        queues: &mut dyn Queues,
        of: VringFd,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        let conn = self.conn;
        let index = self.ring_index(u32::from(of.index))?;
        let call = eventfd(of, fds)?;
        self.forget_own_call(index);
        let (index, vring) = self.ring(u32::from(of.index))?;
        vring.call = call;
        if vring.run == Run::Running {
            queues.set_call(conn, index, as_call(vring.call.clone()));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_err(
        &mut self,
        queues: &mut dyn Queues,
        of: VringFd,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        let conn = self.conn;
        let (index, vring) = self.ring(u32::from(of.index))?;
        vring.err = eventfd(of, fds)?;
        vring.err_told = true;
        if vring.run == Run::Running {
            queues.set_err(conn, index, vring.err.clone());
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_enable(
        &mut self,
        queues: &mut dyn Queues,
        state: VringState,
    ) -> Result<Outcome, Refusal> {
        let index = self.ring_index(state.index)?;
        match state.num {
            0 => self.enable_ring(queues, index, false),
            1 => self.enable_ring(queues, index, true),
            other => return Err(Refusal::Enable(other)),
        }
        Ok(Outcome::Done)
    }

    /// The ring is not started any more; its base is told when none of its requests is in flight.
    pub(super) fn get_vring_base(
        &mut self,
        queues: &mut dyn Queues,
        asker: Asker,
        state: VringState,
    ) -> Result<Outcome, Refusal> {
        let (index, vring) = self.ring(state.index)?;
        vring.kick = None;
        vring.distrusted = false;
        self.stop_ring(queues, index);
        self.suspend(queues, index);
        self.hold(asker, Wait::Ring(index), Then::Base(index));
        Ok(Outcome::Later)
    }

    /// Takes every ring from its worker; none is started any more.
    pub(super) fn stop_rings(&mut self, queues: &mut dyn Queues) {
        for index in self.indices() {
            if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
                vring.kick = None;
            }
            self.stop_ring(queues, index);
        }
    }

    /// Takes every ring from its worker at once, with what it has in flight as far as that can be cancelled.
    pub(super) fn cancel_rings(&mut self, queues: &mut dyn Queues) {
        self.stop_rings(queues);
        for (vring, index) in self.vrings.iter().zip(0..) {
            if vring.is_stopping() {
                queues.cancel(self.conn, index);
            }
        }
    }

    /// Starts every ring that is ready for it.
    pub(super) fn start_rings(&mut self, queues: &mut dyn Queues) {
        for index in self.indices() {
            self.start_ring(queues, index);
        }
    }

    pub(super) fn enable_rings(&mut self, queues: &mut dyn Queues, enabled: bool) {
        for index in self.indices() {
            self.enable_ring(queues, index, enabled);
        }
    }

    /// The worker has let go of a ring. It starts again at once if it was only stopped for a new kick.
    pub(super) fn ring_stopped(&mut self, queues: &mut dyn Queues, token: u64, state: QueueState) {
        let stopping = |vring: &Vring| vring.run == Run::Stopping { token };
        let Some(at) = self.vrings.iter().position(stopping) else { return };
        // A device none of whose rings runs says nothing: what there is to say of this one comes first.
        self.say_call(at as u16);
        let packed = self.negotiated.is_packed();
        if let Some(vring) = self.vrings.get_mut(at) {
            // A worker that did not know the ring does not know where it stands.
            if packed == state.next_used.is_some() {
                vring.base = Some(base_of(state));
            }
            vring.run = Run::Stopped;
            vring.whole.clear();
        }
        self.keep_rings_whole();
        self.start_ring(queues, at as u16);
    }

    /// Has the address space keep the parts of the rings in one piece that do not stand still.
    fn keep_rings_whole(&self) {
        self.ioas.keep_whole(self.vrings.iter().flat_map(|vring| vring.whole.iter().cloned()));
    }

    /// A ring is not to be started with what was told of it before, because something newer was refused in silence.
    pub(super) fn distrust(&mut self, ring: Option<u16>) {
        let Some(vring) = ring.and_then(|index| self.vrings.get_mut(usize::from(index))) else { return };
        if vring.is_idle() {
            vring.distrusted = true;
        }
    }

    /// The ring has failed before a worker saw it.
    fn latch(&mut self, index: u16, error: VringError) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)).filter(|vring| vring.is_idle()) else {
            return;
        };
        vring.failed = true;
        if let Some(err) = &vring.err {
            err.signal();
        }
        self.say_failure(index);
        if let Some(left_out) = self.log_limit.permit() {
            log::warn!(
                "{}: connection {}: ring {index} cannot start: {error}{left_out}",
                self.name,
                self.conn
            );
        }
    }

    pub(super) fn start_ring(&mut self, queues: &mut dyn Queues, index: u16) {
        let memory = Memory::of(&self.regions, &self.negotiated);
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        if !vring.is_idle() || vring.failed || vring.kick.is_none() {
            return;
        }
        let plan = match self.negotiated.features() {
            Some(features) => vring.plan(memory, features).map(|plan| (plan, features)),
            None if self.negotiated.is_refused() => Err(VringError::Features),
            None => return,
        };
        let (ring, features) = match plan {
            Ok((Plan::Ready(ring), features)) => (ring, features),
            Ok((Plan::Incomplete, _)) => return,
            Err(error) => return self.latch(index, error),
        };
        let Ok(log) = self.log_of(index) else { return self.latch(index, VringError::Log) };
        let call = self.call_of(index);
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        vring.whole = ring.stretches();
        // Before the worker opens it.
        self.keep_rings_whole();
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        if vring.switch.get() == Enabled::No {
            // What the driver gives it now waits for its new start's word.
            vring.switch.set(Enabled::NotYet);
        }
        vring.keeps_log = log.is_some();
        let setup = QueueSetup {
            index,
            ring: RingSetup { log, ..ring },
            access: self.access.clone(),
            kick: match &vring.kick {
                Some(Kick::Event(event)) => Some(Arc::clone(event)),
                Some(Kick::Polled) | None => None,
            },
            call: as_call(call),
            err: vring.err.clone(),
            switch: vring.switch.clone(),
        };
        vring.run = match queues.start(self.conn, &self.device, features, setup) {
            Ok(()) => Run::Running,
            Err(StartError::OtherConnection) => Run::Waiting,
        };
        if vring.run == Run::Running {
            self.device.queue_turned(index, features, vring.switch.get() == Enabled::Yes);
            self.announce_change();
        }
    }

    /// Takes a ring from its worker, if it has one, and says where it is then.
    fn stop_ring(&mut self, queues: &mut dyn Queues, index: u16) -> Run {
        if let Some(iommu) = &mut self.iommu {
            iommu.misses.forget(index);
        }
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return Run::Stopped };
        match vring.run {
            Run::Running => {
                self.stops = self.stops.wrapping_add(1);
                let token = self.conn.wrapping_shl(32) | u64::from(self.stops);
                let stopping = queues.stop(self.conn, index, token);
                vring.run = if stopping { Run::Stopping { token } } else { Run::Stopped };
                if !stopping {
                    vring.whole.clear();
                }
                self.device.queue_turned(index, self.negotiated.features().unwrap_or_default(), false);
            }
            Run::Waiting => {
                vring.run = Run::Stopped;
                vring.whole.clear();
            }
            Run::Stopped | Run::Stopping { .. } => {}
        }
        let run = vring.run;
        self.keep_rings_whole();
        run
    }

    fn enable_ring(&mut self, queues: &mut dyn Queues, index: u16, enabled: bool) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        let runs = vring.run == Run::Running;
        vring.switch.set(match enabled {
            true => Enabled::Yes,
            false if runs => Enabled::No,
            false => Enabled::NotYet,
        });
        if runs {
            self.device.queue_turned(index, self.negotiated.features().unwrap_or_default(), enabled);
            queues.switched(self.conn, index);
        }
    }

    pub(super) fn ring_index(&self, index: u32) -> Result<u16, Refusal> {
        let count = self.vrings.len();
        match u16::try_from(index) {
            Ok(small) if usize::from(small) < count => Ok(small),
            _ => Err(Refusal::NoSuchRing { index, count }),
        }
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let count = self.vrings.len();
        let small = self.ring_index(index)?;
        let vring = self.vrings.get_mut(usize::from(small)).ok_or(Refusal::NoSuchRing { index, count })?;
        Ok((small, vring))
    }

    fn idle_ring(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let (small, vring) = self.ring(index)?;
        if vring.is_idle() { Ok((small, vring)) } else { Err(Refusal::RingRuns(index)) }
    }

    fn indices(&self) -> std::ops::Range<u16> {
        0..self.vrings.len() as u16
    }
}

fn as_call(event: Option<Arc<EventFd>>) -> Option<Arc<dyn Call>> {
    event.map(|event| event as Arc<dyn Call>)
}

/// The eventfd that came with a message, if it says that one did.
fn eventfd(of: VringFd, fds: Fds) -> Result<Option<Arc<EventFd>>, Refusal> {
    if !of.has_fd {
        return Ok(None);
    }
    let fd: OwnedFd = fds.into_iter().next().ok_or(Refusal::NoFd)?;
    Ok(Some(Arc::new(EventFd::from_fd(fd).map_err(Refusal::EventFd)?)))
}
