//! The rings of a device, and their life between the kernel and a worker.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::{Iova, Perm};
use mdev_pin::Stretch;
use mdev_protocol::vduse::{Answer, VqInfo, VqState};
use mdev_protocol::virtio::feature::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use mdev_protocol::virtio::packed::Position;

use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::kernel::Kernel;
use super::requests::Outcome;
use super::{Queues, Session};
use crate::device::{Call, Enabled, QueueSetup, Switch};
use crate::ring::{QueueState, RingAddr, RingLog, RingSetup};
use crate::session::POLL;
use crate::sys::EventFd;

/// Where a ring is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Here.
    Stopped,
    /// On a worker.
    Running,
    /// On its way from a worker.
    Stopping {
        /// What its stop is told by.
        token: u64,
    },
}

/// One ring.
pub(super) struct Vring {
    pub(super) run: Run,
    /// The driver has enabled it.
    ready: bool,
    /// Where it stood when it was stopped, since the last reset.
    state: Option<QueueState>,
    /// What it waits for.
    pub(super) missing: Option<(Iova, Perm)>,
    /// What is to be in one piece while it runs.
    whole: Vec<Stretch>,
    /// It is not looked at until a reset.
    failed: bool,
    /// It was started then, and nobody knows whether its driver was there to hear of what it did first.
    unheard: Option<Instant>,
    switch: Switch,
}

impl Default for Vring {
    fn default() -> Self {
        Vring {
            run: Run::Stopped,
            ready: false,
            state: None,
            missing: None,
            whole: Vec::new(),
            failed: false,
            unheard: None,
            switch: Switch::new(Enabled::Yes),
        }
    }
}

impl Vring {
    /// A reset: nothing of what the driver said holds.
    pub(super) fn reset(&mut self) {
        (self.ready, self.state, self.missing, self.failed) = (false, None, None, false);
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.run, Run::Stopping { .. })
    }
}

/// A driver that is called by an interrupt, which the kernel injects.
struct Interrupt {
    kernel: Arc<dyn Kernel>,
    index: u16,
}

impl Call for Interrupt {
    fn call(&self) {
        // A driver that is not there yet hears of it when it is, and a suspended device says nothing.
        let _ = self.kernel.interrupt(self.index);
    }
}

impl Session {
    /// Asks the kernel which rings the driver has enabled.
    pub(super) fn look_at_rings(&mut self) -> Result<(), Refusal> {
        let packed = self.driver.is_packed();
        for (vring, index) in self.vrings.iter_mut().zip(0..) {
            vring.ready |= self.kernel.queue(index, packed)?.ready;
        }
        Ok(())
    }

    /// The driver enables or disables a ring. To refuse that would break the device.
    pub(super) fn set_vq_ready(
        &mut self,
        queues: &mut dyn Queues,
        id: u32,
        index: u32,
        ready: bool,
    ) -> Result<Outcome, Refusal> {
        let Ok((small, vring)) = self.ring(index) else { return Ok(Outcome::Answer(Answer::Done)) };
        vring.ready = ready;
        if ready {
            self.start_rings(queues);
            return Ok(Outcome::Answer(Answer::Done));
        }
        self.stop_ring(queues, small);
        self.hold(Some(id), Wait::Ring(small), Then::Run);
        Ok(Outcome::Later)
    }

    /// How far a ring is. One that runs is stopped for that, and goes on.
    pub(super) fn get_vq_state(
        &mut self,
        queues: &mut dyn Queues,
        id: u32,
        index: u32,
    ) -> Result<Outcome, Refusal> {
        let (index, _) = self.ring(index)?;
        self.stop_ring(queues, index);
        self.hold(Some(id), Wait::Ring(index), Then::State(index));
        Ok(Outcome::Later)
    }

    /// How far a ring is that stands still: where it was stopped, or where the driver wants it to start.
    pub(super) fn state(&mut self, index: u16) -> Result<Answer, Refusal> {
        let packed = self.driver.is_packed();
        let inherited = self.driver.inherited;
        let (_, vring) = self.ring(u32::from(index))?;
        let state = match vring.state {
            Some(state) => told(state),
            None if inherited => return Err(Refusal::Forgotten(index)),
            None => self.kernel.queue(index, packed)?.state,
        };
        Ok(Answer::VqState { index: u32::from(index), state })
    }

