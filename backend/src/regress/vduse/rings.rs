//! Rings of both formats, and what a suspended device says of where they stand.
use super::server::KernelServer;
use crate::driver::net::{QueueOptions, RxQueue, TxQueue};
use crate::driver::vdpa::VdpaFrontEnd;
use crate::driver::{GuestMemory, MemoryOptions, RingFds, Virtqueue};
use crate::perf::frames;
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Outcome, expect, expect_equal};
use crate::regress::space::{LONG, pause};
use mdev_protocol::virtio::feature::VIRTIO_F_RING_PACKED;
use std::time::Instant;

/// Descriptors of each ring.
const SIZE: u16 = 64;
const FRAME: u32 = 256;
/// Frames under way at a time: one that finds no buffer is dropped.
const WINDOW: u64 = 32;

/// Frames go out and come back, the device is suspended and says where its rings stand, and after a reset they go on from there.
pub fn suspended<Q: Virtqueue>(run: &Run, packed: bool) -> Outcome {
    let server = KernelServer::start()?;
    let memory = MemoryOptions { size: 1 << 20, ..Default::default() };
    for mut random in run.rounds(8) {
        let mut guest = GuestMemory::new(memory)?;
        let options = QueueOptions::plain(SIZE);
        let mut pair = Pair::<Q> {
            rx: RxQueue::on_ring(&mut guest, options)?,
            tx: TxQueue::on_ring(&mut guest, options)?,
            fds: [RingFds::new()?, RingFds::new()?],
            sent: 0,
            seen: 0,
        };
        pair.rx.offer_all()?;
        pair.rx.queue.publish();
        let mut front = server.open_with(if packed { VIRTIO_F_RING_PACKED } else { 0 })?;
        front.share(&guest)?;
        for _ in 0..1 + random.below(3) {
            pair.start(&front)?;
            run.time("frames", || pair.exchange(&mut random))?;
            run.time("suspend", || front.suspend())?;
            for (index, base) in [(0, pair.rx.queue.base()), (1, pair.tx.queue.base())] {
                expect_equal(
                    front.vdpa().ring_base(index)?,
                    base,
                    "where a ring of a suspended device stands",
                )?;
            }
            run.time("reset", || front.reset())?;
        }
        drop(front);
    }
    server.end()
}

/// A queue pair, and the frames that it has sent and seen.
struct Pair<Q> {
    rx: RxQueue<Q>,
    tx: TxQueue<Q>,
    fds: [RingFds; 2],
    sent: u64,
    seen: u64,
}

impl<Q: Virtqueue> Pair<Q> {
    fn start(&self, front: &VdpaFrontEnd) -> Outcome {
        let [rx, tx] = &self.fds;
        front.start(0, &self.rx.queue, rx)?;
        front.start(1, &self.tx.queue, tx)?;
        Ok(front.run()?)
    }

    /// Sends some frames, and waits until they are back and their buffers are.
    fn exchange(&mut self, random: &mut Random) -> Outcome {
        let end = self.sent.saturating_add(1 + random.below(200));
        let deadline = Instant::now() + LONG;
        while self.seen < end || self.tx.queue.outstanding() > 0 {
            expect(Instant::now() < deadline, "in vain: frames come back")?;
            self.tx.reclaim(u32::MAX, |_| {})?;
            let room = WINDOW.saturating_sub(self.sent.saturating_sub(self.seen));
            let room = end.saturating_sub(self.sent).min(room).min(1 + random.below(16)) as u32;
            let Pair { sent, seen, rx, tx, .. } = self;
            tx.send(room, |_, frame| {
                if let Some(frame) = frame.subslice(0, FRAME as usize) {
                    frames::write(&frame, *sent);
                }
                *sent = sent.wrapping_add(1);
                FRAME
            })?;
            tx.queue.publish();
            let mut right = true;
            rx.receive(u32::MAX, |_, packet| {
                let mut bytes = vec![0; FRAME as usize];
                packet.frame().copy_to(&mut bytes);
                right &= packet.len() == FRAME as usize && frames::is_ours(&bytes, *seen);
                *seen = seen.wrapping_add(1);
            })?;
            expect(right, "a frame came back changed, or another in its place")?;
            rx.queue.publish();
            self.fds.iter().for_each(|ring| ring.kick.signal());
            pause();
        }
        Ok(())
    }
}
