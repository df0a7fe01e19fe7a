//! What the front-end's rings look like, and which virtio features that takes.
use crate::driver::RingOptions;
use crate::driver::net::{Layout, QueueOptions};
use mdev_protocol::virtio::feature::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC,
};
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use std::fmt;

/// Packets offered before they are published, where nothing else is said.
pub const BURST: u32 = 32;

/// The format of a ring.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Format {
    /// Descriptor table, available ring, used ring.
    Split,
    /// One ring of descriptors that both sides write.
    Packed,
}

/// How rings are used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Their format.
    pub format: Format,
    /// The device uses buffers in the order in which they were made available.
    pub in_order: bool,
    /// Packets that are offered before they are published.
    pub burst: u32,
    /// Whether a received packet may span several buffers; `None`: as the back-end offers it.
    pub mergeable: Option<bool>,
    /// Header and frame of each packet lie in two buffers, described by an indirect table.
    pub indirect: bool,
}

impl Shape {
    /// Rings of `ring_size` as most drivers have them: split, one descriptor for each packet, bursts of 32.
    pub fn plain(ring_size: u16) -> Self {
        let format = Format::Split;
        Shape { ring_size, format, in_order: false, burst: BURST, mergeable: None, indirect: false }
    }

    /// The virtio features without which a back-end cannot be driven in this way.
    pub fn required(&self) -> u64 {
        let when = |wanted: bool, feature: u64| if wanted { feature } else { 0 };
        VIRTIO_F_VERSION_1
            | when(self.mergeable == Some(true), VIRTIO_NET_F_MRG_RXBUF)
            | when(self.indirect, VIRTIO_RING_F_INDIRECT_DESC)
            | when(self.format == Format::Packed, VIRTIO_F_RING_PACKED)
            | when(self.in_order, VIRTIO_F_IN_ORDER)
    }

    /// Those that are taken if the back-end has them.
    pub fn optional(&self) -> u64 {
        if self.mergeable.is_none() { VIRTIO_NET_F_MRG_RXBUF } else { 0 }
    }

    /// Queues of this shape under the features that were agreed on, with buffers of `capacity` bytes.
    pub fn queue(&self, features: u64, capacity: u32) -> QueueOptions {
        QueueOptions {
            ring: RingOptions {
                indirect: self.indirect,
                in_order: self.in_order,
                ..RingOptions::plain(self.ring_size)
            },
            layout: if self.indirect { Layout::Split } else { Layout::Joined },
            capacity,
            mergeable: features & VIRTIO_NET_F_MRG_RXBUF != 0,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = if self.format == Format::Packed { "packed " } else { "" };
        write!(out, "{format}rings of {}", self.ring_size)?;
        if self.in_order {
            out.write_str(" in order")?;
        }
        match self.mergeable {
            Some(true) => out.write_str(", mergeable buffers")?,
            Some(false) => out.write_str(", no mergeable buffers")?,
            None => {}
        }
        if self.indirect {
            out.write_str(", indirect tables")?;
        }
        if self.burst != BURST {
            write!(out, ", bursts of {}", self.burst)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_required_only_where_they_were_asked_for() {
        let plain = Shape::plain(256);
        assert_eq!((plain.required(), plain.optional()), (VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF));
        let on = Shape { mergeable: Some(true), indirect: true, ..plain };
        assert_eq!(
            (on.required(), on.optional()),
            (VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_RING_F_INDIRECT_DESC, 0)
        );
        let packed = Shape { format: Format::Packed, in_order: true, ..plain };
        assert_eq!(packed.required(), VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER);
        let off = Shape { mergeable: Some(false), ..plain };
        assert_eq!((off.required(), off.optional()), (VIRTIO_F_VERSION_1, 0));
    }

    #[test]
    fn queues_follow_the_features_that_were_agreed_on() {
        let plain = Shape::plain(64);
        assert!(plain.queue(VIRTIO_NET_F_MRG_RXBUF, 2048).mergeable);
        assert!(!plain.queue(0, 2048).mergeable);
        let indirect = Shape { indirect: true, ..plain }.queue(0, 4096);
        assert_eq!((indirect.layout, indirect.ring.indirect, indirect.capacity), (Layout::Split, true, 4096));
    }

    #[test]
    fn shape_is_told_in_a_line_that_names_what_is_unusual_only() {
        assert_eq!(Shape::plain(256).to_string(), "rings of 256");
        let odd = Shape { burst: 8, mergeable: Some(false), indirect: true, ..Shape::plain(64) };
        assert_eq!(odd.to_string(), "rings of 64, no mergeable buffers, indirect tables, bursts of 8");
        let packed = Shape { format: Format::Packed, in_order: true, ..Shape::plain(64) };
        assert_eq!(packed.to_string(), "packed rings of 64 in order");
    }
}
