//! A queue pair of a network device of this process on a tap interface, its guest's driver, and a socket of the host at the
//! interface's other end.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use mdev_dma::Iova;
use mdev_pin::{Access, Ioas};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::NetHeader;
use mdev_tests::attached;
use mdev_tests::lab::{Skip, move_into_own_network};
use mdevd::device::net::{NetConfig, NetConfigError, NetDevice};
use mdevd::device::{
    Device, DropCause, Enabled, Engine, EventFd, Queue, QueueCounters, QueueSetup, Switch, VirtioDevice,
};
use mdevd::driver::{GuestMemory, MemoryOptions, Part, Piece, RingOptions, SplitQueue};
use mdevd::ring::{RingError, RingSetup};
use mdevd::sys::Kicks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromBytes, IntoBytes};

pub const GUEST: &str = "198.18.5.2:9";
const HOST: &str = "198.18.5.1:7";
const HEADER: usize = size_of::<NetHeader>();
const RING: u16 = 512;
/// Bytes for buffers of each direction, page-aligned.
const BUFFERS: u64 = 0x4_0000;
const PAGE: u64 = 4096;
/// How long nothing must come before it counts as nothing.
const QUIET: Duration = Duration::from_millis(200);

/// Give the calling thread a network of its own, with the real `ip` to set it up: the lab's busybox cannot do all of it.
pub fn network() -> Result<(), Skip> {
    if Command::new("ip").arg("-V").output().is_err() {
        return Err(Skip("there is no ip (package iproute2)".into()));
    }
    move_into_own_network()
}

pub fn ip(arguments: &str) -> String {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip was there before");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

pub fn device(name: &str, queue_pairs: u16) -> Result<NetDevice, NetConfigError> {
    let link = format!("tap={name}").parse().expect("a link");
    NetDevice::new(NetConfig { name: "test".into(), queue_pairs, mac: None, mtu: None, link })
}

/// Bring `vm0` up with addresses at both ends, and nothing of the host's own to say.
pub fn bring_up() {
    std::fs::write("/proc/sys/net/ipv6/conf/vm0/disable_ipv6", "1").expect("vm0 is there");
    ip("addr add 198.18.5.1/24 dev vm0");
    ip("link set vm0 address 02:00:00:00:00:01 up");
    ip("neigh add 198.18.5.2 lladdr 02:00:00:00:00:02 dev vm0");
}

/// Whether a descriptor is readable now.
pub fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
}

/// A direction's ring, and what it reports by.
struct Side {
    ring: SplitQueue,
    /// Where buffers are, and how many bytes of that were given out.
    buffers: Part,
    given: u64,
    chains: HashMap<u16, Vec<Piece>>,
    call: Arc<EventFd>,
    err: Arc<EventFd>,
}

/// The pair, running, with its interface up.
pub struct Pair {
    pub device: NetDevice,
    pub engine: Box<dyn Engine>,
    /// The host's end.
    pub socket: UdpSocket,
    memory: GuestMemory,
    rx: Side,
    tx: Side,
    access: Access,
    _ioas: Ioas,
}

impl Pair {
    /// On `vm0`; the driver has acknowledged these features beside VERSION_1.
    pub fn new(features: u64) -> Pair {
        let features = VIRTIO_F_VERSION_1 | features;
        let device = device("vm0", 1).expect("a device");
        device.queue_turned(0, features, true);
        bring_up();
        let mut memory =
            GuestMemory::new(MemoryOptions { size: 1 << 20, ..Default::default() }).expect("memory");
        let rings = [(); 2].map(|()| SplitQueue::new(&mut memory, RingOptions::plain(RING)).expect("a ring"));
        let [rx, tx] = rings.map(|ring| Side::new(ring, &mut memory));
        let (ioas, access) = attached(&memory);
        let engine = device.engine(0, features);
        let socket = UdpSocket::bind(HOST).expect("the address is there");
        socket.set_read_timeout(Some(QUIET)).expect("a socket");
        let mut pair = Pair { device, engine, socket, memory, rx, tx, access, _ioas: ioas };
        pair.start(0);
        pair.start(1);
        pair
    }

    fn start(&mut self, index: u16) {
        let side = if index == 0 { &self.rx } else { &self.tx };
        let addresses = side.ring.addresses();
        let setup = QueueSetup {
            index,
            ring: RingSetup::plain(RING, [addresses.desc, addresses.avail, addresses.used]),
            access: self.access.clone(),
            kick: None,
            call: Some(side.call.clone()),
            err: Some(side.err.clone()),
            switch: Switch::new(Enabled::Yes),
        };
        let stats = self.device.queue_stats(index).expect("its counters");
        self.engine.start_queue(Queue::start(setup, stats, Waker::noop().clone()).expect("a queue"));
    }

    /// Send a frame whose chain is cut into buffers of the given lengths; the last takes the rest.
    pub fn send(&mut self, header: NetHeader, frame: &[u8], cuts: &[usize]) {
        let bytes = [header.as_bytes(), frame].concat();
        let at = self.tx.room(bytes.len() as u64);
        self.memory.slice(at, bytes.len() as u64).expect("its room").copy_from(&bytes);
        self.tx.offer(at, bytes.len(), cuts, false);
    }

