//! Cutting a frame that its sender left whole into frames that its receiver takes, and summing what it left unsummed: what a
//! network card does. Everything read is the sender's, and hostile: what is not as it says is not cut.

use mdev_dma::GuestSlice;
use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};
use smallvec::SmallVec;

use super::checksum::Sum;
use crate::link::{ETHERNET_HEADER, Frame};

/// Bytes of headers a frame may have: Ethernet, VLAN tags, IP with options, TCP with options.
const MAX_HEADERS: usize = 256;
/// Frames that one may be cut into. Linux makes no segment so small that there are more.
const MAX_SEGMENTS: usize = 256;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// TCP's flags that only the last segment has: FIN, PSH; and the one that only the first has: CWR.
const LAST_ONLY: u8 = 0x01 | 0x08;
const FIRST_ONLY: u8 = 0x80;

/// The checksum that a frame lacks, and where it belongs. The header has been checked against the frame's length.
pub(super) fn missing_sum(header: &NetHeader, frame: &Frame<'_, '_>) -> (usize, [u8; 2]) {
    let start = usize::from(u16::from_le(header.csum_start));
    let at = start.saturating_add(u16::from_le(header.csum_offset).into());
    // What stands there is the sum of the pseudo-header.
    (at, Sum::default().add_frame(frame, start).finish_transport().to_be_bytes())
}

/// The layers of a frame that is to be cut.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Layers {
    /// Where the IP header is.
    ip: usize,
    /// Where that of TCP or UDP is.
    transport: usize,
    /// Where the payload is.
    payload: usize,
    ipv6: bool,
    tcp: bool,
}

/// A frame that is to be cut: its headers, and how.
pub(super) struct Cut {
    headers: [u8; MAX_HEADERS],
    layers: Layers,
    payload: usize,
    size: usize,
}

impl Cut {
    /// How to cut a frame, whose header has been checked and asks for it. `None` if its layers are not what the header says.
    pub(super) fn new(header: &NetHeader, frame: &Frame<'_, '_>) -> Option<Self> {
        let mut headers = [0; MAX_HEADERS];
        let read = frame.copy_to(&mut headers);
        let layers = layers(header, headers.get(..read)?)?;
        let payload = frame.len().checked_sub(layers.payload)?;
        let size = usize::from(u16::from_le(header.gso_size));
        let cut = Self { headers, layers, payload, size };
        (size != 0 && payload != 0 && cut.count() <= MAX_SEGMENTS).then_some(cut)
    }

    /// Bytes before the payload.
    pub(super) fn headers_len(&self) -> usize {
        self.layers.payload
    }

    /// How many frames come of it.
    pub(super) fn count(&self) -> usize {
        self.payload.div_ceil(self.size.max(1))
    }

    /// The headers of segment `index`, and the piece of the frame behind them: offset and length.
    pub(super) fn segment(&self, index: usize) -> (Headers, usize, usize) {
        let from = index.saturating_mul(self.size).min(self.payload);
        let len = self.size.min(self.payload.saturating_sub(from));
        let mut headers = Headers { bytes: self.headers, layers: self.layers };
        let last = from.saturating_add(len) >= self.payload;
        headers.make(index, from, len, last);
        (headers, self.layers.payload.saturating_add(from), len)
    }
}

/// The headers of one segment, but for the checksum of what follows.
pub(super) struct Headers {
    bytes: [u8; MAX_HEADERS],
    layers: Layers,
}

impl Headers {
    /// What precedes the payload, with the checksum of both.
    pub(super) fn with_sum_of(&mut self, payload: &Frame<'_, '_>) -> &[u8] {
        let Layers { ip, transport, payload: end, ipv6, tcp } = self.layers;
        let addresses = if ipv6 {
            ip.saturating_add(8)..ip.saturating_add(40)
        } else {
            ip.saturating_add(12)..ip.saturating_add(20)
        };
        let at = transport.saturating_add(if tcp { 16 } else { 6 });
        self.put(at, [0; 2]);
        let len = end.saturating_sub(transport).saturating_add(payload.len()) as u32;
        let sum = Sum::default()
            .add(self.bytes.get(addresses).unwrap_or_default())
            .add(&len.to_be_bytes())
            .add(&[0, if tcp { TCP } else { UDP }])
            .add(self.bytes.get(transport..end).unwrap_or_default());
        // The payload begins a word: TCP's header is a number of words long, UDP's too.
        self.put(at, sum.add_frame(payload, 0).finish_transport().to_be_bytes());
        self.bytes.get(..end).unwrap_or_default()
    }

