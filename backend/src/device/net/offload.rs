//! What the header before a frame may say: only what driver and device have agreed on, and only of bytes the frame has.

use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::link::ETHERNET_HEADER;

/// One direction: what its frames may leave undone.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    checksum: bool,
    tcp4: bool,
    tcp6: bool,
    ecn: bool,
    datagrams: bool,
}

impl Offloads {
    /// What the guest may send.
    pub(super) fn from_guest(features: u64) -> Self {
        let has = |feature| features & feature != 0;
        Self {
            checksum: has(VIRTIO_NET_F_CSUM),
            tcp4: has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(VIRTIO_NET_F_HOST_TSO6),
            ecn: has(VIRTIO_NET_F_HOST_ECN),
            datagrams: has(VIRTIO_NET_F_HOST_USO),
        }
    }

    /// What the guest may be given.
    pub(super) fn to_guest(features: u64) -> Self {
        let has = |feature| features & feature != 0;
        Self {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            datagrams: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        }
    }

    /// Whether a frame may be longer than the MTU.
    pub(super) fn segments(&self) -> bool {
        self.tcp4 | self.tcp6 | self.datagrams
    }

    /// The header of a frame of `len` bytes, with nothing in it that means nothing. `None` if it says what it may not:
    /// what was not agreed on, or what lies outside the frame (virtio 1.3, 5.1.6.2).
    pub(super) fn check(&self, header: NetHeader, len: usize) -> Option<NetHeader> {
        let NetHeader { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, .. } = header;
        let mut checked = NetHeader::default();
        if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            let start = usize::from(u16::from_le(csum_start));
            let end = start.saturating_add(u16::from_le(csum_offset).into()).saturating_add(2);
            if !self.checksum || start < ETHERNET_HEADER || end > len {
                return None;
            }
            checked = NetHeader { flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start, csum_offset, ..checked };
        }
        if gso_type != VIRTIO_NET_HDR_GSO_NONE {
            let agreed = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
                VIRTIO_NET_HDR_GSO_TCPV4 => self.tcp4,
                VIRTIO_NET_HDR_GSO_TCPV6 => self.tcp6,
                VIRTIO_NET_HDR_GSO_UDP_L4 => self.datagrams && gso_type & VIRTIO_NET_HDR_GSO_ECN == 0,
                _ => false,
            };
            let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN == 0 || self.ecn;
            let whole = usize::from(u16::from_le(hdr_len)) <= len;
            // Each segment needs a checksum of its own.
            if !(agreed && ecn && whole && gso_size != 0 && checked.flags != 0) {
                return None;
            }
            checked = NetHeader { gso_type, hdr_len, gso_size, ..checked };
        }
        Some(checked)
    }

    /// The same for a header that comes from the host: it may say besides that the checksum is right, where the guest
    /// understands that.
    pub(super) fn check_from_host(&self, header: NetHeader, len: usize) -> Option<NetHeader> {
        let mut checked = self.check(header, len)?;
        if self.checksum {
            checked.flags |= header.flags & VIRTIO_NET_HDR_F_DATA_VALID;
        }
        Some(checked)
    }
}

#[cfg(test)]
mod tests;
