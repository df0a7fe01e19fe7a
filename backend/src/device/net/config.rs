//! The configuration space of a network device (virtio 1.3, 5.1.4), and MAC addresses as text.

use thiserror::Error;

/// Bytes of `struct virtio_net_config` up to the hash types, all of which a driver may read.
/// Bytes of the configuration space.
pub(super) const LEN: usize = 24;
/// Where the status lies; with the link down it is zero.
const STATUS: std::ops::Range<usize> = 6..8;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// `speed` where it is not known.
const SPEED_UNKNOWN: u32 = u32::MAX;
/// `duplex` where it is not known.
const DUPLEX_UNKNOWN: u8 = u8::MAX;

/// The bytes a driver reads. Fields of features that are not offered are zero or "unknown".
pub(super) struct ConfigSpace {
    bytes: [u8; LEN],
}

impl ConfigSpace {
    pub(super) fn new(mac: Option<[u8; 6]>, queue_pairs: u16, mtu: Option<u16>) -> Self {
        let mut bytes = [0; LEN];
        let mut fields = bytes.iter_mut();
        let mut put = |value: &[u8]| {
            // The value leads: a zip takes one more from its first side before it sees that the other has ended.
            for (byte, place) in value.iter().zip(fields.by_ref()) {
                *place = *byte;
            }
        };
        put(&mac.unwrap_or_default());
        put(&LINK_UP.to_le_bytes());
        put(&queue_pairs.to_le_bytes());
        put(&mtu.unwrap_or_default().to_le_bytes());
        put(&SPEED_UNKNOWN.to_le_bytes());
        put(&[DUPLEX_UNKNOWN]);
        Self { bytes }
    }

    /// Reads as the space is with the link up or down.
    pub(super) fn read(&self, offset: u32, link_up: bool, out: &mut [u8]) -> Result<(), String> {
        let first = offset as usize;
        let mut space = self.bytes;
        if !link_up && let Some(status) = space.get_mut(STATUS) {
            status.fill(0);
        }
        let bytes = first.checked_add(out.len()).and_then(|end| space.get(first..end)).ok_or_else(|| {
            format!("{} bytes at {offset} are outside the configuration space of {LEN} bytes", out.len())
        })?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// A MAC address that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a MAC address: six pairs of hexadecimal digits with colons between, 02:00:00:00:00:01")]
pub struct MacError(String);

/// Reads a MAC address as operators write it.
///
/// # Errors
/// Anything but six pairs of hexadecimal digits separated by colons.
pub fn parse_mac(text: &str) -> Result<[u8; 6], MacError> {
    let wrong = || MacError(text.to_owned());
    let mut mac = [0; 6];
    let mut words = text.split(':');
    for octet in &mut mac {
        let word = words.next().filter(|word| word.len() == 2 && word.bytes().all(|c| c.is_ascii_hexdigit()));
        *octet = word.and_then(|word| u8::from_str_radix(word, 16).ok()).ok_or_else(wrong)?;
    }
    if words.next().is_some() { Err(wrong()) } else { Ok(mac) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let space = ConfigSpace::new(Some([2, 1, 2, 3, 4, 5]), 4, Some(1500));
        let mut all = [0; LEN];
        space.read(0, true, &mut all).unwrap();
        assert_eq!(all[..6], [2, 1, 2, 3, 4, 5]);
        assert_eq!(all[6..8], [1, 0]);
        let mut status = [0xff; 2];
        space.read(6, false, &mut status).unwrap();
        assert_eq!(status, [0, 0], "the link is down");
        assert_eq!(all[8..10], [4, 0]);
        assert_eq!(all[10..12], 1500u16.to_le_bytes());
        let mut mtu = [0; 2];
        space.read(10, true, &mut mtu).unwrap();
        assert_eq!(u16::from_le_bytes(mtu), 1500);
    }

    #[test]
    fn reading_past_the_end_is_refused() {
        let space = ConfigSpace::new(None, 1, None);
        assert!(space.read(0, true, &mut [0; LEN]).is_ok());
        assert!(space.read(1, true, &mut [0; LEN]).is_err());
        assert!(space.read(u32::MAX, true, &mut [0; 1]).is_err());
        assert!(space.read(LEN as u32, true, &mut []).is_ok());
    }

    #[test]
    fn a_mac_address_is_six_pairs_and_nothing_else() {
        assert_eq!(parse_mac("02:00:5e:10:00:Ff"), Ok([2, 0, 0x5e, 0x10, 0, 0xff]));
        for wrong in ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "02:00:5e:10:00:f", "02:00:5e:10:00:+f"] {
            assert_eq!(parse_mac(wrong), Err(MacError(wrong.to_owned())));
        }
    }
}
