//! The virtio network device: queue pairs with a link behind them (virtio 1.3, 5.1).
//!
//! [`NetDevice`] is the configuration and the counters; each queue pair's [`Engine`] moves frames between the rings and a link
//! ([`crate::link`]). Even vrings receive (the device writes), odd ones transmit. A poll takes up to 32 chains in two passes: find
//! every buffer and fetch it, then copy; it publishes once. Frames are copied once. Nothing is published for a burst
//! under which memory was lost.
//!
//! Several pairs work without a control queue of ours: QEMU and virtio-user serve that queue themselves and enable and disable
//! vrings; they only want to see VIRTIO_NET_F_MQ and the number of pairs.
//!
//! What is dropped is counted by cause on the queue it was sent to ([`DropCause`]). Only what breaks the ring's
//! rules fails a queue; a frame that is too short or too long does not.
//!
//! Offloads are offered where the link has them, and are the link's to do: the header before a frame goes along with it,
//! checked against what was negotiated and against the frame's length.
//!
//! Not here: a control queue, RSS.
//!
//! [`DropCause`]: crate::device::DropCause

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod bridge;
mod bridged;
mod checksum;
mod config;
mod engine;
pub mod fuzzing;
mod header;
mod incoming;
mod looped;
mod offload;
mod outgoing;
mod pieces;
mod segment;
mod tapped;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Device, Engine, QueueNames, QueueStats, VirtioDevice};
use crate::link::{Generator, IMIX, LinkKind, LinkName, OFFLOADS, Sink, Tap, TapError};
use crate::ring::MAX_RING_SIZE;
use bridge::{MAX_PORTS, Port};
use bridged::Bridged;
use config::ConfigSpace;
use engine::{Link, NetEngine};
use header::{
    F_EVENT_IDX, F_GUEST_ANNOUNCE, F_IN_ORDER, F_INDIRECT_DESC, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU,
    F_RING_PACKED, F_STATUS, F_VERSION_1,
};
use tapped::Tapped;

pub use bridge::Bridges;
pub use config::{MacError, parse_mac};

/// Queue pairs a device may have.
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// The smallest MTU of IPv4 (RFC 791), and of virtio-net.
const MIN_MTU: u16 = 68;

/// What its queues are called in counters. Ring 0 of a pair is filled by the device, ring 1 by the driver; named as the
/// guest sees them.
pub const QUEUE_NAMES: QueueNames =
    QueueNames { queues: &["receive", "transmit"], items: "packets", per_second: "pps", in_bits: true };

/// How a network device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name in logs and statistics.
    pub name: String,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// The guest's address. Without one the front-end or the guest chooses.
    pub mac: Option<[u8; 6]>,
    /// The MTU the guest is told, at least 68.
    pub mtu: Option<u16>,
    /// What is behind it.
    pub link: LinkKind,
}

/// A configuration that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetConfigError {
    /// Too few or too many queue pairs.
    #[error("a network device has 1 to {MAX_QUEUE_PAIRS} queue pairs, not {0}")]
    QueuePairs(u16),
    /// An MTU below what IPv4 needs.
    #[error("MTU {0} is below {MIN_MTU}")]
    Mtu(u16),
    /// An address that no station can have.
    #[error("the MAC address is a group address: its first octet must be even")]
    GroupAddress,
    /// The host's interface cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The bridge is full.
    #[error("peer {0}: there are {MAX_PORTS} devices on it already, and no more may be")]
    Peers(LinkName),
    /// No descriptors left.
    #[error("a peer needs an eventfd for each queue pair: {0}; allow more open files (ulimit -n)")]
    Bell(io::ErrorKind),
}

impl NetConfig {
    /// Whether such a device can be, before there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), NetConfigError> {
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            return Err(NetConfigError::QueuePairs(self.queue_pairs));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetConfigError::Mtu(mtu));
        }
        if self.mac.is_some_and(|mac| mac[0] & 1 != 0) {
            return Err(NetConfigError::GroupAddress);
        }
        Ok(())
    }
}

/// A virtio network device.
pub struct NetDevice {
    config: NetConfig,
    space: ConfigSpace,
    stats: Vec<Arc<QueueStats>>,
    /// What is behind it, if that outlives its engines.
    outside: Outside,
}

/// What a device's engines share of its link.
enum Outside {
    /// Each engine's link is its own.
    None,
    Tap(Tap),
    Peers(Port),
}

impl NetDevice {
    /// A device as configured. Its link is there from now on, as long as it is.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with its link.
    pub fn new(config: NetConfig) -> Result<Self, NetConfigError> {
        Self::among(config, &Bridges::default())
    }

    /// A device that finds its peers on `bridges`, where that is its link.
    ///
    /// # Errors
    /// As [`NetDevice::new`].
    pub fn among(config: NetConfig, bridges: &Bridges) -> Result<Self, NetConfigError> {
        config.check()?;
        let outside = match config.link {
            LinkKind::Tap(name) => Outside::Tap(Tap::open(name, config.queue_pairs)?),
            LinkKind::Peer(name) => {
                let port = bridges
                    .join(name, config.queue_pairs)
                    .map_err(|error| NetConfigError::Bell(error.kind()))?;
                Outside::Peers(port.ok_or(NetConfigError::Peers(name))?)
            }
            LinkKind::Null | LinkKind::Loopback | LinkKind::Pktgen { .. } | LinkKind::Imix => Outside::None,
        };
        let space = ConfigSpace::new(config.mac, config.queue_pairs, config.mtu);
        let stats = (0..config.queue_pairs.saturating_mul(2)).map(|_| Arc::default()).collect();
        Ok(Self { config, space, stats, outside })
    }

