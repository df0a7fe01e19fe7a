//! The PCI function: which register is where, and how it reaches its queues.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::IovaRange;
use mdev_pin::{Access, Ioas, Stretch};
use mdev_protocol::vfio_user::{RegionFlags, RegionInfo, RegionIoFds, SparseArea};

use super::error::Refusal;
use crate::device::nvme::{
    AdminBell, BAR0_LEN, BAR4_LEN, Controller, Doorbells, Host, NvmeDevice, SubmissionEngine,
    SubmissionSetup, Vectors,
};
use crate::device::{Engine, QueueNews};
use crate::session::Queues;
use crate::sys::EventFd;
use crate::worker::MakeEngine;

/// Regions that a PCI function has: six BARs, the ROM, the configuration space, VGA (`VFIO_PCI_NUM_REGIONS`).
pub(super) const REGIONS: u32 = 9;
/// The region of the registers.
pub(super) const BAR0: u32 = 0;
/// The region of the MSI-X vectors.
const BAR4: u32 = 4;
/// The region of the configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
const CONFIG: u32 = 7;
/// Bytes of it: that of a PCI Express function.
const CONFIG_LEN: u64 = 4096;

/// The admin queue, which the control thread serves.
const ADMIN: u16 = 0;

/// The controller of a client, and its queues.
pub(super) struct Function {
    device: Arc<NvmeDevice>,
    controller: Controller,
    /// The client's memory.
    ioas: Ioas,
    doorbells: Arc<Doorbells>,
    pub(super) vectors: Arc<Vectors>,
    /// Where the pin goes while the client has not masked it.
    pub(super) pin: Option<Arc<EventFd>>,
    /// The I/O submission queues that run, by identifier.
    running: BTreeMap<u16, Running>,
    /// Stops so far, for tokens.
    stops: u32,
    /// The controller may have other queues than when somebody asked last.
    queues_changed: bool,
    /// Where the client may map the doorbells: signalled when it has written those of the admin queue.
    rung: Option<Arc<EventFd>>,
}

/// An I/O submission queue.
struct Running {
    kick: Option<Arc<EventFd>>,
    /// It was told to stop.
    stopping: Option<u64>,
}

/// The way of a controller to its queues.
struct Reach<'a> {
    access: &'a Access,
    ioas: &'a Ioas,
    conn: u64,
    queues: &'a mut dyn Queues,
    device: &'a Arc<NvmeDevice>,
    running: &'a mut BTreeMap<u16, Running>,
    stops: &'a mut u32,
    /// Queues that were to stop and did not run.
    ended: Vec<u16>,
}

impl Function {
    /// A function that was just powered on, and will reach `ioas`. `mappable`: workers poll, so that doorbells need not be trapped.
    pub(super) fn new(device: &Arc<NvmeDevice>, ioas: Ioas, mappable: bool) -> io::Result<Self> {
        let doorbells = Arc::new(Doorbells::new()?);
        let vectors = Arc::new(Vectors::new(device.config().queues.saturating_add(1)));
        Ok(Self {
            controller: Controller::new(device, doorbells.clone(), vectors.clone()),
            device: device.clone(),
            ioas,
            doorbells,
            vectors,
            pin: None,
            running: BTreeMap::new(),
            stops: 0,
            queues_changed: false,
            rung: mappable.then(|| EventFd::new().map(Arc::new)).transpose()?,
        })
    }