    /// Starts every ring that may run.
    pub(super) fn start_rings(&mut self, queues: &mut dyn Queues) {
        for index in 0..self.vrings.len() as u16 {
            if let Err(refusal) = self.start_ring(queues, index) {
                log::error!("{}: ring {index} cannot start: {refusal}", self.name);
                if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
                    vring.failed = true;
                }
            }
        }
    }

    fn start_ring(&mut self, queues: &mut dyn Queues, index: u16) -> Result<(), Refusal> {
        let Some(features) = self.driver.features.filter(|_| self.driver.runs()) else { return Ok(()) };
        let packed = self.driver.is_packed();
        let (_, vring) = self.ring(u32::from(index))?;
        if vring.run != Run::Stopped || !vring.ready || vring.failed {
            return Ok(());
        }
        let (state, switch) = (vring.state, vring.switch.clone());
        let info = self.kernel.queue(index, packed)?;
        let log = match &self.logs {
            Some(logs) => logs.of(index, packed).map_err(|error| Refusal::Device(error.to_string()))?,
            None => None,
        };
        let ring = setup(&info, features, state, log);
        let kick = EventFd::new().map_err(|error| Refusal::Device(format!("no eventfd: {error}")))?;
        // A kick that came while there was none is signalled at once.
        self.kernel.set_kick(index, Some(kick.as_fd()))?;
        let (_, vring) = self.ring(u32::from(index))?;
        vring.whole = ring.stretches();
        self.keep_rings_whole();
        let setup = QueueSetup {
            index,
            ring,
            access: self.access.clone(),
            kick: Some(Arc::new(kick)),
            call: Some(Arc::new(Interrupt { kernel: self.kernel.clone(), index })),
            err: None,
            switch,
        };
        let started = queues.start(self.conn, &self.device, features, setup);
        started.map_err(|error| Refusal::Device(error.to_string()))?;
        let (_, vring) = self.ring(u32::from(index))?;
        (vring.run, vring.unheard) = (Run::Running, Some(Instant::now()));
        self.device.queue_turned(index, features, true);
        Ok(())
    }

    /// Takes a ring from its worker, if it has one.
    fn stop_ring(&mut self, queues: &mut dyn Queues, index: u16) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        vring.unheard = None;
        if vring.run != Run::Running {
            return;
        }
        self.stops = self.stops.wrapping_add(1);
        let token = self.conn.wrapping_shl(32) | u64::from(self.stops);
        let stopping = queues.stop(self.conn, index, token);
        vring.run = if stopping { Run::Stopping { token } } else { Run::Stopped };
        // Kicks from now on are kept by the kernel until there is somebody to hear them.
        let _ = self.kernel.set_kick(index, None);
        self.device.queue_turned(index, self.driver.features.unwrap_or_default(), false);
    }

    /// Takes every ring from its worker.
    pub(super) fn stop_rings(&mut self, queues: &mut dyn Queues) {
        for index in 0..self.vrings.len() as u16 {
            self.stop_ring(queues, index);
        }
    }

    /// Takes every ring from its worker at once, with what it has in flight as far as that can be cancelled.
    pub(super) fn cancel_rings(&mut self, queues: &mut dyn Queues) {
        for index in 0..self.vrings.len() as u16 {
            self.cancel_ring(queues, index);
        }
    }

    /// The same with one ring.
    pub(super) fn cancel_ring(&mut self, queues: &mut dyn Queues, index: u16) {
        self.stop_ring(queues, index);
        if self.vrings.get(usize::from(index)).is_some_and(Vring::is_stopping) {
            queues.cancel(self.conn, index);
        }
    }

    /// Interrupts the drivers of rings that were started, once each. Until the kernel has heard that a driver is ready, or its ring
    /// enabled, interrupts are lost, and so are those that whoever served the ring before was about to give. Says when to
    /// be called again.
    pub(super) fn announce(&mut self, now: Instant) -> Option<Instant> {
        let packed = self.driver.is_packed();
        let mut next = None;
        for (vring, index) in self.vrings.iter_mut().zip(0..) {
            let Some(since) = vring.unheard else { continue };
            let ready = self.kernel.queue(index, packed).is_ok_and(|info| info.ready);
            if ready && self.kernel.interrupt(index).is_ok() {
                vring.unheard = None;
                continue;
            }
            // Of a driver that was killed meanwhile nothing more comes.
            let pause = now.saturating_duration_since(since).max(POLL);
            next = next.into_iter().chain(now.checked_add(pause)).min();
        }
        next
    }

    /// A worker has let go of a ring.
    pub(super) fn ring_stopped(&mut self, token: u64, state: QueueState) {
        let packed = self.driver.is_packed();
        let Some(vring) = self.vrings.iter_mut().find(|vring| vring.run == Run::Stopping { token }) else {
            return;
        };
        vring.run = Run::Stopped;
        vring.missing = None;
        vring.whole.clear();
        // A worker that did not know the ring does not know where it stands.
        if packed == state.next_used.is_some() {
            vring.state = Some(state);
        }
        self.keep_rings_whole();
    }

    /// A worker has given a ring up. The kernel has no way to tell the driver.
    pub(super) fn ring_failed(&mut self, index: u16) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        (vring.failed, vring.missing) = (true, None);
        if let Some(left_out) = self.log_limit.permit() {
            log::error!(
                "{}: ring {index} is not served until the driver resets the device{left_out}",
                self.name
            );
        }
    }

    /// Has the address space keep the parts of the rings in one piece that do not stand still.
    fn keep_rings_whole(&self) {
        self.ioas.keep_whole(self.vrings.iter().flat_map(|vring| vring.whole.iter().cloned()));
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let count = self.vrings.len();
        let vring = self.vrings.get_mut(index as usize);
        vring.map(|vring| (index as u16, vring)).ok_or(Refusal::NoSuchRing { index, count })
    }
}

/// What a ring is started with: from where it stood, or else from where the driver wants it to start. What does not fit together
/// shows when the ring is opened.
fn setup(info: &VqInfo, features: u64, state: Option<QueueState>, log: Option<RingLog>) -> RingSetup {
    let has = |feature| features & feature != 0;
    let [desc, avail, used] =
        [info.desc, info.driver, info.device].map(|address| RingAddr::Iova(Iova(address)));
    RingSetup {
        size: u16::try_from(info.size).unwrap_or(u16::MAX),
        desc,
        avail,
        used,
        packed: has(VIRTIO_F_RING_PACKED),
        in_order: has(VIRTIO_F_IN_ORDER),
        event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
        state: state.unwrap_or_else(|| begin(info.state)),
        log,
    }
}

/// Where the driver wants a ring to start. A packed ring of which nothing was said starts at its beginning.
fn begin(state: VqState) -> QueueState {
    match state {
        VqState::Split { avail_index } => QueueState::split(avail_index),
        VqState::Packed { avail, used } => QueueState::packed(avail, used),
    }
}

fn told(state: QueueState) -> VqState {
    match state.next_used {
        None => VqState::Split { avail_index: state.next_avail },
        Some(used) => {
            VqState::Packed { avail: Position::from_word(state.next_avail), used: Position::from_word(used) }
        }
    }
}
