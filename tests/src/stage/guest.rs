//! A guest with one queue pair and its front-end.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mdev_protocol::vhost_user::{Client, ClientError, ProtocolFeatures};
use mdev_protocol::virtio::feature::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use mdevd::driver::{DriverError, FrontEnd, GuestMemory, MemoryOptions, RingFds, RingOptions};
use mdevd::sys::{EventFd, Kicks};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Port, Stage, WATCHDOG, await_that};

/// The virtio features of a guest, before its options.
pub const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF;
/// The protocol features of a guest's front-end: all that mdevd offers, but for addresses by the guest's names.
pub const PROTOCOL: ProtocolFeatures =
    mdevd::session::OFFERED_PROTOCOL_FEATURES.difference(ProtocolFeatures::GPA_ADDRESSES);

/// Bytes of a guest's first region: room for rings to be started anew.
const MEMORY: u64 = 64 << 20;

/// What guest to make.
#[derive(Copy, Clone, Debug)]
pub struct GuestOptions {
    /// Descriptors of each ring.
    pub size: u16,
    /// Whether event indices are negotiated.
    pub event_idx: bool,
    /// Whether indirect tables are negotiated. The guest's own chains have one buffer each and need none.
    pub indirect: bool,
    /// The buffers are in a region of their own, behind that of the rings.
    pub apart: bool,
    /// An IOMMU is between the guest and the device: addresses are the guest's in all messages, and mean to the device what
    /// the front-end has translated, which is nothing at first.
    pub translated: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions { size: 128, event_idx: true, indirect: true, apart: false, translated: false }
    }
}

/// A guest whose two rings run on a device of a [`Stage`].
pub struct Guest {
    /// The device it is connected to.
    pub device: usize,
    /// The number of its connection.
    pub conn: u64,
    /// Its front-end.
    pub front: FrontEnd,
    /// Its memory.
    pub memory: GuestMemory,
    /// Its queue pair.
    pub port: Port,
    /// The eventfds of its receive and its transmit ring.
    pub fds: [RingFds; 2],
    options: GuestOptions,
}

impl Guest {
    /// A guest that runs.
    ///
    /// # Panics
    /// When anything refuses it.
    pub fn start(stage: &Stage, device: usize, options: GuestOptions) -> Guest {
        let mut guest = Guest::connect(stage, device, options);
        guest.share();
        guest.start_rings();
        guest
    }

    /// A guest that is connected and has negotiated; its back-end knows neither memory nor rings.
    ///
    /// # Panics
    /// When anything refuses it.
    pub fn connect(stage: &Stage, device: usize, options: GuestOptions) -> Guest {
        let (conn, socket) = stage.connect(device);
        Guest { device, conn, ..Guest::over(socket, options) }
    }

    /// The same on a connection to any back-end, which is not of a [`Stage`].
    ///
    /// # Panics
    /// When anything refuses it.
    pub fn over(socket: UnixStream, options: GuestOptions) -> Guest {
        let mut features = FEATURES;
        if options.event_idx {
            features |= VIRTIO_RING_F_EVENT_IDX;
        }
        if options.indirect {
            features |= VIRTIO_RING_F_INDIRECT_DESC;
        }
        let mut protocol = PROTOCOL;
        if options.translated {
            features |= VIRTIO_F_ACCESS_PLATFORM;
            protocol |= ProtocolFeatures::GPA_ADDRESSES;
        }
        let client = Client::new(socket, WATCHDOG);
        let front = FrontEnd::over(client, features, 0, protocol).expect("the device takes the features");
        assert_eq!(front.protocol(), protocol);
        let mut memory =
            GuestMemory::new(MemoryOptions { size: MEMORY, ..Default::default() }).expect("memory");
        let port = new_port(&mut memory, options);
        let fds = [RingFds::new().expect("eventfds"), RingFds::new().expect("eventfds")];
        Guest { device: 0, conn: 0, front, memory, port, fds, options }
    }

    /// Tells the back-end of the memory.
    ///
    /// # Panics
    /// When that is refused.
    pub fn share(&mut self) {
        self.front.share(&self.memory).expect("the memory is good");
    }

