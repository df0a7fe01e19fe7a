//! A virtio block device's driver under load.

use std::path::Path;

use mdev_dma::GuestSlice;
use mdev_protocol::vduse::VqState;
use mdev_protocol::vhost_user::{FrontendMessage, MemoryRegion, ProtocolFeatures};
use mdev_protocol::virtio::feature::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use mdev_protocol::virtio::packed::Position;
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::ledger::Ledger;
use mdevd::driver::{FrontEnd, GuestMemory, InFlightRecord, MemoryOptions, RingFds, RingOptions, Virtqueue};
use mdevd::session::vduse::model::{self, Action, Model};

use super::journal::{Journal, Unheard};
use super::watched::Watched;
use super::work::{Ask, RequestQueue, Work};
use super::{BLOCK, DEPTH, WATCHDOG};
use crate::kernel;
use crate::random::Random;

/// Descriptors of the ring.
const RING: u16 = 128;

/// A driver with its memory, whatever device it is on: what was under way when a connection ended is under way on the next one, whose
/// device finds it in the record of requests in flight.
pub struct Load<Q> {
    /// What it does.
    pub work: Work,
    memory: GuestMemory,
    queue: Kicked<Q>,
    packed: bool,
    front: Option<FrontEnd>,
    record: Option<InFlightRecord>,
    /// Its device may leave requests in the record when it stops.
    pub suspends: bool,
}

/// A queue, and what wakes its device: its eventfds, or the kernel if there is one in between.
struct Kicked<Q>(BlkQueue<Q>, RingFds, Option<Model>);

impl<Q: Virtqueue> RequestQueue for Kicked<Q> {
    fn under_way(&self) -> usize {
        self.0.under_way()
    }

    fn submit(&mut self, count: u32, make: &mut dyn FnMut(u16, &GuestSlice<'_>) -> Ask) {
        let sector = |block| block * u64::from(BLOCK / 512);
        let submitted = self.0.submit(count, |tag, data| match make(tag, data) {
            Ask::Write(block) => Request::Write { sector: sector(block), len: BLOCK },
            Ask::Read(block) => Request::Read { sector: sector(block), len: BLOCK },
            Ask::Flush => Request::Flush,
        });
        submitted.expect("a driver that keeps to the rules");
        if self.0.publish() {
            match &self.2 {
                Some(model) => model.kick(0),
                None => self.1.kick.signal(),
            }
        }
    }

    fn reap(&mut self, each: &mut dyn FnMut(u16, &GuestSlice<'_>)) {
        let reaped = self.0.reap(u32::MAX, |done, data| {
            assert!(done.is_ok(), "status {}", done.status);
            each(done.tag, data);
        });
        reaped.expect("a device that keeps to the rules");
    }
}

/// How something is taken away from a device that has requests in flight.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// `REM_MEM_REG`, of all its memory.
    Region,
    /// `GET_VRING_BASE`: it finishes what it has.
    Stop,
    /// `GET_VRING_BASE` where it may leave requests in the record.
    Suspend,
    /// `RESET_DEVICE`.
    Reset,
    /// `SET_STATUS` 0.
    Status,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 5] = [Way::Region, Way::Stop, Way::Suspend, Way::Reset, Way::Status];
}

impl<Q: Virtqueue> Load<Q> {
    /// A driver of a disk of so many blocks, whose writes are known by `seed`.
    ///
    /// # Panics
    /// No memory.
    pub fn new(packed: bool, blocks: u64, seed: u64, random: Random) -> Self {
        let options = BlkQueueOptions { ring: RingOptions::plain(RING), requests: DEPTH, capacity: BLOCK };
        let mut memory = GuestMemory::new(MemoryOptions::default()).expect("memory");
        let queue = BlkQueue::new(&mut memory, options).expect("a queue");
        let queue = Kicked(queue, RingFds::new().expect("eventfds"), None);
        let work = Work::new(blocks, seed, random);
        Load { work, memory, queue, packed, front: None, record: None, suspends: false }
    }

    /// Resets the kernel's device and uses it from now on, with nothing under way.
    ///
    /// # Panics
    /// The device refuses something.
    pub fn start_on(&mut self, model: &Model) {
        model.carry_out(Action::Reset);
        self.queue.0.reset();
        self.work.give_up();
        let features = VIRTIO_F_VERSION_1 | if self.packed { VIRTIO_F_RING_PACKED } else { 0 };
        let place = kernel::place(&self.queue.0.queue, self.packed);
        kernel::start(model, features, self.entries(), &[place]);
        self.queue.2 = Some(model.clone());
        model.kick(0);
    }

