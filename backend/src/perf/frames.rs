//! What is in the packets, and how that is checked.
//!
//! A frame is a UDP packet between two addresses reserved for benchmarks (RFC 2544), with a running number at the
//! beginning of its payload. In our own the rest is a pattern that follows from the number, so that a stale, torn, repeated or foreign
//! frame is told from the right one. mdevd's `pktgen` link makes the same headers with zeros behind the number.
//! While time is measured only the number is written and read, which makes the packet's first line cross between the
//! cores, as it does with any real sender; before that every byte of 10^5 packets is looked at.
use super::size::LEAST;
use mdev_dma::GuestSlice;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
/// Where the number stands: eight bytes, big-endian.
const NUMBER: usize = ETHERNET + IP + UDP;
const NUMBER_END: usize = NUMBER + 8;
/// UDP's discard service (RFC 863).
const DISCARD: u16 = 9;
/// 02:6d:64:65:76:02 from 02:6d:64:65:76:01 (locally administered), IPv4.
const ADDRESSES: [u8; ETHERNET] = *b"\x02mdev\x02\x02mdev\x01\x08\x00";

/// Fills a whole frame: headers, number, pattern.
pub fn write(frame: &GuestSlice<'_>, number: u64) {
    frame.copy_from(&frame_of(frame.len(), number));
}

/// Writes the number into a frame that was filled before.
#[inline]
pub fn stamp(frame: &GuestSlice<'_>, number: u64) {
    let _ = frame.write(NUMBER, number.to_be());
}

/// The number in a frame; `None` if the frame is too short to have one. Read by twos: behind a header of 12 bytes it is
/// aligned to no more.
#[inline(always)]
pub fn number(frame: &GuestSlice<'_>) -> Option<u64> {
    let part = |index: usize| frame.read::<u16>(NUMBER + 2 * index).map(|two| u64::from(u16::from_be(two)));
    Some(part(0)? << 48 | part(1)? << 32 | part(2)? << 16 | part(3)?)
}

/// Whether a frame is, byte for byte, the one of ours with this number.
pub fn is_ours(frame: &[u8], number: u64) -> bool {
    frame == frame_of(frame.len(), number)
}

/// Whether a frame has `bytes` bytes, is a UDP packet with a valid IPv4 header and lengths that fit, and has a number: one of
/// pktgen's. What it carries else is not looked at.
pub fn is_numbered(frame: &[u8], bytes: usize) -> bool {
    let word = |at: usize| frame.get(at..at + 2).map(|two| usize::from(two[0]) << 8 | usize::from(two[1]));
    frame.len() == bytes
        && bytes >= LEAST.into()
        && word(12) == Some(0x0800)
        && frame.get(ETHERNET) == Some(&0x45)
        && frame.get(ETHERNET + 9) == Some(&17)
        && word(ETHERNET + 2) == Some(bytes - ETHERNET)
        && word(ETHERNET + IP + 4) == Some(bytes - ETHERNET - IP)
        && frame.get(ETHERNET..ETHERNET + IP).is_some_and(|header| checksum(header) == 0)
}

/// Our frame of `bytes` bytes with this number, cut off where it is shorter than its headers.
fn frame_of(bytes: usize, number: u64) -> Vec<u8> {
    let length = |headers: usize| (bytes.saturating_sub(headers) as u16).to_be_bytes();
    let mut frame = Vec::with_capacity(bytes.max(NUMBER_END));
    frame.extend(ADDRESSES);
    let mut ip = [0; IP];
    (ip[0], ip[8], ip[9]) = (0x45, 64, 17);
    ip[2..4].copy_from_slice(&length(ETHERNET));
    ip[12..16].copy_from_slice(&[198, 18, 0, 2]);
    ip[16..20].copy_from_slice(&[198, 18, 0, 1]);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    frame.extend(ip);
    frame.extend(DISCARD.to_be_bytes());
    frame.extend(DISCARD.to_be_bytes());
    frame.extend(length(ETHERNET + IP));
    // Zero says that there is no UDP checksum, so that the number can change alone.
    frame.extend([0, 0]);
    frame.extend(number.to_be_bytes());
    let mut word = number;
    while frame.len() < bytes {
        word = mix(word);
        frame.extend(word.to_le_bytes());
    }
    frame.truncate(bytes);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes; 0 of a header that contains its own.
fn checksum(bytes: &[u8]) -> u16 {
    let sum =
        bytes.chunks_exact(2).fold(0u32, |sum, two| sum + u32::from(u16::from_be_bytes([two[0], two[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// One step of a 64-bit mixer (an odd multiplier and two shifts): neighbouring numbers give unlike patterns.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ (word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_frames_are_well_formed_at_every_size() {
        for bytes in [60, 64, 65, 512, 1518, 9018] {
            let frame = frame_of(bytes, 7);
            assert!(is_numbered(&frame, bytes) && is_ours(&frame, 7), "{bytes}");
            assert!(!is_numbered(&frame, bytes + 1) && !is_ours(&frame, 8));
        }
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let frame = frame_of(100, 1 << 40);
        for place in 0..frame.len() {
            let mut changed = frame.clone();
            changed[place] ^= 1;
            assert!(!is_ours(&changed, 1 << 40), "byte {place}");
        }
    }

    #[test]
    fn broken_headers_are_not_numbered_frames() {
        let frame = frame_of(64, 1);
        for place in [12, 14, 16, 17, 23, 24, 26, 38, 39] {
            let mut changed = frame.clone();
            changed[place] ^= 1;
            assert!(!is_numbered(&changed, 64), "byte {place}");
        }
        assert!(!is_numbered(&[], 0) && !is_numbered(&frame[..59], 59));
    }

    #[test]
    fn frame_shorter_than_its_headers_is_cut() {
        assert_eq!(frame_of(20, 1).len(), 20);
    }
}
