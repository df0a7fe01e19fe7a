//! Datagrams as a guest on 198.18.5.2 sends them to a socket on 198.18.5.1.

use mdev_protocol::virtio::net::NetHeader;

/// The sum of RFC 1071, word by word.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.fold(0u32, |sum, word| (sum + word) % 0xffff);
    sum as u16
}

/// A datagram from the guest to the socket. Its checksum is that of the pseudo-header only, as offloading leaves it, or whole.
pub(super) fn datagram(payload: &[u8], whole: bool) -> Vec<u8> {
    let udp_len = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 5, 2, 198, 18, 5, 1]);
    let header_sum = (!sum(&ip)).to_be_bytes();
    ip[10..12].copy_from_slice(&header_sum);
    let mut udp = vec![0, 9, 0, 7];
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_len.to_be_bytes());
    let partial = sum(&pseudo);
    let all = !sum(&[pseudo, udp.clone()].concat());
    udp[6..8].copy_from_slice(&(if whole { all } else { partial }).to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ip);
    frame.extend(udp);
    frame
}

pub(super) const NEEDS_CSUM: NetHeader = NetHeader {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34u16.to_le(),
    csum_offset: 6u16.to_le(),
    num_buffers: 0,
};
