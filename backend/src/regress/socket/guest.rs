//! A guest with one queue pair: numbered frames out, and the same frames back.
use super::server::Server;
use crate::driver::net::HEADER_LEN;
use crate::driver::{FrontEnd, GuestMemory, MemoryOptions, Part, Piece, RingFds, RingOptions, SplitQueue};
use crate::perf::frames;
use crate::regress::run::lock;
use crate::regress::scenario::{Failure, Outcome, expect, expect_equal};
use crate::regress::space::{LONG, PAGE, pause, stopped};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::vhost_user::{MemoryRegion, VringAddr};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Descriptors of each ring.
pub const SIZE: u16 = 64;
/// Frames under way at a time.
const WINDOW: u64 = 32;
const FRAME: u32 = 256;
const BUFFER: u32 = FRAME + HEADER_LEN as u32;

/// A queue pair. Its rings are in the first region of the memory, its buffers in the last.
pub struct Port {
    rings: [SplitQueue; 2],
    buffers: [Part; 2],
    idle: Vec<u16>,
    sent: u64,
    seen: u64,
}

/// A guest's memory, of a region for rings and one for buffers, and a queue pair in it.
pub struct Memory {
    pub guest: Arc<GuestMemory>,
    pub port: Mutex<Port>,
}

impl Memory {
    /// A guest with a queue pair.
    pub fn new() -> Result<Memory, Failure> {
        let mut guest = regions()?;
        let rings = rings(&mut guest)?;
        add_buffers(&mut guest)?;
        let port = Port::new(&mut guest, rings)?;
        Ok(Memory { guest: Arc::new(guest), port: Mutex::new(port) })
    }

    /// A guest with two queue pairs, for two devices.
    pub fn pair() -> Result<(Memory, Memory), Failure> {
        let mut guest = regions()?;
        let (first, second) = (rings(&mut guest)?, rings(&mut guest)?);
        add_buffers(&mut guest)?;
        let (first, second) = (Port::new(&mut guest, first)?, Port::new(&mut guest, second)?);
        let guest = Arc::new(guest);
        let with = |port| Memory { guest: guest.clone(), port: Mutex::new(port) };
        Ok((with(first), with(second)))
    }
}

fn regions() -> Result<GuestMemory, Failure> {
    Ok(GuestMemory::new(MemoryOptions { size: 64 * PAGE, ..Default::default() })?)
}

fn add_buffers(guest: &mut GuestMemory) -> Outcome {
    Ok(guest.add_region(MemoryOptions { size: 64 * PAGE, first: Iova(1 << 32), huge_pages: false })?)
}

fn rings(guest: &mut GuestMemory) -> Result<[SplitQueue; 2], Failure> {
    let options = RingOptions::plain(SIZE);
    Ok([SplitQueue::new(guest, options)?, SplitQueue::new(guest, options)?])
}

impl Port {
    fn new(guest: &mut GuestMemory, mut rings: [SplitQueue; 2]) -> Result<Port, Failure> {
        let bytes = u64::from(SIZE) * u64::from(BUFFER);
        let buffers = [guest.allocate(bytes, PAGE)?, guest.allocate(bytes, PAGE)?];
        let mut idle = Vec::new();
        for (number, (ring, part)) in rings.iter_mut().zip(&buffers).enumerate() {
            while let Some(head) = ring.next_head() {
                let at = Iova(part.at.0 + u64::from(head) * u64::from(BUFFER));
                ring.prepare(&[Piece { at, len: BUFFER, device_writes: number == 0 }])?;
                match number {
                    0 => ring.offer(head)?,
                    _ => idle.push(head),
                }
            }
            ring.publish();
        }
        Ok(Port { rings, buffers, idle, sent: 0, seen: 0 })
    }

    /// The receive and the transmit ring.
    pub fn rings(&self) -> &[SplitQueue; 2] {
        &self.rings
    }

    /// Sends what there is room for up to frame `end`, and takes what has come, which must be the next frames.
    pub fn step(&mut self, end: u64) -> Outcome {
        let Port { rings: [rx, tx], buffers: [received, sending], idle, sent, seen } = self;
        for _ in 0..tx.ready()? {
            idle.push(tx.pop()?.head);
        }
        while *sent < end && sent.saturating_sub(*seen) < WINDOW {
            let Some(head) = idle.pop() else { break };
            if let Some(frame) = frame(sending, head) {
                frames::write(&frame, *sent);
            }
            tx.offer(head)?;
            *sent += 1;
        }
        tx.publish();
        for _ in 0..rx.ready()? {
            let used = rx.pop()?;
            let mut bytes = vec![0; FRAME as usize];
            frame(received, used.head).map(|frame| frame.copy_to(&mut bytes));
            let right = used.len == BUFFER && frames::is_ours(&bytes, *seen);
            expect(right, &format!("frame {seen} came back changed, or another in its place"))?;
            *seen += 1;
            rx.offer(used.head)?;
        }
        rx.publish();
        Ok(())
    }

