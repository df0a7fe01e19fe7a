//! UDP datagrams from a guest to a socket of its host: what checksum and segmentation offloads are tried with.

use mdev_protocol::virtio::net::NetHeader;

/// The Ethernet header: from 02:00:00:00:00:02 to 02:00:00:00:00:01, IPv4.
const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
/// From 198.18.5.2 to 198.18.5.1, two of the addresses for benchmarks (RFC 2544).
const ADDRESSES: [u8; 8] = [198, 18, 5, 2, 198, 18, 5, 1];
/// From port 9 to port 7.
const PORTS: [u8; 4] = [0, 9, 0, 7];
/// The number of UDP among IP's protocols.
const UDP: u8 = 17;

/// A header that leaves the checksum of a [`datagram`] to the device.
pub const NEEDS_CSUM: NetHeader = NetHeader {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34u16.to_le(),
    csum_offset: 6u16.to_le(),
    num_buffers: 0,
};

/// The sum of RFC 1071, word by word: the checksum is its complement.
pub fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [high] => u16::from_be_bytes([*high, 0]),
        _ => 0,
    };
    bytes.chunks(2).fold(0u32, |sum, pair| (sum + u32::from(word(pair))) % 0xffff) as u16
}

/// A frame with this payload, of at most 65,507 bytes. Its checksum is that of the pseudo-header only, as offloading leaves it,
/// or `whole`.
pub fn datagram(payload: &[u8], whole: bool) -> Vec<u8> {
    let len = 8u16.saturating_add(payload.len() as u16);
    let [high, low] = 20u16.saturating_add(len).to_be_bytes();
    let ip = [0x45, 0, high, low, 0, 0, 0, 0, 64, UDP];
    let ip_sum = !sum(&[&ip[..], &ADDRESSES].concat());
    let len = len.to_be_bytes();
    let pseudo = [&ADDRESSES[..], &[0, UDP], &len].concat();
    let partial = sum(&pseudo);
    let udp_sum = if whole { !sum(&[&pseudo[..], &PORTS, &len, payload].concat()) } else { partial };
    let parts: [&[u8]; 8] =
        [&ETHERNET, &ip, &ip_sum.to_be_bytes(), &ADDRESSES, &PORTS, &len, &udp_sum.to_be_bytes(), payload];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_a_whole_datagram_sum_to_nothing() {
        for len in [0, 1, 2, 99, 1472] {
            let frame = datagram(&vec![7; len], true);
            assert_eq!(frame.len(), 42 + len);
            assert_eq!(sum(&frame[14..34]) % 0xffff, 0);
            let pseudo = [&frame[26..34], &[0, UDP], &frame[38..40], &frame[34..]].concat();
            assert_eq!(sum(&pseudo) % 0xffff, 0);
        }
    }
}
