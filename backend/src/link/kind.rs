//! The `--link` option.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::MAX_FRAME;
use super::pktgen::MIN_SIZE;

/// Which link a network device has, as the operator writes it: `null`, `loopback`, `pktgen,size=64` or `pktgen,size=imix`.
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
}

/// A `--link` option that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// No such link.
    #[error("no link is called {0:?}; there are null, loopback and pktgen[,size=N]")]
    Unknown(String),
    /// The link has no such option.
    #[error("link {link} has no option {option:?}")]
    Option {
        /// The link.
        link: &'static str,
        /// What was given.
        option: String,
    },
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
        let name = words.next().unwrap_or_default();
        let (link, mut kind) = match name {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_read_back_as_it_prints() {
        for text in ["null", "loopback", "pktgen,size=64", "pktgen,size=1518", "pktgen,size=imix"] {
            assert_eq!(text.parse::<LinkKind>().unwrap().to_string(), text);
        }
        assert_eq!("pktgen".parse(), Ok(LinkKind::Pktgen { size: 64 }));
    }

    #[test]
    fn unknown_links_options_and_sizes_are_refused_by_name() {
        assert_eq!("tap".parse::<LinkKind>(), Err(LinkError::Unknown("tap".into())));
        let option = LinkError::Option { link: "null", option: "size=64".into() };
        assert_eq!("null,size=64".parse::<LinkKind>(), Err(option));
        for size in ["", "59", "65555", "-1", "many"] {
            assert_eq!(format!("pktgen,size={size}").parse::<LinkKind>(), Err(LinkError::Size(size.into())));
        }
    }
}
