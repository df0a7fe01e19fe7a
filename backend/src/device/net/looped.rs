//! A queue pair on a loopback: frames from its transmit queue into its receive queue.

use super::engine::{Served, discard, serve};
use super::header::HEADER;
use super::incoming::{Arrival, Incoming, Offered, Refusal};
use super::outgoing::{Outgoing, Sent};
use crate::device::{DropCause, Enabled, Queue, QueueStats, can_be_brought};
use crate::ring::{RingError, Vring};
use crate::sys::tsc;

/// Whether the frames for a receive queue are left with their sender: the translation of its next buffer was asked for, and
/// every buffer is a new one behind an IOMMU that is strict.
#[inline(always)]
pub(super) fn holds_up(receive: &mut Queue) -> bool {
    receive.switch.get() == Enabled::Yes && receive.is_awaited()
}

/// One burst of a transmit queue into the receive queue of the same pair.
#[inline(always)]
pub(super) fn turn(transmit: &mut Queue, mut receive: Option<&mut Queue>, mergeable: bool) -> u32 {
    if transmit.switch.get() != Enabled::Yes {
        return discard(transmit);
    }
    if receive.as_deref_mut().is_some_and(holds_up) {
        return 0;
    }
    let mut arrival = Arrival::default();
    let chains = serve(transmit, |vring, stats| {
        turn_burst(vring, stats, receive.as_deref_mut(), mergeable, &mut arrival)
    });
    if let Some(receiver) = receive {
        arrival.tell(receiver);
    }
    chains
}

#[inline(never)]
fn turn_burst(
    vring: Vring<'_, '_>,
    stats: &QueueStats,
    receive: Option<&mut Queue>,
    mergeable: bool,
    arrival: &mut Arrival,
) -> Result<Served, RingError> {
    let began = tsc::now();
    let mut sent = Sent::new();
    let mut frames = Outgoing::take(vring, &mut sent)?;
    let receiver = receive.filter(|queue| queue.switch.get() == Enabled::Yes);
    let receiver = receiver.and_then(|queue| queue.ready().then_some(queue));
    match receiver {
        Some(receiver) => *arrival = pass(&mut frames, receiver, mergeable, stats)?,
        None => stats.add_drops(DropCause::NoReceiver, frames.len() as u64),
    }
    let chains = frames.len();
    let call = frames.finish(stats, began)?;
    Ok(Served { chains, call })
}

/// Copies frames into a receive queue and publishes them there. What finds no room is dropped and counted at its sender.
///
/// # Errors
/// The sender's memory was lost.
#[inline(always)]
fn pass(
    frames: &mut Outgoing<'_, '_, '_>,
    receiver: &mut Queue,
    mergeable: bool,
    sender: &QueueStats,
) -> Result<Arrival, RingError> {
    let asks = receiver.asks();
    let Queue { ring, lane, stats, parked, .. } = receiver;
    let burst = lane.enter();
    let vring = match ring.begin(&burst) {
        Ok(vring) => vring,
        Err(error) if asks && can_be_brought(error) => {
            frames.keep(0, 0);
            return Ok(Arrival::trouble(error));
        }
        Err(error) => {
            sender.add_drops(DropCause::NoReceiver, frames.len() as u64);
            return Ok(Arrival::trouble(error));
        }
    };
    let mut offered = Offered::new();
    let mut room = Incoming::open(vring, &mut offered, mergeable, frames.len());
    let mut broken = None;
    for index in 0..frames.len() {
        let Some(frame) = frames.frame(index) else { continue };
        let cause = match room.room(frame.len()) {
            Ok(room) => {
                room.write_frame(HEADER, &frame);
                continue;
            }
            Err(Refusal::Later) if index > 0 => {
                let unserved = frame.len();
                frames.keep(index, unserved);
                break;
            }
            Err(Refusal::Broken(error)) if asks && can_be_brought(error) => {
                let unserved = frame.len();
                frames.keep(index, unserved);
                broken = Some(error);
                break;
            }
            // A frame that needs more chains than a burst has will not fit the next one either.
            Err(Refusal::Full | Refusal::Later) => DropCause::ReceiverFull,
            Err(Refusal::Small) => DropCause::ReceiverSmall,
            Err(Refusal::Broken(error)) => {
                broken = Some(error);
                DropCause::NoReceiver
            }
        };
        sender.add_drops(cause, 1);
    }
    Ok(Arrival::of(room.show(frames, stats, parked)?, broken))
}