    /// Calls the controller, which may start and stop queues.
    fn with<T>(
        &mut self,
        access: &Access,
        conn: u64,
        queues: &mut dyn Queues,
        call: impl FnOnce(&mut Controller, &mut Reach<'_>) -> T,
    ) -> T {
        let Self { device, controller, ioas, running, stops, .. } = self;
        let mut reach = Reach { access, ioas, conn, queues, device, running, stops, ended: Vec::new() };
        let result = call(controller, &mut reach);
        while let Some(qid) = reach.ended.pop() {
            controller.stopped(qid, &mut reach);
        }
        self.queues_changed = true;
        result
    }

    /// What a region is, and whether the client may map some of it.
    pub(super) fn region(&self, index: u32) -> Result<(RegionInfo, bool), Refusal> {
        let size = size_of_region(index)?;
        let flags = if size == 0 { RegionFlags::empty() } else { RegionFlags::READ | RegionFlags::WRITE };
        if index != BAR0 || self.rung.is_none() {
            return Ok((RegionInfo::new(index, flags, size, 0), false));
        }
        let page = SparseArea { offset: Doorbells::OFFSET, size: Doorbells::LEN };
        let info = RegionInfo::new(index, flags | RegionFlags::MMAP, size, 0).with_areas(vec![page]);
        Ok((info.map_err(|_| Refusal::NoSuchRegion(index))?, true))
    }

    /// Begins to look at the doorbells of the admin queue, if the client may map them.
    pub(super) fn listen(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        let Some(rung) = self.rung.clone() else { return };
        let doorbells = self.doorbells.clone();
        let make = move |_| Box::new(AdminBell::new(doorbells, rung)) as Box<dyn Engine>;
        self.with(access, conn, queues, |_, reach| reach.begin(ADMIN, None, Box::new(make)));
    }

    /// Readable when the client has written a doorbell of the admin queue.
    pub(super) fn rung(&self) -> Option<BorrowedFd<'_>> {
        self.rung.as_ref().map(|rung| rung.as_fd())
    }

    /// The client has written a doorbell of the admin queue.
    pub(super) fn admin_rung(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        if let Some(rung) = &self.rung {
            rung.drain();
        }
        self.with(access, conn, queues, |controller, host| controller.serve_admin(host));
    }

    /// The client has answered: perhaps to what an admin command waits for.
    pub(super) fn heard(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        if self.controller.next_deadline().is_some() {
            self.with(access, conn, queues, |controller, host| controller.serve_admin(host));
        }
    }

    /// No part of any region is reached by descriptors.
    pub(super) fn io_fds(&self, index: u32) -> Result<RegionIoFds, Refusal> {
        size_of_region(index)?;
        RegionIoFds::new(index, Vec::new()).map_err(|_| Refusal::NoSuchRegion(index))
    }

    /// The client is ready for the next event of the pin.
    pub(super) fn pin_unmasked(&mut self) {
        self.controller.pin_unmasked();
    }

    /// The page of doorbells.
    pub(super) fn doorbells(&self) -> &Arc<Doorbells> {
        &self.doorbells
    }

    pub(super) fn read(&mut self, region: u32, offset: u64, out: &mut [u8]) -> Result<(), Refusal> {
        check(region, offset, out.len() as u64)?;
        match region {
            BAR0 => self.controller.read_bar0(offset, out),
            BAR4 => self.controller.read_bar4(offset, out),
            _ => self.controller.read_config(offset, out),
        }
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
        access: &Access,
        conn: u64,
        queues: &mut dyn Queues,
    ) -> Result<(), Refusal> {
        check(region, offset, data.len() as u64)?;
        self.with(access, conn, queues, |controller, host| match region {
            BAR0 => controller.write_bar0(offset, data, host),
            BAR4 => controller.write_bar4(offset, data),
            _ => controller.write_config(offset, data, host),
        });
        Ok(())
    }

    /// Does what is due. Says when to be called again.
    pub(super) fn tick(
        &mut self,
        access: &Access,
        conn: u64,
        queues: &mut dyn Queues,
        now: Instant,
    ) -> Option<Instant> {
        if self.controller.next_deadline().is_some_and(|at| at <= now) {
            self.with(access, conn, queues, |controller, host| controller.look(host));
        }
        self.controller.next_deadline()
    }

    /// All queues are to end, and registers are as after power-on.
    pub(super) fn reset(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        self.with(access, conn, queues, |controller, host| controller.reset(host));
    }

    /// The client is gone.
    pub(super) fn end(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        (0..self.vectors.count()).for_each(|vector| self.vectors.set(vector, None));
        self.vectors.set_pin(None);
        self.with(access, conn, queues, |controller, reach| {
            controller.reset(reach);
            reach.stop(ADMIN);
        });
    }

    /// Nothing may stay in flight: only a reset by the host helps after this.
    pub(super) fn give_up(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        self.with(access, conn, queues, |controller, host| controller.give_up(host));
    }

    /// The memory of its queues, if that may have changed.
    pub(super) fn queue_memory(&mut self) -> Option<Vec<IovaRange>> {
        std::mem::take(&mut self.queues_changed).then(|| self.controller.queue_memory())
    }

    /// Whether no queue runs.
    pub(super) fn is_quiet(&self) -> bool {
        self.running.keys().all(|&qid| qid == ADMIN)
    }