    /// Starts both rings and enables them, the transmit ring last.
    ///
    /// # Panics
    /// When that is refused.
    pub fn start_rings(&mut self) {
        for (index, queue) in [(0u8, &self.port.rx), (1, &self.port.tx)] {
            let fds = &self.fds[usize::from(index)];
            self.front.start(index, queue, fds, &self.memory).expect("the ring starts");
        }
    }

    /// Stops both rings, takes a new pair of rings in the same memory, and starts those.
    ///
    /// # Panics
    /// When that is refused.
    pub fn start_anew(&mut self) {
        for index in 0..2 {
            self.front.stop(index).expect("the ring stops");
        }
        self.port = new_port(&mut self.memory, GuestOptions { apart: false, ..self.options });
        self.start_rings();
    }

    /// Sends as much as there is room for, up to frame `end`, and takes what has come.
    ///
    /// # Errors
    /// What the device did wrong in its rings.
    ///
    /// # Panics
    /// When a frame comes back that is not the next one, or not whole.
    pub fn step(&mut self, end: u64) -> Result<(), DriverError> {
        if self.port.send(end)? {
            self.fds[1].kick.signal();
        }
        if self.port.receive()? {
            self.fds[0].kick.signal();
        }
        Ok(())
    }

    /// Sends so many frames and takes them back.
    ///
    /// # Panics
    /// When the device does something wrong, or nothing.
    pub fn exchange(&mut self, frames: u64) {
        let end = self.port.frames().0 + frames;
        let deadline = Instant::now() + WATCHDOG;
        while self.port.frames().1 < end {
            let before = self.port.frames();
            self.step(end).expect("a device that keeps to the rules");
            if self.port.frames() == before {
                assert!(Instant::now() < deadline, "of {end} frames came {}", before.1);
                self.wait();
            }
        }
    }

    /// Waits a moment for the device's call.
    pub fn wait(&mut self) {
        for _ in 0..20 {
            std::thread::yield_now();
            if self.port.rx.ready().is_ok_and(|ready| ready == 0) {
                continue;
            }
            return;
        }
        self.port.rx.want_calls(true);
        if self.port.rx.ready().is_ok_and(|ready| ready == 0) {
            is_signalled_within(&self.fds[0].call, Duration::from_millis(2));
        }
        self.fds[0].call.drain();
    }

    /// The device status, as the front-end reads it.
    ///
    /// # Panics
    /// When the back-end does not tell it.
    pub fn status(&mut self) -> u64 {
        self.front.client().status().expect("a status")
    }

    /// Whether the device asks for a reset.
    ///
    /// # Panics
    /// As [`Guest::status`].
    pub fn needs_reset(&mut self) -> bool {
        self.status() & u64::from(DEVICE_NEEDS_RESET) != 0
    }

    /// Waits for the err eventfd of a ring, which must not have been signalled more than once.
    ///
    /// # Panics
    /// When it is not signalled, or more often.
    pub fn must_err(&self, index: u16) {
        let err = &self.fds[usize::from(index)].err;
        let mut count = Kicks::None;
        await_that("the err eventfd is signalled", || {
            count = err.drain();
            count != Kicks::None
        });
        assert_eq!(count, Kicks::Some(1), "ring {index} told of one failure more than once");
    }

    /// A request that must be refused.
    ///
    /// # Panics
    /// When it is not.
    pub fn refused(&mut self, request: impl FnOnce(&mut Client) -> Result<(), ClientError>) {
        let outcome = request(self.front.client());
        assert!(matches!(outcome, Err(ClientError::Refused { .. })), "{outcome:?}");
    }
}

fn new_port(memory: &mut GuestMemory, options: GuestOptions) -> Port {
    let ring = RingOptions { event_idx: options.event_idx, ..RingOptions::plain(options.size) };
    let port = Port::apart(memory, ring, |memory| {
        if options.apart {
            let first = memory.regions().iter().map(|region| region.range.last().0).max().unwrap_or(0) + 1;
            let region = MemoryOptions { first: mdev_dma::Iova(first + (1 << 30)), ..Default::default() };
            memory.add_region(region).expect("a second region");
        }
    });
    port.expect("room for rings and buffers")
}

/// Whether an eventfd becomes readable in this time.
fn is_signalled_within(event: &EventFd, time: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}