    /// Offer room of `len` bytes in buffers of the given lengths.
    pub fn offer(&mut self, len: usize, cuts: &[usize]) {
        let at = self.rx.room(len as u64);
        self.rx.offer(at, len, cuts, true);
    }

    /// What arrived since the last look.
    pub fn received(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(mut bytes) = self.rx.next_used(&self.memory) {
            let header = NetHeader::read_from_prefix(&bytes).expect("a header").0;
            for _ in 1..u16::from_le(header.num_buffers) {
                bytes.extend(self.rx.next_used(&self.memory).expect("as many chains as the header says"));
            }
            frames.push((header, bytes.split_off(HEADER)));
        }
        frames
    }

    /// What the host's socket has; `None` after a while without anything.
    pub fn heard(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65_536];
        let len = self.socket.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// How many sent chains came back since the last look.
    pub fn sent(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.next_used(&self.memory)).count()
    }

    /// Poll until nothing happens.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            if self.engine.poll() == 0 {
                return;
            }
        }
        panic!("the engine comes to no end");
    }

    pub fn counters(&self, queue: u16) -> QueueCounters {
        self.device.queue_stats(queue).expect("a queue").counters()
    }

    /// Frames of the guest that were dropped for this reason.
    pub fn drops(&self, cause: DropCause) -> u64 {
        self.counters(1).drops_by(cause)
    }

    /// The device wants no kicks for receive buffers.
    pub fn wants_no_kick(&self) -> bool {
        self.rx.ring.raw().used_flags() == 1
    }

    pub fn was_called(&self) -> bool {
        self.rx.call.drain() != Kicks::None
    }

    /// Why this queue has failed, if its front-end was told.
    pub fn failed(&mut self, queue: u16) -> Option<RingError> {
        let err = if queue == 0 { &self.rx.err } else { &self.tx.err };
        let told = err.drain() != Kicks::None;
        self.engine.queue_mut(queue)?.failed.filter(|_| told)
    }

    /// Cut the memory file short, as only its owner can: from the second page of this queue's buffers on.
    pub fn lose_buffers(&self, queue: u16) {
        let side = if queue == 0 { &self.rx } else { &self.tx };
        let region = &self.memory.regions()[0];
        let len = side.buffers.at.0 - region.range.first().0 + PAGE;
        rustix::fs::ftruncate(region.extent.file.as_fd(), len).expect("a memory file");
    }

    /// This queue's next buffer is in the second page of them.
    pub fn skip_a_page(&mut self, queue: u16) {
        let side = if queue == 0 { &mut self.rx } else { &mut self.tx };
        side.given = PAGE;
    }
}

impl Side {
    fn new(mut ring: SplitQueue, memory: &mut GuestMemory) -> Side {
        ring.want_calls(true);
        let buffers = memory.allocate(BUFFERS, PAGE).expect("room for buffers");
        let event = || Arc::new(EventFd::new().expect("an eventfd"));
        Side { ring, buffers, given: 0, chains: HashMap::new(), call: event(), err: event() }
    }

    fn room(&mut self, len: u64) -> Iova {
        let at = Iova(self.buffers.at.0 + self.given);
        self.given += len;
        assert!(self.given <= self.buffers.len, "a test offers less");
        at
    }

    /// Offer a chain of buffers cut to lengths.
    fn offer(&mut self, at: Iova, len: usize, cuts: &[usize], device_writes: bool) {
        let mut pieces = Vec::new();
        let mut done = 0;
        for cut in cuts.iter().copied().chain([len]) {
            let len = cut.min(len - done);
            if len != 0 {
                pieces.push(Piece { at: Iova(at.0 + done as u64), len: len as u32, device_writes });
            }
            done += len;
        }
        let head = self.ring.prepare(&pieces).expect("descriptors");
        self.chains.insert(head, pieces);
        self.ring.offer(head).expect("a chain of the driver's");
        self.ring.publish();
    }

    /// The bytes of the next used chain, as many as the device says it wrote.
    fn next_used(&mut self, memory: &GuestMemory) -> Option<Vec<u8>> {
        if self.ring.ready().expect("a used ring in order") == 0 {
            return None;
        }
        let used = self.ring.pop().expect("a chain that was offered");
        self.ring.release(used.head).expect("a chain of the driver's");
        let mut bytes = Vec::new();
        for piece in self.chains.remove(&used.head).expect("a chain that was offered") {
            let mut part = vec![0; (used.len as usize - bytes.len()).min(piece.len as usize)];
            if part.is_empty() {
                break;
            }
            memory.slice(piece.at, part.len() as u64).expect("its room").copy_to(&mut part);
            bytes.extend(part);
        }
        assert_eq!(bytes.len(), used.len as usize, "not more than there was room");
        Some(bytes)
    }
}