    /// Whether nothing runs at all.
    pub(super) fn is_over(&self) -> bool {
        self.running.is_empty()
    }

    /// A queue that was told to stop has ended.
    pub(super) fn queue_stopped(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues, token: u64) {
        let meant = |running: &Running| running.stopping == Some(token);
        let Some(qid) = self.running.iter().find_map(|(&qid, running)| meant(running).then_some(qid)) else {
            return;
        };
        self.running.remove(&qid);
        self.with(access, conn, queues, |controller, host| controller.stopped(qid, host));
    }

    /// A queue tells of trouble, or of an abort.
    pub(super) fn queue_news(
        &mut self,
        access: &Access,
        conn: u64,
        queues: &mut dyn Queues,
        index: u16,
        news: QueueNews,
    ) {
        let qid = index.saturating_add(1);
        if self.running.contains_key(&qid) {
            self.with(access, conn, queues, |controller, host| controller.queue_news(qid, news, host));
        }
    }

    pub(super) fn namespaces_changed(&mut self, access: &Access, conn: u64, queues: &mut dyn Queues) {
        self.with(access, conn, queues, |controller, host| controller.namespaces_changed(host));
    }
}

impl Reach<'_> {
    /// What a queue goes by on its worker. The engine that looks at the admin doorbells comes behind the others.
    fn index_of(&self, qid: u16) -> u16 {
        qid.checked_sub(1).unwrap_or(self.device.config().queues)
    }

    /// A queue begins to run.
    fn begin(&mut self, qid: u16, kick: Option<Arc<EventFd>>, make: MakeEngine) {
        match self.queues.run(self.conn, self.index_of(qid), kick.clone(), make) {
            Ok(()) => {
                self.running.insert(qid, Running { kick, stopping: None });
            }
            // The function has one client, and this is it.
            Err(error) => log::error!("queue {qid} cannot run: {error}"),
        }
    }
}

impl Host for Reach<'_> {
    fn access(&self) -> &Access {
        self.access
    }

    fn start(&mut self, setup: SubmissionSetup) {
        let qid = setup.qid;
        let (Some(stats), Some(bell)) = (self.device.submission_stats(qid), self.device.bell(qid)) else {
            return;
        };
        let (shared, stats, bell) = (self.device.shared().clone(), stats.clone(), bell.clone());
        // Without one the queue is looked at every millisecond.
        let kick = EventFd::new().ok().map(Arc::new);
        let setup = SubmissionSetup { kick: kick.clone(), ..setup };
        let make = move |waker| {
            let engine = SubmissionEngine::new(shared, setup, stats, bell, waker);
            Box::new(engine) as Box<dyn Engine>
        };
        self.begin(qid, kick, Box::new(make));
    }

    fn stop(&mut self, qid: u16) {
        let index = self.index_of(qid);
        let Some(running) = self.running.get_mut(&qid) else { return self.ended.push(qid) };
        *self.stops = self.stops.wrapping_add(1);
        let token = self.conn.wrapping_shl(32) | u64::from(*self.stops);
        if self.queues.stop(self.conn, index, token) {
            running.stopping = Some(token);
            self.queues.cancel(self.conn, index);
        } else {
            self.running.remove(&qid);
            self.ended.push(qid);
        }
    }

    fn keep_whole(&mut self, memory: Vec<IovaRange>) {
        self.ioas.keep_whole(memory.into_iter().map(Stretch::At));
    }

    fn abort(&mut self, qid: u16, cid: u16, number: u64) {
        self.queues.abort(self.conn, self.index_of(qid), cid, number);
    }

    fn kick(&mut self, qid: u16) {
        if let Some(Running { kick: Some(kick), .. }) = self.running.get(&qid) {
            kick.signal();
        }
    }
}

fn size_of_region(index: u32) -> Result<u64, Refusal> {
    match index {
        BAR0 => Ok(BAR0_LEN),
        BAR4 => Ok(BAR4_LEN),
        CONFIG => Ok(CONFIG_LEN),
        index if index < REGIONS => Ok(0),
        index => Err(Refusal::NoSuchRegion(index)),
    }
}

/// Whether a region has these bytes.
fn check(region: u32, offset: u64, count: u64) -> Result<(), Refusal> {
    let size = size_of_region(region)?;
    match offset.checked_add(count) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Refusal::BeyondRegion { region, offset, count }),
    }
}
