//! Links: where a network device's frames go, and where they come from.
//!
//! A link knows frames (`Frame`, pieces of guest memory, with or without their virtio header) and nothing of rings or queues;
//! the net engine moves them. Each engine has a link of its own, or a queue of its own of one, so nothing that moves
//! frames is shared or locked, and nothing of it blocks or allocates after creation.
//!
//! | link | takes | gives |
//! |---|---|---|
//! | `null` | reads every frame whole, and drops it | nothing |
//! | `loopback` | copies every frame into the same pair's receive queue | what was taken |
//! | `pktgen[,size=N]` | drops every frame unread | UDP frames of `size` bytes (or `imix`) as fast as they are received |
//! | `tap=NAME` | hands every frame to the host's network stack | what the host sends to the interface |
//! | `peer=NAME` | copies every frame into receive queues of the devices of this process on the same bridge | what they send |
//!
//! # Tap
//!
//! One queue of the interface for each queue pair, non-blocking, made when the device is made and closed with it. Frames go
//! between guest pages and the kernel in one system call each, without a copy of ours. The header goes along: checksums and
//! segmentation are left to whoever comes last, as far as both sides have agreed. What may take its time (the offloads of
//! the interface, attaching and detaching its queues: they wait for the kernel's lock on network configuration) is done by
//! the control thread, which also follows by netlink whether the interface is up.
//!
//! # Peer
//!
//! A bridge is between rings, not between frames and something else: it lies beside the net engine, in `device/net/bridge`.

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

mod frame;
mod kind;
mod null;
mod pktgen;
mod tap;
mod watch;

use mdev_protocol::virtio::net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

pub use kind::{LinkError, LinkKind, LinkName};
pub use tap::TapError;

pub(crate) use frame::{Frame, Room, touch};
pub(crate) use null::Sink;
pub(crate) use pktgen::Generator;
pub(crate) use tap::{Lost, Tap, TapQueue};

/// The largest frame a device passes on: 64 KiB of payload behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = 65_536 + ETHERNET_HEADER + 4;
/// Destination, source, type: the smallest thing that is a frame.
pub const ETHERNET_HEADER: usize = 14;

/// The offloads that a link can have, in both directions.
pub(crate) const OFFLOADS: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_HOST_ECN
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_GUEST_TSO6
    | VIRTIO_NET_F_GUEST_ECN
    | DATAGRAMS;
/// Of these, those that cut datagrams.
pub(crate) const DATAGRAMS: u64 = VIRTIO_NET_F_HOST_USO | VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6;

/// The simple Internet mix, twelve frames: seven of 64 bytes, four of 594, one of 1518; spread out, so that no burst is
/// of one size only.
pub const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594];