    /// Offers every chain again and again, and touches no buffer.
    pub fn churn(&mut self) -> Outcome {
        let Port { rings, idle, .. } = self;
        for (number, ring) in rings.iter_mut().enumerate() {
            for _ in 0..ring.ready()? {
                let head = ring.pop()?.head;
                ring.offer(head)?;
            }
            if number == 1 {
                for head in idle.drain(..) {
                    ring.offer(head)?;
                }
            }
            ring.publish();
        }
        Ok(())
    }
}

fn frame(buffers: &Part, head: u16) -> Option<GuestSlice<'_>> {
    let at = u64::from(head) * u64::from(BUFFER) + HEADER_LEN as u64;
    buffers.range(at, FRAME.into())
}

/// A front-end of a guest's memory.
pub struct Connection {
    pub front: FrontEnd,
    /// They outlive the connection where others hold them: a guest that kicks does not know of it.
    pub fds: Arc<[RingFds; 2]>,
    /// Added to the keys by which the device knows the memory.
    shift: u64,
}

impl Connection {
    /// Connects and negotiates; the device knows neither memory nor rings.
    pub fn new(server: &Server, shift: u64) -> Result<Connection, Failure> {
        let needed = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF;
        let front = FrontEnd::over(server.client()?, needed, 0, FrontEnd::usual_protocol())?;
        Ok(Connection { front, fds: Arc::new([RingFds::new()?, RingFds::new()?]), shift })
    }

    /// Connects, shares the memory and starts both rings.
    pub fn start(server: &Server, memory: &Memory) -> Result<Connection, Failure> {
        let mut connection = Connection::new(server, 0)?;
        connection.share(memory)?;
        for index in 0..2 {
            connection.start_ring(memory, index)?;
        }
        Ok(connection)
    }

    /// A region as this connection's messages name it.
    pub fn named(&self, memory: &Memory, region: usize) -> Result<MemoryRegion, Failure> {
        let region =
            memory.guest.regions().get(region).ok_or_else(|| Failure::new("there is no such region"))?;
        Ok(MemoryRegion {
            guest_addr: region.range.first().0,
            size: region.size(),
            user_addr: region.user.0 + self.shift,
            mmap_offset: region.extent.offset,
        })
    }

    /// Shares both regions.
    pub fn share(&mut self, memory: &Memory) -> Outcome {
        for (number, region) in memory.guest.regions().iter().enumerate() {
            let named = self.named(memory, number)?;
            self.front.client().add_mem_region(named, region.extent.file.as_fd())?;
        }
        Ok(())
    }

    /// Starts a ring at its own base.
    pub fn start_ring(&mut self, memory: &Memory, index: u8) -> Outcome {
        self.start_ring_by(memory, index, self.shift)
    }

    /// The same, by user addresses that are `shift` further than those of the memory.
    pub fn start_ring_by(&mut self, memory: &Memory, index: u8, shift: u64) -> Outcome {
        let port = lock(&memory.port);
        let [rx, tx] = &port.rings;
        let ring = if index == 0 { rx } else { tx };
        let key = |at| match memory.guest.user(at) {
            Some(user) => Ok(user.0 + shift),
            None => Err(Failure::new("a ring is not in the memory")),
        };
        let at = ring.addresses();
        let (desc, used, avail) = (key(at.desc)?, key(at.used)?, key(at.avail)?);
        let [rx, tx] = &*self.fds;
        let fds = if index == 0 { rx } else { tx };
        let client = self.front.client();
        client.set_vring_num(index.into(), SIZE.into())?;
        client.set_vring_base(index.into(), ring.base().into())?;
        client.set_vring_addr(VringAddr { index: index.into(), flags: 0, desc, used, avail, log: 0 })?;
        client.set_vring_call(index, Some(fds.call.as_fd()))?;
        client.set_vring_err(index, Some(fds.err.as_fd()))?;
        client.set_vring_kick(index, Some(fds.kick.as_fd()))?;
        client.set_vring_enable(index.into(), true)?;
        fds.kick.signal();
        Ok(())
    }

    /// Stops a ring, which must end where the driver is.
    pub fn stop_ring(&mut self, memory: &Memory, index: u8) -> Outcome {
        let base = {
            let port = lock(&memory.port);
            let [rx, tx] = &port.rings;
            if index == 0 { rx.base() } else { tx.base() }
        };
        expect_equal(self.front.stop(index)?, base, "the base of a ring that was stopped")
    }
}

/// Wakes the device.
pub fn kick(fds: &[RingFds; 2]) {
    for ring in fds {
        ring.kick.signal();
    }
}

/// Sends so many frames more and takes all back.
pub fn exchange(memory: &Memory, fds: &[RingFds; 2], frames: u64) -> Outcome {
    let mut port = lock(&memory.port);
    let end = port.sent + frames;
    let deadline = Instant::now() + LONG;
    while port.seen < end || port.rings.iter().skip(1).any(|tx| tx.outstanding() > 0) {
        port.step(end)?;
        kick(fds);
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("of {end} frames came {}", port.seen)));
        }
        pause();
    }
    Ok(())
}

/// A guest that offers its chains again and again, and touches no buffer.
pub fn churn(memory: &Memory, fds: &[RingFds; 2], stop: &AtomicBool) -> Outcome {
    while !stopped(stop) {
        lock(&memory.port).churn()?;
        kick(fds);
        pause();
    }
    Ok(())
}
