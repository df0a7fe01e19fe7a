//! The network device (virtio 1.3, section 5.1): feature masks, the packet header, the configuration space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of this kind of device (section 5).
pub const DEVICE_ID: u32 = 1;

/// The device computes checksums of packets whose checksum is partial.
pub const VIRTIO_NET_F_CSUM: u64 = 1 << 0;
/// The driver takes packets whose checksum is partial.
pub const VIRTIO_NET_F_GUEST_CSUM: u64 = 1 << 1;
/// Offloads can be changed through the control queue.
pub const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The device reports its maximum MTU.
pub const VIRTIO_NET_F_MTU: u64 = 1 << 3;
/// The device has a MAC address.
pub const VIRTIO_NET_F_MAC: u64 = 1 << 5;
/// The driver takes TCP segments over IPv4 of more than one MTU.
pub const VIRTIO_NET_F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP segments over IPv6 of more than one MTU.
pub const VIRTIO_NET_F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes such segments with ECN.
pub const VIRTIO_NET_F_GUEST_ECN: u64 = 1 << 9;
/// The driver takes UDP fragments as one packet.
pub const VIRTIO_NET_F_GUEST_UFO: u64 = 1 << 10;
/// The device takes TCP segments over IPv4 of more than one MTU.
pub const VIRTIO_NET_F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP segments over IPv6 of more than one MTU.
pub const VIRTIO_NET_F_HOST_TSO6: u64 = 1 << 12;
/// The device takes such segments with ECN.
pub const VIRTIO_NET_F_HOST_ECN: u64 = 1 << 13;
/// The device takes UDP fragments as one packet.
pub const VIRTIO_NET_F_HOST_UFO: u64 = 1 << 14;
/// A received packet may span several buffers.
pub const VIRTIO_NET_F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration's status field is valid.
pub const VIRTIO_NET_F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const VIRTIO_NET_F_CTRL_VQ: u64 = 1 << 17;
/// Receive modes are set through the control queue.
pub const VIRTIO_NET_F_CTRL_RX: u64 = 1 << 18;
/// VLANs are filtered through the control queue.
pub const VIRTIO_NET_F_CTRL_VLAN: u64 = 1 << 19;
/// The driver can announce itself to the network.
pub const VIRTIO_NET_F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// The device has more than one queue pair.
pub const VIRTIO_NET_F_MQ: u64 = 1 << 22;
/// The MAC address is set through the control queue.
pub const VIRTIO_NET_F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver takes UDP datagrams over IPv4 of more than one MTU, to be cut into datagrams.
pub const VIRTIO_NET_F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP datagrams over IPv6 of more than one MTU, to be cut into datagrams.
pub const VIRTIO_NET_F_GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP datagrams of more than one MTU, to be cut into datagrams.
pub const VIRTIO_NET_F_HOST_USO: u64 = 1 << 56;
/// The device reports speed and duplex.
pub const VIRTIO_NET_F_SPEED_DUPLEX: u64 = 1 << 63;

/// [`NetConfig::status`]: the link is up.
pub const VIRTIO_NET_S_LINK_UP: u16 = 1;
/// [`NetConfig::status`]: the driver is asked to announce itself.
pub const VIRTIO_NET_S_ANNOUNCE: u16 = 2;

/// [`NetHeader::flags`]: the checksum is partial and `csum_start`, `csum_offset` are valid.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// [`NetHeader::flags`]: the device has checked the checksum.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// [`NetHeader::gso_type`]: an ordinary packet.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// [`NetHeader::gso_type`]: TCP over IPv4, to be cut into segments.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// [`NetHeader::gso_type`]: UDP, to be cut into IP fragments.
pub const VIRTIO_NET_HDR_GSO_UDP: u8 = 3;
/// [`NetHeader::gso_type`]: TCP over IPv6, to be cut into segments.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// [`NetHeader::gso_type`]: UDP, to be cut into datagrams.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// [`NetHeader::gso_type`], beside TCP: the segments have ECN's flag.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// The header before every packet, in both directions (section 5.1.6). Under `VIRTIO_F_VERSION_1` it is 12 bytes
/// whether or not receive buffers are mergeable.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of the headers of a segmented packet, in bytes.
    pub hdr_len: u16,
    /// Payload bytes a segment.
    pub gso_size: u16,
    /// Where checksumming starts, in bytes from the packet's start.
    pub csum_start: u16,
    /// Where the checksum goes, in bytes from `csum_start`.
    pub csum_offset: u16,
    /// Buffers the received packet spans; 1 unless they are mergeable, unused when sending.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    /// Where [`NetHeader::num_buffers`] lies, in bytes from the header's start.
    pub const NUM_BUFFERS_OFFSET: usize = 10;
}

/// The configuration space (section 5.1.4). Fields whose feature was not negotiated are zero.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetConfig {
    /// The MAC address (`VIRTIO_NET_F_MAC`).
    pub mac: [u8; 6],
    /// `VIRTIO_NET_S_*` (`VIRTIO_NET_F_STATUS`).
    pub status: u16,
    /// Queue pairs the driver may use (`VIRTIO_NET_F_MQ`).
    pub max_virtqueue_pairs: u16,
    /// The largest MTU the driver may use, in bytes (`VIRTIO_NET_F_MTU`).
    pub mtu: u16,
    /// Link speed in Mbit/s, `u32::MAX` if unknown (`VIRTIO_NET_F_SPEED_DUPLEX`).
    pub speed: u32,
    /// 0 half, 1 full, 255 unknown (`VIRTIO_NET_F_SPEED_DUPLEX`).
    pub duplex: u8,
    /// Longest RSS key, in bytes.
    pub rss_max_key_size: u8,
    /// Longest RSS indirection table, in entries.
    pub rss_max_indirection_table_length: u16,
    /// Hash types the device can compute.
    pub supported_hash_types: u32,
}

impl NetConfig {
    /// Bytes of the configuration space.
    pub const LEN: usize = size_of::<Self>();
}