    /// Its memory, as the kernel maps it.
    ///
    /// # Panics
    /// No descriptors left.
    pub fn entries(&self) -> Vec<model::Entry> {
        kernel::entries(&self.memory)
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.queue.under_way()
    }

    /// How far its ring is if all that was taken of it has ended.
    pub fn position(&self) -> VqState {
        let base = self.queue.0.queue.base();
        match self.packed {
            true => VqState::Packed {
                avail: Position::from_word(base as u16),
                used: Position::from_word((base >> 16) as u16),
            },
            false => VqState::Split { avail_index: base as u16 },
        }
    }

    /// Connects to the device at `path`, which goes on with what is under way.
    ///
    /// # Panics
    /// The device refuses something, or is not there.
    pub fn connect(&mut self, path: &Path) {
        let protocol = FrontEnd::usual_protocol()
            | ProtocolFeatures::INFLIGHT_SHMFD
            | ProtocolFeatures::STATUS
            | ProtocolFeatures::RESET_DEVICE
            | if self.suspends {
                ProtocolFeatures::GET_VRING_BASE_INFLIGHT
            } else {
                ProtocolFeatures::empty()
            };
        let features = VIRTIO_F_VERSION_1 | if self.packed { VIRTIO_F_RING_PACKED } else { 0 };
        let mut front =
            FrontEnd::connect(path, WATCHDOG, features, 0, protocol).expect("a device that listens");
        front.share(&self.memory).expect("memory is taken");
        match &self.record {
            Some(record) => front.record_in(record).expect("the record is taken"),
            None => self.record = Some(front.make_record(1, RING).expect("a record")),
        }
        if let Some(record) = &self.record {
            front.record_in(record).expect("the record is taken");
        }
        front.start(0, &self.queue.0.queue, &self.queue.1, &self.memory).expect("the ring starts");
        self.front = Some(front);
    }

    /// Whether the device is there no more.
    pub fn is_alone(&self) -> bool {
        self.front.as_ref().is_none_or(FrontEnd::peer_is_gone)
    }

    /// [`Work::step`].
    ///
    /// # Panics
    /// As that does.
    pub fn step(&mut self, submit: bool, journal: &mut impl Journal) -> bool {
        self.work.step(&mut self.queue, submit, journal)
    }

    /// [`Work::drain`].
    ///
    /// # Panics
    /// As that does.
    pub fn drain(&mut self) {
        self.work.drain(&mut self.queue);
    }

    /// [`Work::verify`].
    ///
    /// # Panics
    /// As that does.
    pub fn verify(&mut self, ledger: &Ledger) {
        self.work.verify(&mut self.queue, ledger);
    }

    /// All of its memory.
    ///
    /// # Panics
    /// As [`Watched::of`].
    pub fn watched(&self) -> Watched {
        Watched::of(self.memory.regions())
    }

    /// Takes something away from the device, and says how many requests it had when it was told to let go. Afterwards none is under way.
    ///
    /// # Panics
    /// The device refuses, or has finished less than the reply says.
    pub fn release(&mut self, way: Way) -> usize {
        let under_way = self.queue.under_way();
        let mut front = self.front.take().expect("a device");
        let client = front.client();
        match way {
            Way::Region => {
                for region in self.memory.regions() {
                    let region = MemoryRegion {
                        guest_addr: region.range.first().0,
                        size: region.size(),
                        user_addr: region.user.0,
                        mmap_offset: region.extent.offset,
                    };
                    client.remove_mem_region(region).expect("it lets go");
                }
            }
            Way::Stop => {
                let base = client.vring_base(0).expect("it stops").num;
                self.step(false, &mut Unheard);
                // Where it would go on is where its used chains end: it has none left.
                let (next, used) = match self.packed {
                    true => (base as u16, (base >> 16) as u16),
                    false => (base as u16, self.queue.0.queue.base() as u16),
                };
                assert_eq!(next, used, "it has stopped with requests in flight");
            }
            Way::Suspend => {
                client.vring_base(0).expect("it stops");
            }
            Way::Reset => {
                client.call(&FrontendMessage::ResetDevice, &[]).expect("it resets");
            }
            Way::Status => {
                client.call(&FrontendMessage::SetStatus(0), &[]).expect("it resets");
            }
        }
        self.queue.0.reset();
        self.work.give_up();
        self.front = Some(front);
        under_way
    }
}
