//! Links: where a network device's frames go, and where they come from.
//!
//! A link knows frames (`Frame`, pieces of guest memory without their virtio header) and nothing of rings, queues or
//! features; the net engine moves them. Each engine has a link of its own, so nothing here is shared or locked, and
//! nothing blocks or allocates after creation.
//!
//! | link | takes | gives |
//! |---|---|---|
//! | `null` | reads every frame whole, and drops it | nothing |
//! | `loopback` | copies every frame into the same pair's receive queue | what was taken |
//! | `pktgen[,size=N]` | drops every frame unread | UDP frames of `size` bytes (or `imix`) as fast as they are received |
//!
//! Not here: links that leave the process (tap, peer).

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

pub use kind::{LinkError, LinkKind};

pub(crate) use frame::{Frame, Room};
pub(crate) use null::Sink;
pub(crate) use pktgen::Generator;

/// The largest frame a device passes on: 64 KiB of payload behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = 65_536 + ETHERNET_HEADER + 4;
/// Destination, source, type: the smallest thing that is a frame.
pub const ETHERNET_HEADER: usize = 14;

/// The simple Internet mix, twelve frames: seven of 64 bytes, four of 594, one of 1518; spread out, so that no burst is
/// of one size only.
pub const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594];
