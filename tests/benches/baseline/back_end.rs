//! The same device as a user of the common crates writes it: `vhost-user-backend` for the socket, `virtio-queue` for the rings, `vm-memory` for
//! the guest's memory.
//!
//! In the configuration that was found to be its best: a thread that polls, kicks off, calls only if the driver wants
//! them, no event index, the memory guard and the ring's lock taken once a burst, addresses turned into slices without
//! `Reader` and `Writer`.
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, fence};

use mdevd::perf::drive::Direction;
use mdevd::perf::roundtrip::pin_to;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    VolatileSlice,
};
use vmm_sys_util::epoll::EventSet;

const HEADER: usize = 12;
const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const NO_INTERRUPT: u16 = 1;
/// Where `num_buffers` stands in the header.
const NUM_BUFFERS: usize = 10;
/// Where a packet's running number stands in the frame.
const NUMBER: usize = 42;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

struct Net {
    memory: Memory,
    direction: Direction,
    size: usize,
    cpu: Option<usize>,
    polling: bool,
}

/// Serves one connection at `socket`, then returns.
pub fn serve(socket: &Path, direction: Direction, size: usize, cpu: Option<usize>) -> Result<(), String> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let net = Net { memory: memory.clone(), direction, size, cpu, polling: false };
    let mut daemon = VhostUserDaemon::new("baseline".to_owned(), Arc::new(Mutex::new(net)), memory)
        .map_err(|error| error.to_string())?;
    daemon.serve(socket).map_err(|error| error.to_string())
}

impl VhostUserBackendMut for Net {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: EventSet, vrings: &[VringMutex], _: usize) -> io::Result<()> {
        // The first kick: from now on another thread polls, until the process ends.
        if !self.polling && vrings.iter().all(|vring| vring.get_ref().get_queue().ready()) {
            self.polling = true;
            let poller = Poller {
                memory: self.memory.clone(),
                receive: vrings[0].clone(),
                transmit: vrings[1].clone(),
                received: Vec::with_capacity(1024),
                sent: Vec::with_capacity(1024),
                frame: frame(self.size),
                number: 0,
            };
            let (direction, cpu) = (self.direction, self.cpu);
            std::thread::Builder::new().name("poller".to_owned()).spawn(move || {
                if let Some(cpu) = cpu {
                    pin_to(cpu).expect("the processor that the bench chose exists");
                }
                poller.run(direction)
            })?;
        }
        Ok(())
    }
}

/// A header and a frame of so many bytes.
fn frame(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + size];
    bytes[NUM_BUFFERS] = 1;
    bytes
}

struct Poller {
    memory: Memory,
    receive: VringMutex,
    transmit: VringMutex,
    /// Chains of this burst on either ring, with the bytes written to each.
    received: Vec<(u16, u32)>,
    sent: Vec<(u16, u32)>,
    frame: Vec<u8>,
    number: u64,
}

impl Poller {
    fn run(mut self, direction: Direction) {
        for vring in [&self.receive, &self.transmit] {
            let _ = vring.disable_notification();
        }
        loop {
            let memory = self.memory.memory();
            // An error is a ring that was stopped: the driver is about to leave.
            let _ = match direction {
                Direction::To => self.take(&memory),
                Direction::From => self.fill(&memory),
                Direction::Loop => self.echo(&memory),
            };
        }
    }

    /// Copies every packet out.
    fn take(&mut self, memory: &GuestMemoryMmap) -> Result<(), virtio_queue::Error> {
        let mut ring = self.transmit.get_mut();
        let mut packet = [0u8; 2048];
        for chain in ring.get_queue_mut().iter(memory)? {
            self.sent.push((chain.head_index(), 0));
            for desc in chain {
                if let Some(slice) = slice(memory, desc.addr(), desc.len()) {
                    slice.copy_to(&mut packet[..]);
                }
            }
            std::hint::black_box(&packet);
        }
        finish(&mut self.sent, &mut ring, memory)
    }

    /// Fills every buffer with a numbered packet.
    fn fill(&mut self, memory: &GuestMemoryMmap) -> Result<(), virtio_queue::Error> {
        let mut ring = self.receive.get_mut();
        for chain in ring.get_queue_mut().iter(memory)? {
            self.received.push((chain.head_index(), self.frame.len() as u32));
            for desc in chain {
                if let Some(slice) = slice(memory, desc.addr(), desc.len()) {
                    self.frame[HEADER + NUMBER..][..8].copy_from_slice(&self.number.to_be_bytes());
                    slice.copy_from(&self.frame[..]);
                    self.number += 1;
                }
            }
        }
        finish(&mut self.received, &mut ring, memory)
    }

    /// Copies every packet from the transmit ring into a buffer of the receive ring, once. Without a buffer it is lost.
    fn echo(&mut self, memory: &GuestMemoryMmap) -> Result<(), virtio_queue::Error> {
        let mut transmit = self.transmit.get_mut();
        let mut receive = self.receive.get_mut();
        // In this order: a driver offers the buffer before it sends the packet.
        let chains = transmit.get_queue_mut().iter(memory)?;
        let mut buffers = receive.get_queue_mut().iter(memory)?;
        for chain in chains {
            self.sent.push((chain.head_index(), 0));
            for desc in chain {
                let Some(from) = slice(memory, desc.addr(), desc.len()) else { continue };
                let Some(buffer) = buffers.next() else { continue };
                self.received.push((buffer.head_index(), desc.len()));
                for room in buffer {
                    if let Some(to) = slice(memory, room.addr(), room.len()) {
                        from.copy_to_volatile_slice(to);
                        let _ = to.write_obj(1u16, NUM_BUFFERS);
                    }
                }
            }
        }
        finish(&mut self.received, &mut receive, memory)?;
        finish(&mut self.sent, &mut transmit, memory)
    }
}

/// Uses the chains and calls the driver if it wants to be called. (`needs_notification` knows the event index only, and
/// would call for every burst.)
fn finish(
    heads: &mut Vec<(u16, u32)>,
    ring: &mut VringState,
    memory: &GuestMemoryMmap,
) -> Result<(), virtio_queue::Error> {
    if heads.is_empty() {
        return Ok(());
    }
    for (head, len) in heads.drain(..) {
        ring.get_queue_mut().add_used(memory, head, len)?;
    }
    fence(Ordering::SeqCst);
    let flags: u16 =
        memory.load(GuestAddress(ring.get_queue().avail_ring()), Ordering::Relaxed).unwrap_or(NO_INTERRUPT);
    if flags & NO_INTERRUPT == 0 {
        let _ = ring.signal_used_queue();
    }
    Ok(())
}

fn slice(memory: &GuestMemoryMmap, at: GuestAddress, len: u32) -> Option<VolatileSlice<'_>> {
    memory.get_slice(at, len as usize).ok()
}
