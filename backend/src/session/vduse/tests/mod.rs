//! Sessions with a model of the kernel, against a device and workers that only take notes.
//!
//! Everything runs in one thread: a driver acts on the model, [`House::pump`] plays the daemon until nothing moves any more, and
//! what has been answered by then was answered without waiting for anybody.

mod barriers;
mod memory;
mod negotiation;
mod records;
mod restart;
mod rings;
mod table;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mdev_dma::{FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::Pin;
use mdev_protocol::vduse::DeviceName;
use mdev_protocol::vhost_user::IotlbPerm;
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tempfile::TempDir;

use super::model::{Action, Asked, Entry, Model, Outcome, Place};
use super::{Records, Session, SessionError};
use crate::device::VirtioDevice;
use crate::ring::QueueState;
use crate::session::Session as _;
use crate::session::tests::mock::{MockDevice, MockQueues, Note};

const MIB: u64 = 1 << 20;
/// The number of the session's connection.
const CONN: u64 = 7;
const FEATURES: u64 = VIRTIO_F_VERSION_1;
const READY: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const OK: u8 = READY | DRIVER_OK;

/// A device of the kernel with whoever serves it.
struct House {
    model: Model,
    device: Arc<MockDevice>,
    windows: Arc<Windows>,
    queues: MockQueues,
    session: Session,
    /// Why the session ended.
    ended: Option<SessionError>,
    folder: TempDir,
    /// Rings record what they have in flight.
    tracks: bool,
    queue_count: u16,
}

impl House {
    fn new(queues: u16) -> House {
        House::with(queues, false)
    }

    fn tracking(queues: u16) -> House {
        House::with(queues, true)
    }

    fn with(queue_count: u16, tracks: bool) -> House {
        let model = Model::new(queue_count, vec![0; 60]).unwrap();
        let (folder, windows) = (TempDir::new().unwrap(), Windows::new().unwrap());
        let (device, queues, session) = serve(&model, queue_count, tracks, &windows, &folder);
        House { model, device, windows, queues, session, ended: None, folder, tracks, queue_count }
    }

    /// Whoever serves the device is killed and another takes its place.
    fn restart(&mut self) {
        let served = serve(&self.model, self.queue_count, self.tracks, &self.windows, &self.folder);
        (self.device, self.queues, self.session) = served;
        self.ended = None;
    }

    /// Does what the daemon does, until nothing changes.
    fn pump(&mut self) {
        loop {
            let before = self.queues.progress;
            if self.ended.is_none() {
                self.session.tick(&mut self.queues, Instant::now());
                if let Err(error) = self.session.readable(&mut self.queues) {
                    self.session.close(&mut self.queues);
                    self.ended = Some(error);
                }
            }
            self.session.tick(&mut self.queues, Instant::now());
            for (_, token, base) in self.queues.take_stopped() {
                self.session.queue_stopped(&mut self.queues, token, QueueState::split(base));
            }
            self.queues.take_freed();
            if self.queues.progress == before && self.is_quiet() {
                return;
            }
        }
    }

