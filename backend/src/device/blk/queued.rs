//! Bursts of requests that end later: chains go to the store with their memory pinned, and are used when it has ended them.

use mdev_dma::Perm;
use mdev_pin::Burst;
use mdev_protocol::virtio::blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::Shared;
use super::engine::{BURST, BlkEngine, cause, rules};
use super::flying::{Flown, Flying};
use super::gathered::Gathered;
use super::request::{Data, Refused, Rules, What, parse, write_id, write_status};
use crate::device::{Enabled, Queue, QueueStats, Wait};
use crate::ring::{Chain, RingError, Vring};
use crate::store::{Completion, Pins, Port, Queued, Request};
use crate::sys::tsc;

impl BlkEngine {
    /// Takes what the store has ended, and one burst. How many chains were taken or used.
    pub(super) fn poll_queued(&mut self) -> u32 {
        self.collect();
        let Self { shared, features, port: Some(Port::Queued(port)), queue: Some(queue), .. } = self else {
            return 0;
        };
        if queue.failed.is_some() {
            return 0;
        }
        let takes = !self.quiesced && queue.switch.get() == Enabled::Yes && queue.ready();
        if !takes && self.ended.is_empty() {
            return 0;
        }
        queue.hush();
        let mut burst = Queuing {
            shared,
            rules: rules(shared, *features),
            flying: &mut self.flying,
            requests: &mut self.requests,
            gathered: &mut self.gathered,
            done: SmallVec::new(),
            wait: queue.wait(),
        };
        let served = burst.serve(queue, port, &self.ended, self.moved, takes);
        match served {
            Ok(Served { taken, used, call }) => {
                self.ended.clear();
                self.moved = 0;
                if takes {
                    queue.healed();
                }
                if call {
                    queue.call();
                }
                if taken > 0 {
                    port.begin();
                }
                taken.saturating_add(used)
            }
            Err(error) => {
                queue.trouble(error);
                0
            }
        }
    }

    /// Takes the completions that have come: their statuses are written, and their memory is let go.
    fn collect(&mut self) {
        let Self { shared, port: Some(Port::Queued(port)), completions, flying, queue, .. } = self else {
            return;
        };
        port.take(completions);
        for Completion { tag, result } in completions.drain(..) {
            let Some(flown) = flying.land(tag) else { continue };
            let Flown { head, writable, status: place, operation, offset } = flown;
            let Some(queue) = queue else { continue };
            let status = match result {
                Ok(bytes) => {
                    self.moved = self.moved.wrapping_add(bytes);
                    VIRTIO_BLK_S_OK
                }
                // Whoever goes on finds it in the log.
                Err(Errno::CANCELED) if self.cancelled && queue.ring.keeps_log() => continue,
                Err(errno) => {
                    queue.stats.add_drops(cause(errno), 1);
                    shared.complain(format_args!("queue {}: {operation:?} at {offset}", queue.index), errno);
                    VIRTIO_BLK_S_IOERR
                }
            };
            place.slices().for_each(|byte| {
                byte.copy_from(&[status]);
            });
            if place.poisoned() {
                queue.trouble(RingError::Poisoned);
            }
            self.ended.push((head, writable));
        }
    }
}

/// A burst in which chains become requests.
struct Queuing<'e> {
    shared: &'e Shared,
    rules: Rules,
    flying: &'e mut Flying,
    requests: &'e mut Vec<Request>,
    gathered: &'e mut Gathered,
    /// Chains that need no store.
    done: SmallVec<[(u16, u32); BURST]>,
    wait: Wait,
}

/// What a burst came to.
struct Served {
    /// Chains that are requests now.
    taken: u32,
    /// Chains that were used.
    used: u32,
    call: bool,
}

