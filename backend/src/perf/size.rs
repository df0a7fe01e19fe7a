//! Packet sizes: one for all packets, or a mix.
use crate::link::IMIX;
use std::fmt;
use std::str::FromStr;

/// The least frame: 60 bytes, Ethernet's minimum without its check sequence.
pub const LEAST: u16 = 60;
/// The greatest frame: a jumbo frame of 9,000 bytes of payload with its header and a VLAN tag.
pub const GREATEST: u16 = 9018;

/// The sizes of the packets of a run. Sizes are those of the frame as the driver sees it: from the destination address to
/// the end of the payload, with neither the virtio header nor Ethernet's check sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum PacketSize {
    /// Every frame has this many bytes.
    Bytes(u16),
    /// The simple Internet mix: in every twelve packets seven of 64 bytes, four of 594 and one of 1518.
    Imix,
}

/// Why a size was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet size '{0}': give bytes from {LEAST} to {GREATEST}, or imix")]
pub struct SizeError(String);

impl PacketSize {
    /// The size of the packet with this sequence number.
    #[inline]
    pub fn of(self, sequence: u64) -> u16 {
        match self {
            PacketSize::Bytes(bytes) => bytes,
            PacketSize::Imix => IMIX[(sequence % IMIX.len() as u64) as usize] as u16,
        }
    }

    /// The greatest of its sizes.
    pub fn greatest(self) -> u16 {
        match self {
            PacketSize::Bytes(bytes) => bytes,
            PacketSize::Imix => IMIX.into_iter().fold(0, usize::max) as u16,
        }
    }
}

impl FromStr for PacketSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(PacketSize::Imix);
        }
        match text.parse() {
            Ok(bytes) if (LEAST..=GREATEST).contains(&bytes) => Ok(PacketSize::Bytes(bytes)),
            _ => Err(SizeError(text.to_owned())),
        }
    }
}

impl fmt::Display for PacketSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PacketSize::Bytes(bytes) => bytes.fmt(out),
            PacketSize::Imix => "imix".fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_small_four_middle_one_large_in_every_twelve() {
        for start in [0u64, 5, 1_000_000_007] {
            let sizes: Vec<u16> = (start..start + 12).map(|number| PacketSize::Imix.of(number)).collect();
            let count = |size| sizes.iter().filter(|&&each| each == size).count();
            assert_eq!((count(64), count(594), count(1518)), (7, 4, 1));
        }
        assert_eq!(PacketSize::Imix.greatest(), 1518);
    }

    #[test]
    fn sizes_are_parsed_and_printed_back() {
        for text in ["60", "64", "1518", "9018", "imix"] {
            assert_eq!(text.parse::<PacketSize>().unwrap().to_string(), text);
        }
        assert_eq!("IMIX".parse(), Ok(PacketSize::Imix));
    }

    #[test]
    fn sizes_out_of_range_or_not_numbers_are_refused_with_the_range() {
        for text in ["", "0", "59", "9019", "65600", "-64", "64k", "mix"] {
            let error = text.parse::<PacketSize>().unwrap_err().to_string();
            assert!(error.contains("60 to 9018") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn fixed_size_is_the_same_for_all_sequence_numbers() {
        assert!((0..100).all(|number| PacketSize::Bytes(512).of(number) == 512));
        assert_eq!(PacketSize::Bytes(512).greatest(), 512);
    }
}
