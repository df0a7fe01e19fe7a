//! The `--link` option.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::MAX_FRAME;
use super::pktgen::MIN_SIZE;

/// Which link a network device has, as the operator writes it: `null`, `loopback`, `pktgen,size=64`, `pktgen,size=imix`,
/// `tap=NAME` or `peer=NAME`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Reads what the guest sends, counts and drops it.
    Null,
    /// Gives the guest back what it sends.
    Loopback,
    /// Fills the guest's receive queues.
    Pktgen {
        /// Bytes of each frame, checksum excluded: 60 to 65554.
        size: usize,
    },
    /// The same, with frames of the simple Internet mix ([`IMIX`](super::IMIX)).
    Imix,
    /// A tap interface of the host, of this name.
    Tap(LinkName),
    /// The other devices of the process that have this link with this name.
    Peer(LinkName),
}

/// The name of what a link leads to: 1 to 15 bytes, as Linux wants it of an interface.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct LinkName {
    bytes: [u8; LinkName::MAX],
    len: u8,
}

impl LinkName {
    /// Bytes a name may have (`IFNAMSIZ` with its closing zero is 16).
    pub const MAX: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // It was text when it was made.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = LinkError;

    /// The rules are those of the kernel (dev_valid_name), and no `%`, which it would take for a pattern, or comma.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%' | ',');
        if text.is_empty() || text == "." || text == ".." || text.len() > Self::MAX || text.contains(odd) {
            return Err(LinkError::Name(text.to_owned()));
        }
        let mut bytes = [0; Self::MAX];
        bytes.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
        Ok(Self { bytes, len: text.len() as u8 })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A `--link` option that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// No such link.
    #[error("no link is called {0:?}; there are null, loopback, pktgen[,size=N], tap=NAME and peer=NAME")]
    Unknown(String),
    /// The link has no such option.
    #[error("link {link} has no option {option:?}")]
    Option {
        /// The link.
        link: &'static str,
        /// What was given.
        option: String,
    },
    /// A name that cannot be one.
    #[error(
        "{0:?} is not the name of an interface: 1 to {max} bytes without blanks, colons, commas, slashes and %",
        max = LinkName::MAX
    )]
    Name(String),
    /// A frame size that cannot be.
    #[error("pktgen size {0:?} is neither a number from {min} to {max} nor imix", min = MIN_SIZE, max = MAX_FRAME)]
    Size(String),
}

/// Frames of pktgen where nothing else is said.
const DEFAULT_SIZE: usize = 64;

impl FromStr for LinkKind {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let mut words = text.split(',');
        let word = words.next().unwrap_or_default();
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let (link, mut kind) = match name {
            "tap" => ("tap", LinkKind::Tap(value.unwrap_or_default().parse()?)),
            "peer" => ("peer", LinkKind::Peer(value.unwrap_or_default().parse()?)),
            _ if value.is_some() => return Err(LinkError::Unknown(word.to_owned())),
            "null" => ("null", LinkKind::Null),
            "loopback" => ("loopback", LinkKind::Loopback),
            "pktgen" => ("pktgen", LinkKind::Pktgen { size: DEFAULT_SIZE }),
            _ => return Err(LinkError::Unknown(name.to_owned())),
        };
        for word in words {
            match (&mut kind, word.split_once('=')) {
                (LinkKind::Pktgen { .. }, Some(("size", "imix"))) => kind = LinkKind::Imix,
                (LinkKind::Pktgen { size }, Some(("size", value))) => {
                    *size = value
                        .parse()
                        .ok()
                        .filter(|size| (MIN_SIZE..=MAX_FRAME).contains(size))
                        .ok_or_else(|| LinkError::Size(value.to_owned()))?;
                }
                _ => return Err(LinkError::Option { link, option: word.to_owned() }),
            }
        }
        Ok(kind)
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkKind::Null => f.write_str("null"),
            LinkKind::Loopback => f.write_str("loopback"),
            LinkKind::Pktgen { size } => write!(f, "pktgen,size={size}"),
            LinkKind::Imix => f.write_str("pktgen,size=imix"),
            LinkKind::Tap(name) => write!(f, "tap={name}"),
            LinkKind::Peer(name) => write!(f, "peer={name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_read_back_as_it_prints() {
        for text in [
            "null",
            "loopback",
            "pktgen,size=64",
            "pktgen,size=1518",
            "pktgen,size=imix",
            "tap=vm0",
            "peer=lan",
        ] {
            assert_eq!(text.parse::<LinkKind>().unwrap().to_string(), text);
        }
        assert_eq!("pktgen".parse(), Ok(LinkKind::Pktgen { size: 64 }));
    }

    #[test]
    fn unknown_links_options_and_sizes_are_refused_by_name() {
        for unknown in ["bridge", "null=1", ""] {
            assert_eq!(unknown.parse::<LinkKind>(), Err(LinkError::Unknown(unknown.into())));
        }
        let option = LinkError::Option { link: "tap", option: "up".into() };
        assert_eq!("tap=vm0,up".parse::<LinkKind>(), Err(option));
        let option = LinkError::Option { link: "null", option: "size=64".into() };
        assert_eq!("null,size=64".parse::<LinkKind>(), Err(option));
        for name in ["", "a/b", "a b", "tap%d", "sixteen-byte-nam", ".."] {
            assert_eq!(format!("tap={name}").parse::<LinkKind>(), Err(LinkError::Name(name.into())));
        }
        for size in ["", "59", "65555", "-1", "many"] {
            assert_eq!(format!("pktgen,size={size}").parse::<LinkKind>(), Err(LinkError::Size(size.into())));
        }
    }
}