impl Queuing<'_> {
    fn serve(
        &mut self,
        queue: &mut Queue,
        port: &mut Queued,
        ended: &[(u16, u32)],
        moved: u64,
        takes: bool,
    ) -> Result<Served, RingError> {
        let began = tsc::now();
        let Queue { ring, lane, stats, .. } = queue;
        let burst = lane.enter();
        let mut vring = ring.begin(&burst)?;
        if ended.is_empty() && vring.pending()? == 0 {
            stats.add_empty_poll();
            return Ok(Served { taken: 0, used: 0, call: false });
        }
        for (head, used) in ended {
            vring.complete(*head, *used)?;
        }
        if takes && let Err(error) = self.take(&mut vring, stats)
            // Otherwise the driver hears of what has ended first, and this is met again.
            && ended.is_empty()
        {
            return Err(error);
        }
        for (head, used) in &self.done {
            vring.complete(*head, *used)?;
        }
        let call = match vring.publish() {
            Ok(call) => call,
            Err(error) => {
                self.give_up();
                return Err(error);
            }
        };
        let taken = self.requests.len() as u32;
        let used = ended.len().saturating_add(self.done.len()) as u32;
        // Before the burst ends: an unmap that has waited for it finds every pin in the store.
        self.requests.drain(..).for_each(|request| port.submit(request));
        drop(burst);
        if taken != 0 || used != 0 {
            stats.add_burst(used.into(), moved, tsc::now().wrapping_sub(began));
        }
        Ok(Served { taken, used, call })
    }

    /// Takes chains, as many as there is room for.
    ///
    /// # Errors
    /// What is wrong with the first of them: nothing was taken.
    fn take(&mut self, vring: &mut Vring<'_, '_>, stats: &QueueStats) -> Result<(), RingError> {
        self.gathered.take(vring, self.flying.room())?;
        let gathered = std::mem::take(self.gathered);
        let mut taken = 0usize;
        let mut outcome = Ok(());
        while let Some(chain) = gathered.chain(taken) {
            outcome = self.one(vring.burst(), &chain, stats);
            if outcome.is_err() {
                break;
            }
            taken = taken.wrapping_add(1);
        }
        vring.untake(gathered.len().wrapping_sub(taken));
        *self.gathered = gathered;
        if taken == 0 { outcome } else { Ok(()) }
    }

    /// One chain.
    fn one(&mut self, burst: &Burst<'_>, chain: &Chain<'_>, stats: &QueueStats) -> Result<(), RingError> {
        let asked = parse(burst, chain, &self.rules)?;
        let status = match asked.what {
            What::Store { operation, offset, len, data } => match pin(burst, data) {
                Ok(memory) => {
                    let status = burst.pin(asked.status, 1, Perm::WRITE)?;
                    let (head, writable) = (chain.head, asked.writable);
                    let flown = Flown { head, writable, status, operation, offset };
                    // No more are taken than there is room for.
                    let tag = self.flying.add(flown).ok_or(RingError::Overrun { size: 0 })?;
                    self.requests.push(Request { tag, operation, offset, len, memory });
                    return Ok(());
                }
                Err(error) => self.refuse(self.wait.refusal(error)?, stats),
            },
            What::Id(data) => {
                write_id(burst, data, &self.shared.id)?;
                VIRTIO_BLK_S_OK
            }
            What::Refused(refused) => self.refuse(refused, stats),
        };
        write_status(burst, asked.status, status)?;
        self.done.push((chain.head, asked.writable));
        Ok(())
    }

    fn refuse(&self, refused: Refused, stats: &QueueStats) -> u8 {
        stats.add_drops(refused.cause(), 1);
        refused.status()
    }

    /// Nothing was taken: the requests of this burst are none.
    #[cold]
    fn give_up(&mut self) {
        for request in self.requests.drain(..) {
            self.flying.land(request.tag);
        }
    }
}

/// Holds the memory of a request.
fn pin(burst: &Burst<'_>, data: Data<'_>) -> Result<Pins, RingError> {
    data.pieces().map(|piece| Ok(burst.pin(piece.iova, piece.len, data.perm)?)).collect()
}
