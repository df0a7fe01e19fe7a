//! A burst of requests whose store needs no time: each is served where it is found.

use mdev_dma::GuestSlice;
use mdev_pin::Burst;
use mdev_protocol::virtio::blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use smallvec::SmallVec;

use super::Shared;
use super::engine::{BURST, cause, rules};
use super::gathered::Gathered;
use super::request::{Data, Refused, Rules, What, parse, write_id, write_status};
use crate::device::{Enabled, Queue, QueueStats, Wait};
use crate::ring::{Chain, RingError, Vring};
use crate::store::Immediate;
use crate::sys::tsc;

/// Bytes after which a burst ends: the other engines of the worker have their turn.
const ENOUGH: u64 = 1 << 20;

/// One burst. How many chains were used.
#[inline(always)]
pub(super) fn poll(
    queue: &mut Queue,
    port: &mut Immediate,
    gathered: &mut Gathered,
    shared: &Shared,
    features: u64,
) -> u32 {
    if queue.switch.get() != Enabled::Yes || !queue.ready() {
        return 0;
    }
    queue.hush();
    let wait = queue.wait();
    let outcome = {
        let Queue { ring, lane, stats, .. } = queue;
        let burst = lane.enter();
        match ring.begin(&burst).and_then(|vring| Ok((vring.pending()?, vring))) {
            Ok((0, _)) => {
                stats.add_empty_poll();
                Ok((0, false))
            }
            Ok((_, vring)) => serve(vring, port, gathered, shared, &rules(shared, features), wait, stats),
            Err(error) => Err(error),
        }
    };
    match outcome {
        Ok((used, call)) => {
            queue.healed();
            if call {
                queue.call();
            }
            used
        }
        Err(error) => {
            queue.trouble(error);
            0
        }
    }
}

/// Takes, serves and uses. How many, and whether the driver asks for a call.
#[inline(never)]
fn serve(
    mut vring: Vring<'_, '_>,
    port: &mut Immediate,
    gathered: &mut Gathered,
    shared: &Shared,
    rules: &Rules,
    wait: Wait,
    stats: &QueueStats,
) -> Result<(u32, bool), RingError> {
    let began = tsc::now();
    let mut bytes = 0u64;
    let mut used = 0usize;
    let burst = vring.burst();
    gathered.take(&mut vring, BURST)?;
    while let Some(chain) = gathered.chain(used).filter(|_| bytes < ENOUGH) {
        match one(burst, &chain, port, shared, rules, wait, stats) {
            Ok((len, moved)) => {
                vring.complete(chain.head, len)?;
                bytes = bytes.wrapping_add(moved);
            }
            Err(error) if used == 0 => return Err(error),
            // Those before it are used first; it is met again.
            Err(_) => break,
        }
        used = used.wrapping_add(1);
    }
    vring.untake(gathered.len().wrapping_sub(used));
    let call = vring.publish()?;
    stats.add_burst(used as u64, bytes, tsc::now().wrapping_sub(began));
    Ok((used as u32, call))
}

/// One chain: its used length, and how many bytes were moved.
#[inline(always)]
fn one(
    burst: &Burst<'_>,
    chain: &Chain<'_>,
    port: &mut Immediate,
    shared: &Shared,
    rules: &Rules,
    wait: Wait,
    stats: &QueueStats,
) -> Result<(u32, u64), RingError> {
    let asked = parse(burst, chain, rules)?;
    let refuse = |refused: Refused| {
        stats.add_drops(refused.cause(), 1);
        (refused.status(), 0)
    };
    let (status, moved) = match asked.what {
        What::Store { operation, offset, len, data } => {
            let mut memory: SmallVec<[GuestSlice<'_>; 8]> = SmallVec::new();
            match resolve(burst, data, &mut memory) {
                Ok(()) => match port.serve(operation, offset, len, &memory) {
                    Ok(()) => (VIRTIO_BLK_S_OK, len),
                    Err(errno) => {
                        stats.add_drops(cause(errno), 1);
                        shared.complain(format_args!("{operation:?} of {len} bytes at {offset}"), errno);
                        (VIRTIO_BLK_S_IOERR, 0)
                    }
                },
                Err(error) => refuse(wait.refusal(error)?),
            }
        }
        What::Id(data) => {
            write_id(burst, data, &shared.id)?;
            (VIRTIO_BLK_S_OK, 0)
        }
        What::Refused(refused) => refuse(refused),
    };
    write_status(burst, asked.status, status)?;
    Ok((asked.writable, moved))
}

/// The memory of a request.
#[inline(always)]
fn resolve<'s>(
    burst: &'s Burst<'_>,
    data: Data<'_>,
    out: &mut SmallVec<[GuestSlice<'s>; 8]>,
) -> Result<(), RingError> {
    for piece in data.pieces() {
        match burst.slice(piece.iova, piece.len, data.perm) {
            Ok(slice) => out.push(slice),
            Err(mdev_pin::ResolveError::Split) => {
                let mut pieces = mdev_dma::SgList::new();
                burst.sg(piece.iova, piece.len, data.perm, &mut pieces)?;
                out.extend(pieces.iter());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Wait {
    /// What a request is refused for whose data cannot be resolved.
    ///
    /// # Errors
    /// It is to wait: the chain is not taken.
    #[cold]
    pub(super) fn refusal(self, error: RingError) -> Result<Refused, RingError> {
        if error == RingError::Poisoned || self.is_worthwhile(error) {
            Err(error)
        } else {
            Ok(Refused::NoMemory)
        }
    }
}