    fn tap(&self) -> Option<&Tap> {
        match &self.outside {
            Outside::Tap(tap) => Some(tap),
            Outside::None | Outside::Peers(_) => None,
        }
    }

    /// The link of a group's engine.
    fn link(&self, group: u16, features: u64) -> Link {
        // A guest that chose its own address takes what is for everybody.
        let guest = self.config.mac.unwrap_or([0xff; 6]);
        match (&self.outside, self.config.link) {
            (Outside::Tap(tap), _) => tap.queue(group).map_or_else(
                || Link::Null(Sink::new()),
                |queue| Link::Tap(Tapped::new(queue, features, tap.longest())),
            ),
            (Outside::Peers(port), _) => {
                let bridged = Bridged::new(port.sender(), group, features);
                Link::Peer { bridged, jack: port.jack().clone() }
            }
            (Outside::None, LinkKind::Loopback) => Link::Loopback,
            (Outside::None, LinkKind::Pktgen { size }) => Link::Pktgen(Generator::new(&[size], guest)),
            (Outside::None, LinkKind::Imix) => Link::Pktgen(Generator::new(&IMIX, guest)),
            (Outside::None, LinkKind::Null | LinkKind::Tap(_) | LinkKind::Peer(_)) => Link::Null(Sink::new()),
        }
    }
}

impl Device for NetDevice {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn queue_count(&self) -> u16 {
        self.config.queue_pairs.saturating_mul(2)
    }

    fn holds_pins(&self) -> bool {
        false
    }

    fn group(&self, queue: u16) -> u16 {
        queue >> 1
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.tap().map(Tap::watched)
    }

    fn look(&self) -> bool {
        self.tap().is_some_and(Tap::look)
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.stats.get(usize::from(queue)).cloned()
    }
}

impl VirtioDevice for NetDevice {
    fn device_id(&self) -> u32 {
        mdev_protocol::virtio::net::DEVICE_ID
    }

    fn queue_number(&self) -> u64 {
        self.config.queue_pairs.into()
    }

    fn uses_in_order(&self) -> bool {
        true
    }

    fn max_ring_size(&self) -> u16 {
        MAX_RING_SIZE
    }

    fn features(&self) -> u64 {
        let mut features = F_VERSION_1
            | F_INDIRECT_DESC
            | F_EVENT_IDX
            | F_RING_PACKED
            | F_IN_ORDER
            | F_MRG_RXBUF
            | F_STATUS
            | F_GUEST_ANNOUNCE;
        if self.config.queue_pairs > 1 {
            features |= F_MQ;
        }
        if self.config.mac.is_some() {
            features |= F_MAC;
        }
        if self.config.mtu.is_some() {
            features |= F_MTU;
        }
        features
            | match &self.outside {
                Outside::Tap(tap) => tap.features(),
                Outside::Peers(_) => OFFLOADS,
                Outside::None => 0,
            }
    }

    fn check_features(&self, acked: u64) -> Result<(), String> {
        if acked & F_VERSION_1 == 0 {
            return Err(
                "the driver did not accept VIRTIO_F_VERSION_1: legacy drivers are not served (with QEMU, \
                        disable-legacy=on on the device shows whether the guest has a modern one)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn config_len(&self) -> usize {
        config::LEN
    }

    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String> {
        self.space.read(offset, self.tap().is_none_or(Tap::is_up), out)
    }

    fn set_config(&self, _offset: u32, _data: &[u8]) -> Result<(), String> {
        Err("the configuration space of a VERSION_1 network device is read-only".to_owned())
    }

    fn engine(&self, group: u16, features: u64) -> Box<dyn Engine> {
        let link = self.link(group, features);
        Box::new(NetEngine::new(features, link))
    }

    fn agreed(&self, features: u64) {
        if let Some(tap) = self.tap() {
            tap.agree(features);
        }
    }

    fn queue_turned(&self, queue: u16, features: u64, runs: bool) {
        // Receive queues decide: the kernel gives frames to who can take them.
        if let Some(tap) = self.tap()
            && queue & 1 == 0
        {
            if runs {
                tap.agree(features);
            }
            tap.attach(queue >> 1, runs);
        }
    }

    fn set_mtu(&self, mtu: u16) -> Result<(), String> {
        match self.config.mtu {
            _ if mtu < MIN_MTU => Err(format!("MTU {mtu} is below {MIN_MTU}")),
            Some(limit) if mtu > limit => Err(format!("MTU {mtu} is above the device's {limit}")),
            _ => Ok(()),
        }
    }

    fn rarp(&self, mac: [u8; 6]) {
        // No other link leads to a switch that could be told.
        if let Some(tap) = self.tap() {
            tap.announce(mac);
        }
    }

    fn reset(&self) {
        // Configuration and counters are all there is, and both outlive a reset; engines end with their queues.
    }
}

#[cfg(test)]
mod tests;
