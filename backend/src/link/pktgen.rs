//! The `pktgen` link: UDP frames with a running number.

use super::{ETHERNET_HEADER, Room};

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Where the running number stands: eight bytes, big-endian, at the beginning of the UDP payload.
const NUMBER_AT: usize = ETHERNET_HEADER + IP_HEADER + UDP_HEADER;
/// The smallest frame Ethernet carries, checksum excluded. The number fits.
pub(super) const MIN_SIZE: usize = 60;
/// UDP's discard service (RFC 863), as source and destination.
const DISCARD: u16 = 9;
/// Where our frames come from: a locally administered address.
const SOURCE: [u8; 6] = [0x02, 0x6d, 0x64, 0x65, 0x76, 0x64];

/// Makes frames.
pub(crate) struct Generator {
    /// One for each frame of a round; never empty.
    templates: Vec<Box<[u8]>>,
    /// Whose turn it is: the frame's number modulo the length of the round.
    turn: usize,
    number: u64,
}

impl Generator {
    /// Frames to the guest's address, of these sizes in turn.
    pub(crate) fn new(sizes: &[usize], guest: [u8; 6]) -> Self {
        let templates = sizes.iter().map(|&size| template(size.max(MIN_SIZE), guest).into_boxed_slice());
        Self { templates: templates.collect(), turn: 0, number: 0 }
    }

    /// Bytes of the next frame.
    #[inline(always)]
    pub(crate) fn size(&self) -> usize {
        self.templates.get(self.turn).map_or(MIN_SIZE, |template| template.len())
    }

    /// Writes the next frame at `offset`.
    #[inline(always)]
    pub(crate) fn emit(&mut self, room: &Room<'_, '_>, offset: usize) {
        if let Some(template) = self.templates.get(self.turn) {
            room.write(offset, template);
        }
        room.write(offset.saturating_add(NUMBER_AT), &self.number.to_be_bytes());
        self.number = self.number.wrapping_add(1);
        self.turn = self.turn.wrapping_add(1);
        if self.turn >= self.templates.len() {
            self.turn = 0;
        }
    }
}

fn template(size: usize, guest: [u8; 6]) -> Vec<u8> {
    let length = |header: usize| {
        // What does not fit sixteen bits cannot be said; such a frame is one of a jumbo link.
        u16::try_from(size.saturating_sub(header)).unwrap_or(u16::MAX).to_be_bytes()
    };
    let mut frame = Vec::with_capacity(size);
    frame.extend(guest);
    frame.extend(SOURCE);
    frame.extend([0x08, 0x00]);

    let mut ip = [0u8; IP_HEADER];
    let fields: [(usize, &[u8]); 5] = [
        (0, &[0x45, 0]),
        (2, &length(ETHERNET_HEADER)),
        (8, &[64, 17]),
        (12, &[198, 18, 0, 1]),
        (16, &[198, 18, 0, 2]),
    ];
    for (at, bytes) in fields {
        put(&mut ip, at, bytes);
    }
    let sum = checksum(&ip).to_be_bytes();
    put(&mut ip, 10, &sum);
    frame.extend(ip);

    frame.extend(DISCARD.to_be_bytes());
    frame.extend(DISCARD.to_be_bytes());
    frame.extend(length(ETHERNET_HEADER.saturating_add(IP_HEADER)));
    // A UDP checksum of zero says that there is none, so that the running number changes nothing else.
    frame.extend([0, 0]);
    frame.resize(size, 0);
    frame
}

fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = target.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

/// The Internet checksum (RFC 1071) of whole words.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(0u32, |sum, word| sum.wrapping_add(u16::from_be_bytes(*word).into()));
    let folded = (sum & 0xffff).wrapping_add(sum >> 16);
    !((folded & 0xffff).wrapping_add(folded >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_is_a_valid_udp_frame_of_its_size() {
        for size in [60, 64, 1518, 9014] {
            let frame = template(size, [2, 0, 0, 0, 0, 9]);
            assert_eq!(frame.len(), size);
            assert_eq!(frame[..6], [2, 0, 0, 0, 0, 9]);
            assert_eq!(u16::from_be_bytes([frame[16], frame[17]]) as usize, size - 14);
            assert_eq!(u16::from_be_bytes([frame[38], frame[39]]) as usize, size - 34);
            assert_eq!(checksum(&frame[14..34]), 0, "a header with its checksum sums to nothing");
        }
    }
}
