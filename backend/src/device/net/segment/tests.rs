//! Frames that are cut, against the frames a sender would have made by itself.

use proptest::prelude::*;

use super::*;
use crate::ring::tests::guest::Guest;

/// What a frame is made of.
#[derive(Clone, Debug)]
struct Made {
    ipv6: bool,
    tcp: bool,
    tags: usize,
    options: usize,
    flags: u8,
    id: u16,
    number: u32,
}

/// The checksum by its definition.
fn naive(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    !words.fold(0u16, |sum, word| {
        let (added, carry) = sum.overflowing_add(word);
        added + u16::from(carry)
    })
}

impl Made {
    fn ip(&self) -> usize {
        14 + 4 * self.tags
    }

    fn transport(&self) -> usize {
        self.ip() + if self.ipv6 { 40 } else { 20 }
    }

    fn payload(&self) -> usize {
        self.transport() + if self.tcp { 20 + 4 * self.options } else { 8 }
    }

    /// The frame with `payload`, as segment `index` that begins at `from`, its checksums right.
    fn frame(&self, payload: &[u8], index: usize, from: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        (0..self.tags).for_each(|_| frame.extend([0x81, 0, 0, 5]));
        frame.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        let transport_len = self.payload() - self.transport() + payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.ipv6 {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((transport_len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend((0..32).map(|n| n * 5));
        } else {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + transport_len as u16).to_be_bytes());
            ip.extend(self.id.wrapping_add(index as u16).to_be_bytes());
            ip.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = naive(&ip).to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            frame.extend(ip);
        }
        let mut transport = vec![0, 80, 1, 2];
        if self.tcp {
            transport.extend(self.number.wrapping_add(from as u32).to_be_bytes());
            transport.extend([0, 0, 0, 9, 16 * (5 + self.options as u8), flags, 1, 0, 0, 0, 0, 0]);
            transport.extend(vec![1; 4 * self.options]);
        } else {
            transport.extend((transport_len as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        let at = if self.tcp { 16 } else { 6 };
        transport.extend(payload);
        let addresses = if self.ipv6 { 8..40 } else { 12..20 };
        let ip = self.ip();
        let mut covered = frame[ip + addresses.start..ip + addresses.end].to_vec();
        covered.extend((transport_len as u32).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
        covered.extend(&transport);
        let sum = Some(naive(&covered)).filter(|sum| *sum != 0).unwrap_or(0xffff);
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame.extend(transport);
        frame
    }

    fn header(&self, size: u16) -> NetHeader {
        let gso_type = match (self.tcp, self.ipv6) {
            (true, false) => VIRTIO_NET_HDR_GSO_TCPV4,
            (true, true) => VIRTIO_NET_HDR_GSO_TCPV6,
            (false, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
        };
        NetHeader {
            flags: 1,
            gso_type,
            hdr_len: (self.payload() as u16).to_le(),
            gso_size: size.to_le(),
            csum_start: (self.transport() as u16).to_le(),
            csum_offset: if self.tcp { 16u16.to_le() } else { 6u16.to_le() },
            num_buffers: 0,
        }
    }
}

/// Calls `look` with a frame in guest memory, in pieces of the given lengths.
fn in_guest<T>(bytes: &[u8], cuts: &[usize], look: impl FnOnce(&Frame<'_, '_>) -> T) -> T {
    let guest = Guest::new(1 << 17);
    guest.write(0, bytes);
    let (mut pieces, mut at) = (Vec::new(), 0);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        let len = cut.min(bytes.len() - at);
        pieces.extend(guest.memory().subslice(at, len).filter(|piece| !piece.is_empty()));
        at += len;
    }
    look(&Frame::new(&pieces, bytes.len()))
}

fn bytes_of(frame: &Frame<'_, '_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.len()];
    assert_eq!(frame.copy_to(&mut bytes), bytes.len());
    bytes
}

/// What comes of a frame, or nothing if it is not cut.
fn cut(header: &NetHeader, bytes: &[u8], cuts: &[usize]) -> Option<Vec<Vec<u8>>> {
    in_guest(bytes, cuts, |frame| {
        let cut = Cut::new(header, frame)?;
        let segment = |index| {
            let (mut headers, from, len) = cut.segment(index);
            let pieces = part(frame, from, len);
            let payload = Frame::new(&pieces, len);
            [headers.with_sum_of(&payload), &bytes_of(&payload)].concat()
        };
        Some((0..cut.count()).map(segment).collect())
    })
}

fn made() -> impl Strategy<Value = Made> {
    (any::<bool>(), any::<bool>(), 0usize..3, 0usize..11, any::<u8>(), any::<u16>(), any::<u32>()).prop_map(
        |(ipv6, tcp, tags, options, flags, id, number)| Made { ipv6, tcp, tags, options, flags, id, number },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn segments_are_those_the_sender_would_have_made(
        made in made(), payload in prop::collection::vec(any::<u8>(), 1..6000), size in 40u16..2000,
        cuts in prop::collection::vec(1usize..900, 0..6),
    ) {
        let whole = made.frame(&payload, 0, 0, made.flags);
        let segments = cut(&made.header(size), &whole, &cuts).expect("it is what it says");
        let expected: Vec<_> = payload.chunks(size.into()).enumerate().map(|(index, part)| {
            let from = index * usize::from(size);
            let last = from + part.len() == payload.len();
            let kept = if last { 0xff } else { !0x09 } & if index == 0 { 0xff } else { !0x80 };
            made.frame(part, index, from, made.flags & kept)
        }).collect();
        prop_assert_eq!(segments, expected);
    }

    #[test]
    fn missing_checksum_is_what_makes_the_frame_right(
        made in made(), payload in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(1usize..900, 0..6),
    ) {
        let right = made.frame(&payload, 0, 0, made.flags);
        let header = made.header(1);
        let at = made.transport() + usize::from(u16::from_le(header.csum_offset));
        // Offloading leaves the sum of the pseudo-header there.
        let mut partial = right.clone();
        let addresses = if made.ipv6 { 8..40 } else { 12..20 };
        let mut pseudo = right[made.ip() + addresses.start..made.ip() + addresses.end].to_vec();
        pseudo.extend(((right.len() - made.transport()) as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, if made.tcp { 6 } else { 17 }]);
        partial[at..at + 2].copy_from_slice(&(!naive(&pseudo)).to_be_bytes());
        let (place, sum) = in_guest(&partial, &cuts, |frame| missing_sum(&header, frame));
        prop_assert_eq!(place, at);
        prop_assert_eq!(&sum[..], &right[at..at + 2]);
    }

    #[test]
    fn bytes_of_any_kind_are_cut_into_few_frames_or_not_at_all(
        bytes in prop::collection::vec(any::<u8>(), 14..400), header in prop::array::uniform12(any::<u8>()), kind in 0usize..4,
        made in made(), cut_at in 0usize..400,
    ) {
        let mut header: NetHeader = zerocopy::transmute!(header);
        let frame = if kind == 0 { bytes } else {
            header = made.header(u16::from_le(header.gso_size) & 63);
            let mut frame = made.frame(&bytes, 0, 0, 0);
            let place = cut_at % frame.len();
            frame[place] = frame[place].wrapping_add(kind as u8);
            frame
        };
        if let Some(segments) = cut(&header, &frame, &[cut_at]) {
            prop_assert!(segments.len() <= MAX_SEGMENTS);
            let payload: usize = segments.iter().map(Vec::len).sum();
            prop_assert!(payload >= frame.len());
        }
    }
}

#[test]
fn frames_that_are_not_what_the_header_says_are_not_cut() {
    let made = Made { ipv6: false, tcp: true, tags: 0, options: 0, flags: 0x18, id: 1, number: 1 };
    let frame = made.frame(&[5; 3000], 0, 0, made.flags);
    let right = made.header(1000);
    assert_eq!(cut(&right, &frame, &[]).map(|segments| segments.len()), Some(3));
    let wrong = |change: fn(&mut NetHeader)| {
        let mut header = right;
        change(&mut header);
        cut(&header, &frame, &[])
    };
    assert_eq!(wrong(|header| header.gso_type = VIRTIO_NET_HDR_GSO_TCPV6), None);
    assert_eq!(wrong(|header| header.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4), None);
    assert_eq!(wrong(|header| header.csum_start = 30u16.to_le()), None);
    assert_eq!(wrong(|header| header.csum_offset = 6u16.to_le()), None);
    assert_eq!(wrong(|header| header.gso_size = 0), None);
    assert_eq!(wrong(|header| header.gso_size = 5u16.to_le()), None, "too many");
    for (at, byte) in [(12, 9), (14, 0x46), (14, 0x65), (20, 0x20), (23, 17), (46, 0x40), (46, 0xf0)] {
        let mut odd = frame.clone();
        odd[at] = byte;
        let taken = cut(&right, &odd, &[]);
        assert!(taken.is_none() || byte == 0xf0, "byte {at} is {byte:#x}");
    }
    assert_eq!(cut(&right, &frame[..54], &[]), None, "no payload");
    assert_eq!(cut(&right, &frame[..40], &[]), None, "half a header");
}
