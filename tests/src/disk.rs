//! A block device's driver under load that knows what must be on the disk.
//!
//! [`Load`] writes, reads and flushes blocks at random, several at a time, and keeps a [`Ledger`] of what each block may hold. It
//! survives its device: what was under way when a connection ended is under way on the next one, whose device finds it in the record of requests in
//! flight. A [`Journal`] tells another process of each write, so that the driver's process may be what is killed.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use mdev_dma::GuestSlice;
use mdev_protocol::vhost_user::{FrontendMessage, MemoryRegion, ProtocolFeatures};
use mdev_protocol::virtio::feature::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::ledger::{Expected, Ledger};
use mdevd::driver::{FrontEnd, GuestMemory, InFlightRecord, MemoryOptions, RingFds, RingOptions, Virtqueue};

use crate::random::Random;

/// Bytes of a block.
pub const BLOCK: u32 = 4096;
/// Requests under way at a time.
pub const DEPTH: u16 = 32;
/// Descriptors of the ring.
const RING: u16 = 128;
/// No byte of a pattern's beginning.
const MARK: u8 = 0xa5;
/// After that a device that does not answer hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

/// A request under way.
enum Asked {
    Write { block: u64, generation: u64 },
    Read { block: u64, expected: Expected },
    Flush,
}

/// A driver with its memory, whatever device it is on.
pub struct Load<Q> {
    memory: GuestMemory,
    queue: BlkQueue<Q>,
    fds: RingFds,
    packed: bool,
    /// Blocks of the disk.
    blocks: u64,
    front: Option<FrontEnd>,
    record: Option<InFlightRecord>,
    /// What may be on the disk.
    pub ledger: Ledger,
    asked: HashMap<u16, Asked>,
    random: Random,
    /// Requests that have ended.
    pub ended: u64,
    /// Its device may leave requests in the record when it stops.
    pub suspends: bool,
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

/// What a driver tells of its writes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A write of this block is about to be submitted.
    Begun {
        /// The block.
        block: u64,
    },
    /// The write of this block and generation has ended.
    Ended {
        /// The block.
        block: u64,
        /// The write.
        generation: u64,
    },
}

/// Where a driver tells of its writes.
pub trait Journal {
    /// One more.
    ///
    /// # Errors
    /// Nobody listens.
    fn tell(&mut self, entry: Entry) -> io::Result<()>;
}

/// Nobody is told.
#[derive(Debug, Default)]
pub struct Unheard;

impl Journal for Unheard {
    fn tell(&mut self, _: Entry) -> io::Result<()> {
        Ok(())
    }
}

/// A stream, 16 bytes an entry: block and generation, which is 0 for one that begins. Each is whole for whoever reads it, since a pipe takes short writes whole.
#[derive(Debug)]
pub struct Stream<W>(pub W);

impl<W: Write> Journal for Stream<W> {
    fn tell(&mut self, entry: Entry) -> io::Result<()> {
        let (block, generation) = match entry {
            Entry::Begun { block } => (block, 0),
            Entry::Ended { block, generation } => (block, generation),
        };
        let words = [block.to_le_bytes(), generation.to_le_bytes()];
        self.0.write_all(words.as_flattened())
    }
}

