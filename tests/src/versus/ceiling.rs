//! The back-end that only returns descriptors: what the front-end reaches with it is the front-end's own ceiling.
//!
//! It looks at no packet and touches no payload. In received frames it writes the number of buffers, without which a front-end
//! with mergeable buffers does not know how many a frame has; that is one line of each frame, so that the ceiling of the
//! directions `from` and `loop` is a little low.
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::Perm;
use mdevd::daemon::{Daemon, Endpoint, Options};
use mdevd::device::net::{NetConfig, NetDevice, QUEUE_NAMES};
use mdevd::device::{Device, Enabled, Engine, Queue, QueueStats, VirtioDevice};
use mdevd::link::LinkKind;
use mdevd::ring::RingError;
use mdevd::session::SessionOptions;
use mdevd::worker::Mode;

use super::Direction;

/// The first argument of a program that is started as this back-end; socket, direction and bytes of a packet follow.
pub const COMMAND: &str = "ceiling";

/// Chains of a burst: what the net engine serves at a time.
const BURST: usize = 64;
/// Bytes of a virtio-net header, and where the number of buffers stands in it.
const HEADER: u32 = 12;
const NUM_BUFFERS: usize = 10;

/// Serves at the socket until a signal ends it, on the first processor.
///
/// # Errors
/// Arguments that are missing, and what the daemon cannot do without.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let mut next = || arguments.next().ok_or("give a socket, a direction and the bytes of a packet");
    let (socket, direction, size) = (next()?, next()?.parse()?, next()?.parse::<u16>()?);
    let config =
        NetConfig { name: COMMAND.into(), queue_pairs: 1, mac: None, mtu: None, link: LinkKind::Null };
    let device = Returning { net: NetDevice::new(config)?, direction, written: HEADER + u32::from(size) };
    let options = Options {
        mode: Mode::Busy,
        cpus: vec![0],
        stats: None,
        queue_names: QUEUE_NAMES,
        sessions: SessionOptions::default(),
        counters: None,
    };
    Daemon::new(device, Endpoint::bind(Path::new(&socket), None)?, options)?.run()?;
    Ok(())
}

/// A network device as the guest sees it, with an engine of its own.
struct Returning {
    net: NetDevice,
    direction: Direction,
    /// What a received frame is said to have, its header included.
    written: u32,
}

impl Device for Returning {
    fn name(&self) -> &str {
        self.net.name()
    }

    fn queue_count(&self) -> u16 {
        self.net.queue_count()
    }

    fn holds_pins(&self) -> bool {
        false
    }

    fn group(&self, queue: u16) -> u16 {
        self.net.group(queue)
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.net.queue_stats(queue)
    }
}

impl VirtioDevice for Returning {
    fn device_id(&self) -> u32 {
        self.net.device_id()
    }

    fn config_len(&self) -> usize {
        self.net.config_len()
    }

    fn queue_number(&self) -> u64 {
        self.net.queue_number()
    }

    fn uses_in_order(&self) -> bool {
        true
    }

    fn max_ring_size(&self) -> u16 {
        self.net.max_ring_size()
    }

    fn features(&self) -> u64 {
        self.net.features()
    }

    fn check_features(&self, acked: u64) -> Result<(), String> {
        self.net.check_features(acked)
    }

    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String> {
        self.net.config(offset, out)
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> Result<(), String> {
        self.net.set_config(offset, data)
    }

    fn engine(&self, _group: u16, _features: u64) -> Box<dyn Engine> {
        let Self { direction, written, .. } = *self;
        Box::new(Pair { direction, written, queues: [None, None], quiet: [false; 2] })
    }

    fn set_mtu(&self, mtu: u16) -> Result<(), String> {
        self.net.set_mtu(mtu)
    }

    fn rarp(&self, mac: [u8; 6]) {
        self.net.rarp(mac);
    }

    fn reset(&self) {
        self.net.reset();
    }
}

/// The receive and the transmit queue.
struct Pair {
    direction: Direction,
    written: u32,
    queues: [Option<Queue>; 2],
    /// Whether the driver of each knows that it need not kick.
    quiet: [bool; 2],
}

impl Pair {
    fn place(&mut self, index: u16) -> &mut Option<Queue> {
        &mut self.queues[usize::from(index & 1)]
    }
}

impl Engine for Pair {
    fn start_queue(&mut self, queue: Queue) {
        self.quiet[usize::from(queue.index & 1)] = false;
        let index = queue.index;
        *self.place(index) = Some(queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.place(index).take_if(|queue| queue.index == index)
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.place(index).as_mut().filter(|queue| queue.index == index)
    }

    fn poll(&mut self) -> u32 {
        let Self { direction, written, queues: [receive, transmit], quiet: [rx_quiet, tx_quiet] } = self;
        let sent = match direction {
            Direction::From => BURST,
            Direction::To | Direction::Loop => give_back(transmit, tx_quiet, BURST, None),
        };
        let received = match direction {
            Direction::To => 0,
            Direction::From | Direction::Loop => give_back(receive, rx_quiet, sent, Some(*written)),
        };
        sent.max(received) as u32
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn disarm(&mut self) {}

    fn needs_reset(&self) -> bool {
        self.queues.iter().flatten().any(|queue| queue.failed.is_some())
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

/// Gives up to `max` chains back, with so many bytes written if they are for frames, and says how many.
fn give_back(queue: &mut Option<Queue>, quiet: &mut bool, max: usize, written: Option<u32>) -> usize {
    let Some(queue) = queue.as_mut().filter(|queue| queue.failed.is_none() && max > 0) else { return 0 };
    if queue.switch.get() != Enabled::Yes {
        return 0;
    }
    match serve(queue, quiet, max, written) {
        Ok((count, wants_call)) => {
            if let (true, Some(call)) = (wants_call, &queue.call) {
                call.call();
            }
            count
        }
        Err(error) => {
            queue.trouble(error);
            0
        }
    }
}

fn serve(
    queue: &mut Queue,
    quiet: &mut bool,
    max: usize,
    written: Option<u32>,
) -> Result<(usize, bool), RingError> {
    let Queue { ring, lane, .. } = queue;
    let burst = lane.enter();
    let mut vring = ring.begin(&burst)?;
    if !*quiet {
        vring.disarm()?;
        *quiet = true;
    }
    let taken = vring.take(max, |chain| {
        if let (Some(_), Some(first)) = (written, chain.writable.first()) {
            burst.slice(first.iova, first.len, Perm::WRITE)?.write(NUM_BUFFERS, 1u16.to_le());
        }
        Ok(())
    })?;
    match written {
        None => vring.complete_all()?,
        Some(written) => {
            for index in 0..taken {
                let head = vring.head(index).unwrap_or_default();
                vring.complete(head, written)?;
            }
        }
    }
    Ok((taken, taken > 0 && vring.publish()?))
}
