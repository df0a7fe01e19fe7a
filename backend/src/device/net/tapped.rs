//! A queue pair on a tap interface: frames and their headers to and from the kernel, one system call each.

use std::sync::Arc;

use mdev_protocol::virtio::net::NetHeader;
use zerocopy::IntoBytes;

use super::engine::{Served, serve, transmit};
use super::header::HEADER;
use super::incoming::{Incoming, Offered, Refusal};
use super::offload::Offloads;
use super::outgoing::{Outgoing, Sent};
use super::pieces::burst_of;
use crate::device::{DropCause, Enabled, Queue, QueueStats};
use crate::link::{Lost, MAX_FRAME, TapQueue};
use crate::ring::{RingError, Vring};
use crate::sys::tsc;

/// The pair's end of the interface.
pub(super) struct Tapped {
    tap: Arc<TapQueue>,
    from_guest: Offloads,
    to_guest: Offloads,
    /// The longest frame that comes.
    longest: usize,
    /// The kernel had no frame left when it was asked last: it says when it has one.
    drained: bool,
}

impl Tapped {
    /// A pair whose driver has acknowledged `features`; `longest` is what a frame has that nobody segments later.
    pub(super) fn new(tap: Arc<TapQueue>, features: u64, longest: usize) -> Self {
        let to_guest = Offloads::to_guest(features);
        let longest = if to_guest.segments() { MAX_FRAME } else { longest };
        Self { tap, from_guest: Offloads::from_guest(features), to_guest, longest, drained: false }
    }

    /// What becomes readable when a frame comes.
    pub(super) fn queue(&self) -> &Arc<TapQueue> {
        &self.tap
    }

    /// Whether frames may wait for which there was no room: a kick of the receive queue is work then.
    pub(super) fn wants_room(&self) -> bool {
        !self.drained
    }

    /// One burst of the transmit queue.
    pub(super) fn send(&mut self, queue: &mut Queue) -> u32 {
        transmit(queue, |vring, stats| self.send_burst(vring, stats))
    }

    fn send_burst(&mut self, vring: Vring<'_, '_>, stats: &QueueStats) -> Result<Served, RingError> {
        let began = tsc::now();
        let mut sent = Sent::new();
        let mut frames = Outgoing::take_with_headers(vring, &mut sent)?;
        let chains = frames.len();
        for index in 0..chains {
            let header = frames.header(index);
            let Some(frame) = frames.frame(index) else { continue };
            let cause = match self.from_guest.check(header, frame.len()) {
                Some(header) => match self.tap.send(&header, &frame) {
                    Ok(()) => continue,
                    // The burst fails: what is lost shows when it is finished.
                    Err(Lost::Memory) => break,
                    Err(Lost::Full) => DropCause::LinkFull,
                    Err(Lost::Down) => DropCause::LinkDown,
                    Err(Lost::TooLong | Lost::Refused) => DropCause::LinkRefused,
                },
                None => DropCause::Header,
            };
            stats.add_drops(cause, 1);
        }
        let call = frames.finish(stats, began)?;
        Ok(Served { chains, call })
    }

    /// One burst of the receive queue.
    pub(super) fn receive(&mut self, queue: &mut Queue, mergeable: bool) -> u32 {
        self.drained = false;
        if queue.switch.get() != Enabled::Yes {
            queue.hush();
            return 0;
        }
        serve(queue, |vring, stats| self.receive_burst(vring, stats, mergeable))
    }

    fn receive_burst(
        &mut self,
        vring: Vring<'_, '_>,
        stats: &QueueStats,
        mergeable: bool,
    ) -> Result<Served, RingError> {
        let began = tsc::now();
        let mut offered = Offered::new();
        let burst = burst_of(&vring);
        let mut incoming = Incoming::open(vring, &mut offered, mergeable, 1);
        let mut lost = 0usize;
        for taken in 0..burst {
            let arrival = match incoming.widest(self.longest) {
                Ok(room) => self.tap.receive(&room, HEADER),
                // A malformed chain behind good ones is said when it is the first.
                Err(Refusal::Broken(error)) if taken == 0 => return Err(error),
                Err(_) => break,
            };
            let cause = match arrival {
                Ok(Some((header, len))) => match self.to_guest.check_from_host(header, len) {
                    Some(header) => match incoming.room(len) {
                        Ok(room) => {
                            // The number of chains stays as it is.
                            room.write(
                                0,
                                header.as_bytes().get(..NetHeader::NUM_BUFFERS_OFFSET).unwrap_or_default(),
                            );
                            continue;
                        }
                        Err(_) => DropCause::ReceiverFull,
                    },
                    None => DropCause::Header,
                },
                Ok(None) | Err(Lost::Down | Lost::Full | Lost::Refused) => {
                    self.drained = true;
                    break;
                }
                Err(Lost::Memory) => break,
                Err(Lost::TooLong) if mergeable => DropCause::ReceiverFull,
                Err(Lost::TooLong) => DropCause::ReceiverSmall,
            };
            stats.add_drops(cause, 1);
            lost = lost.saturating_add(1);
        }
        let received = incoming.finish(stats, began)?;
        Ok(Served { chains: (received.frames as usize).saturating_add(lost), call: received.call })
    }
}