/// Makes the calls of a driver that is another process on a ledger, up to the end of the stream. How many writes have ended; those that have not are
/// given up.
///
/// # Panics
/// The driver tells of a write that was not under way.
pub fn follow(ledger: &mut Ledger, mut journal: impl Read) -> u64 {
    let mut under_way = Vec::new();
    let mut ended = 0;
    let mut words = [0; 16];
    while journal.read_exact(&mut words).is_ok() {
        let [block, generation] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&words[at..at + 8]);
            u64::from_le_bytes(word)
        });
        if generation == 0 {
            under_way.push((block, ledger.begin(block)));
            continue;
        }
        ledger.acknowledge(block, generation).expect("a write that was under way");
        under_way.retain(|write| *write != (block, generation));
        ended += 1;
    }
    for (block, generation) in under_way {
        ledger.give_up(block, generation).expect("a write that was under way");
    }
    ended
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
        Load {
            memory,
            queue,
            fds: RingFds::new().expect("eventfds"),
            packed,
            blocks,
            front: None,
            record: None,
            ledger: Ledger::new(seed, BLOCK),
            asked: HashMap::new(),
            random,
            ended: 0,
            suspends: false,
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
        front.start(0, &self.queue.queue, &self.fds, &self.memory).expect("the ring starts");
        self.front = Some(front);
    }

    /// Whether the device is there no more.
    pub fn is_alone(&self) -> bool {
        self.front.as_ref().is_none_or(FrontEnd::peer_is_gone)
    }

    /// Submits what it may, and takes what has ended. Whether anything has.
    ///
    /// # Panics
    /// A request fails, ends twice, or finds what may not be there; nobody hears the journal.
    pub fn step(&mut self, submit: bool, journal: &mut impl Journal) -> bool {
        let Self { queue, ledger, asked, random, blocks, fds, .. } = self;
        if submit {
            let count = queue.idle() as u32;
            let submitted = queue.submit(count, |tag, data| {
                let block = random.below(*blocks);
                let sector = block * u64::from(BLOCK / 512);
                let (request, ask) = match random.below(16) {
                    0 => (Request::Flush, Asked::Flush),
                    1..=4 => {
                        let expected = ledger.expected(block);
                        (Request::Read { sector, len: BLOCK }, Asked::Read { block, expected })
                    }
                    _ => {
                        journal.tell(Entry::Begun { block }).expect("somebody listens");
                        let generation = ledger.begin(block);
                        let mut bytes = vec![0; BLOCK as usize];
                        ledger.fill(block, generation, &mut bytes);
                        data.copy_from(&bytes);
                        (Request::Write { sector, len: BLOCK }, Asked::Write { block, generation })
                    }
                };
                asked.insert(tag, ask);
                request
            });
            submitted.expect("a driver that keeps to the rules");
            if queue.publish() {
                fds.kick.signal();
            }
        }
        let mut ended = 0;
        let reaped = queue.reap(u32::MAX, |done, data| {
            assert!(done.is_ok(), "status {}", done.status);
            match asked.remove(&done.tag).expect("a request that was under way") {
                Asked::Flush => {}
                Asked::Read { block, expected } => {
                    let mut bytes = vec![0; BLOCK as usize];
                    data.copy_to(&mut bytes);
                    if let Err(finding) = ledger.check_read(block, &expected, &bytes) {
                        panic!("{finding}");
                    }
                }
                Asked::Write { block, generation } => {
                    if let Err(finding) = ledger.acknowledge(block, generation) {
                        panic!("{finding}");
                    }
                    journal.tell(Entry::Ended { block, generation }).expect("somebody listens");
                }
            }
            ended += 1;
        });
        reaped.expect("a device that keeps to the rules");
        self.ended += ended;
        ended > 0
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
                    false => (base as u16, self.queue.queue.base() as u16),
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
        self.queue.reset();
        self.asked.clear();
        self.front = Some(front);
        under_way
    }

    /// Fills the data of all requests with bytes of a kind.
    pub fn mark(&self) {
        self.buffers().for_each(|data| data.fill(MARK));
    }

    /// Whether they still have them.
    pub fn is_marked(&self) -> bool {
        let mut bytes = vec![0; BLOCK as usize];
        self.buffers().all(|data| {
            data.copy_to(&mut bytes);
            bytes.iter().all(|byte| *byte == MARK)
        })
    }

    fn buffers(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        (0..DEPTH).filter_map(|tag| self.queue.data(tag))
    }

    /// Waits until nothing is under way.
    ///
    /// # Panics
    /// As [`Load::step`]; a request does not end.
    pub fn drain(&mut self) {
        let deadline = Instant::now() + WATCHDOG;
        while self.queue.under_way() > 0 {
            if !self.step(false, &mut Unheard) {
                assert!(Instant::now() < deadline, "{} requests do not end", self.queue.under_way());
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Reads every block of the disk, of which `ledger` says what it may hold.
    ///
    /// # Panics
    /// One holds something else, or cannot be read.
    pub fn verify(&mut self, ledger: &Ledger) {
        self.drain();
        let mut blocks = 0..self.blocks;
        let mut reading = HashMap::new();
        let deadline = Instant::now() + WATCHDOG;
        while !reading.is_empty() || !blocks.is_empty() {
            assert!(Instant::now() < deadline, "{} reads do not end", reading.len());
            while let Some(block) = (self.queue.idle() > 0).then(|| blocks.next()).flatten() {
                let read = Request::Read { sector: block * u64::from(BLOCK / 512), len: BLOCK };
                let tag = self.queue.submit_one(read).expect("a driver that keeps to the rules");
                reading.insert(tag.expect("an idle tag"), block);
            }
            if self.queue.publish() {
                self.fds.kick.signal();
            }
            let reaped = self.queue.reap(u32::MAX, |done, data| {
                assert!(done.is_ok(), "status {}", done.status);
                let block = reading.remove(&done.tag).expect("a read that was under way");
                let mut bytes = vec![0; BLOCK as usize];
                data.copy_to(&mut bytes);
                if let Err(finding) = ledger.check(block, &bytes) {
                    panic!("{finding}");
                }
            });
            reaped.expect("a device that keeps to the rules");
        }
    }
}