    /// Lengths, numbers and flags for the segment `index` of `len` bytes from byte `from` of the payload on.
    fn make(&mut self, index: usize, from: usize, len: usize, last: bool) {
        let Layers { ip, transport, payload, ipv6, tcp } = self.layers;
        let behind = |start: usize| payload.saturating_sub(start).saturating_add(len) as u16;
        if ipv6 {
            self.put(ip.saturating_add(4), behind(ip.saturating_add(IPV6_HEADER)).to_be_bytes());
        } else {
            self.put(ip.saturating_add(2), behind(ip).to_be_bytes());
            let id = u16::from_be_bytes(self.get(ip.saturating_add(4)));
            self.put(ip.saturating_add(4), id.wrapping_add(index as u16).to_be_bytes());
            self.put(ip.saturating_add(10), [0; 2]);
            let sum = Sum::default().add(self.bytes.get(ip..transport).unwrap_or_default()).finish();
            self.put(ip.saturating_add(10), sum.to_be_bytes());
        }
        if tcp {
            let number = u32::from_be_bytes(self.get(transport.saturating_add(4)));
            self.put(transport.saturating_add(4), number.wrapping_add(from as u32).to_be_bytes());
            let [mut flags] = self.get(transport.saturating_add(13));
            if !last {
                flags &= !LAST_ONLY;
            }
            if index != 0 {
                flags &= !FIRST_ONLY;
            }
            self.put(transport.saturating_add(13), [flags]);
        } else {
            self.put(transport.saturating_add(4), behind(transport).to_be_bytes());
        }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..).and_then(|bytes| bytes.first_chunk().copied()).unwrap_or([0; N])
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(place) = self.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *place = bytes;
        }
    }
}

/// A part of a frame.
pub(super) fn part<'g>(frame: &Frame<'_, 'g>, offset: usize, len: usize) -> SmallVec<[GuestSlice<'g>; 16]> {
    let mut left = len;
    let mut pieces = SmallVec::new();
    for piece in frame.from(offset) {
        let taken = left.min(piece.len());
        if taken == 0 {
            break;
        }
        pieces.extend(piece.subslice(0, taken));
        left = left.saturating_sub(taken);
    }
    pieces
}

/// The layers of a frame, read from its first bytes, if they are what the header says they are.
fn layers(header: &NetHeader, bytes: &[u8]) -> Option<Layers> {
    let word = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let mut kind = word(ETHERNET_HEADER.checked_sub(2)?)?;
    let mut ip = ETHERNET_HEADER;
    // 802.1Q and 802.1ad
    for _ in 0..2 {
        if kind == 0x8100 || kind == 0x88a8 {
            kind = word(ip.checked_add(2)?)?;
            ip = ip.checked_add(4)?;
        }
    }
    let first = *bytes.get(ip)?;
    let transport = usize::from(u16::from_le(header.csum_start));
    let (ipv6, protocol) = match kind {
        0x0800 if first >> 4 == 4 => {
            let len = usize::from(first & 15).checked_mul(4)?;
            let fragment = word(ip.checked_add(6)?)? & 0x3fff;
            if len < 20 || ip.checked_add(len)? != transport || fragment != 0 {
                return None;
            }
            (false, *bytes.get(ip.checked_add(9)?)?)
        }
        // Behind other headers than IPv6's own the transport is where the sender says it is, and is what it says.
        0x86dd if first >> 4 == 6 && ip.checked_add(IPV6_HEADER)? <= transport => {
            let next = *bytes.get(ip.checked_add(6)?)?;
            let direct = ip.checked_add(IPV6_HEADER)? == transport;
            let udp = header.gso_type & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_UDP_L4;
            (
                true,
                if direct {
                    next
                } else if udp {
                    UDP
                } else {
                    TCP
                },
            )
        }
        _ => return None,
    };
    let agreed = match header.gso_type & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 => !ipv6 && protocol == TCP,
        VIRTIO_NET_HDR_GSO_TCPV6 => ipv6 && protocol == TCP,
        VIRTIO_NET_HDR_GSO_UDP_L4 => protocol == UDP,
        _ => false,
    };
    let tcp = protocol == TCP;
    let len = if tcp {
        usize::from(*bytes.get(transport.checked_add(12)?)? >> 4).checked_mul(4)?
    } else {
        UDP_HEADER
    };
    let payload = transport.checked_add(len)?;
    let sum_at = if tcp { 16 } else { 6 };
    let sound = agreed
        && usize::from(u16::from_le(header.csum_offset)) == sum_at
        && (!tcp || len >= 20)
        && payload <= bytes.len();
    sound.then_some(Layers { ip, transport, payload, ipv6, tcp })
}

#[cfg(test)]
mod tests;