    /// Whether nothing is left to read that the session wants to read.
    fn is_quiet(&self) -> bool {
        if self.ended.is_some() || !self.session.wants_read() {
            return true;
        }
        let channel = self.session.fd();
        let mut fds = [PollFd::new(&channel, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 0
    }

    /// Asks for something: what is answered without waiting.
    fn ask(&mut self, action: Action) -> Result<Outcome, Asked> {
        let asked = self.model.begin(action);
        self.pump();
        match self.model.outcome(&asked) {
            Some(outcome) => {
                // What the kernel does now may be what the session waits for.
                self.pump();
                Ok(outcome)
            }
            None => Err(asked),
        }
    }

    #[track_caller]
    fn done(&mut self, action: Action) {
        assert_eq!(self.ask(action).unwrap(), Outcome::Done);
    }

    #[track_caller]
    fn fails(&mut self, action: Action) {
        assert_eq!(self.ask(action).unwrap(), Outcome::Failed);
    }

    /// Something that has to wait for something else.
    #[track_caller]
    fn waits(&mut self, action: Action) -> Asked {
        self.ask(action).unwrap_err()
    }

    /// What became of it, without waiting any more.
    fn outcome(&mut self, asked: &Asked) -> Option<Outcome> {
        self.pump();
        let outcome = self.model.outcome(asked);
        self.pump();
        outcome
    }

    /// What became of it in the end.
    #[track_caller]
    fn end_of(&mut self, asked: &Asked) -> Outcome {
        let mut outcome = None;
        self.pump_until(|house| {
            outcome = house.outcome(asked);
            outcome.is_some()
        });
        outcome.unwrap()
    }

    #[track_caller]
    fn pump_until(&mut self, mut done: impl FnMut(&mut House) -> bool) {
        let watchdog = Instant::now();
        while !done(self) {
            assert!(watchdog.elapsed() < Duration::from_secs(20), "nothing happened for 20 s");
            self.pump();
            std::thread::yield_now();
        }
    }

    /// A driver that is about to be ready: all queues have a place, and are enabled.
    fn prepare(&mut self) {
        self.done(Action::Reset);
        self.done(Action::SetStatus(ACKNOWLEDGE | DRIVER));
        self.model.set_features(FEATURES);
        self.done(Action::SetStatus(READY));
        for index in 0..self.queue_count {
            self.model.place(index, place(index));
            self.done(Action::SetReady { index, ready: true });
        }
    }

    /// A driver that is ready, with this memory.
    fn start(&mut self, entries: Vec<Entry>) {
        self.prepare();
        self.done(Action::SetMap(entries));
        self.done(Action::SetStatus(OK));
        self.queues.take_notes();
    }

    /// The device pins bytes of the driver's, on ring 0.
    fn pin(&mut self, at: u64) -> Option<Pin> {
        let access = self.queues.running[&0].access.clone();
        let mut lane = access.lane();
        let burst = lane.enter();
        burst.pin(Iova(at), 512, Perm::READ).ok()
    }

    /// The device reads a byte, if it is there.
    fn byte(&mut self, at: u64) -> Option<u8> {
        let pin = self.pin(at)?;
        pin.slices().next()?.read(0)
    }

    /// Ring 0 has missed something.
    fn miss(&mut self, iova: u64, perm: Perm) {
        self.session.queue_missed(&mut self.queues, 0, Iova(iova), perm);
        self.pump();
    }

    fn areas(&self) -> Vec<(u64, u64)> {
        let areas = self.session.ioas.areas();
        areas.iter().map(|area| (area.range.first().0, area.range.last().0)).collect()
    }

    fn release_stops(&mut self) {
        self.queues.hold_stops = false;
        self.pump();
    }

    fn runs(&self, index: u16) -> bool {
        self.queues.is_running(CONN, index)
    }
}

fn serve(
    model: &Model,
    queues: u16,
    tracks: bool,
    windows: &Arc<Windows>,
    folder: &TempDir,
) -> (Arc<MockDevice>, MockQueues, Session) {
    let device = Arc::new(MockDevice::new(queues));
    device.tracks.store(tracks, Ordering::Relaxed);
    let name: DeviceName = "mock".parse().unwrap();
    let records = tracks.then(|| Records::open(folder.path(), &name, false).unwrap());
    let kernel = Arc::new(model.open().unwrap());
    let served: Arc<dyn VirtioDevice> = device.clone();
    let files = FilePolicy::default();
    let session = Session::new(CONN, kernel, served, windows.clone(), files, records.as_ref()).unwrap();
    (device.clone(), MockQueues::new(device), session)
}

/// Rings of 256 descriptors, 64 KiB apart.
fn place(index: u16) -> Place {
    let at = u64::from(index) << 16;
    Place { size: 256, parts: [at, at + 0x4000, at + 0x8000], state: None }
}

fn memfd(len: u64) -> Arc<OwnedFd> {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    Arc::new(file)
}

fn entry(first: u64, len: u64, file: &Arc<OwnedFd>, offset: u64) -> Entry {
    let range = IovaRange::with_len(Iova(first), len).unwrap();
    Entry { range, perm: IotlbPerm::READ | IotlbPerm::WRITE, file: file.clone(), offset }
}

fn write(file: &Arc<OwnedFd>, at: u64, byte: u8) {
    rustix::io::pwrite(file, &[byte], at).unwrap();
}

fn starts(notes: &[Note]) -> Vec<(u16, u16)> {
    let start = |note: &Note| match note {
        Note::Start { index, base, .. } => Some((*index, *base)),
        _ => None,
    };
    notes.iter().filter_map(start).collect()
}
