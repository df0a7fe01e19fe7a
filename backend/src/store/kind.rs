//! What an operator writes to name a store.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::SECTOR;
use super::file::FileOptions;

/// The longest store: what virtio's sectors of 512 bytes can name, less what would not fit an offset of the kernel.
const MAX_SIZE: u64 = 1 << 62;

/// A store that is wanted: `null,size=N`, `mem,size=N`, `file=PATH[,direct=on|off][,ro=on|off]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// See [`super::null`].
    Null {
        /// Bytes.
        size: u64,
    },
    /// See [`super::memory`].
    Memory {
        /// Bytes.
        size: u64,
    },
    /// See [`super::file`].
    File(FileOptions),
}

/// Why there is no such store. Each message says what to do.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say it
pub enum StoreError {
    #[error(
        "no store is called {0:?}; there are null,size=N, mem,size=N and file=PATH[,direct=on|off][,ro=on|off]"
    )]
    Unknown(String),
    #[error("store {store} has no option {option:?}")]
    Option { store: &'static str, option: String },
    #[error("{0:?} is not a size: use bytes, or a number with k, M, G or T (powers of 1024), for example 1G")]
    Size(String),
    #[error("a store has a multiple of {SECTOR} bytes, from {SECTOR} on: {0} bytes are not")]
    Sectors(u64),
    #[error("store {0} needs its size: {0},size=1G")]
    NoSize(&'static str),
    #[error("{option}={value:?} is neither on nor off")]
    Switch { option: &'static str, value: String },
    #[error("file= needs a path")]
    NoPath,
    #[error("no memory for a store of {size} bytes: {source}")]
    Memory { size: u64, source: io::Error },
    #[error("cannot open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{0:?} is neither a regular file nor a block device")]
    NotAStore(PathBuf),
    #[error("{path:?} has {size} bytes, not even one sector of {SECTOR}; make it larger (truncate -s)")]
    Empty { path: PathBuf, size: u64 },
    #[error(
        "{0:?} is in use by another process that writes it, or does not want it to be written (a lock is held): stop that one first"
    )]
    Locked(PathBuf),
    #[error(
        "{0:?} is in use by this process already, as the store of another device or namespace; a file that is written can \
         be behind one only: give each a file of its own, or ro=on to all of them"
    )]
    LockedHere(PathBuf),
    #[error("{path:?} cannot be locked: {source}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("{path:?} does not support direct I/O; leave out direct=on")]
    NotDirect { path: PathBuf },
    #[error("the size of {path:?} cannot be watched: {source}")]
    Watch { path: PathBuf, source: io::Error },
}

impl FromStr for StoreKind {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let mut words = words(text).into_iter();
        let first = words.next().unwrap_or_default();
        if let Some(path) = first.strip_prefix("file=") {
            let mut options = FileOptions::new(PathBuf::from(path));
            if path.is_empty() {
                return Err(StoreError::NoPath);
            }
            for word in words {
                match word.split_once('=') {
                    Some(("direct", value)) => options.direct = switch("direct", value)?,
                    Some(("ro", value)) => options.read_only = switch("ro", value)?,
                    _ => return Err(StoreError::Option { store: "file", option: word }),
                }
            }
            return Ok(StoreKind::File(options));
        }
        let store = match first.as_str() {
            "null" => "null",
            "mem" => "mem",
            _ => return Err(StoreError::Unknown(first)),
        };
        let mut size = None;
        for word in words {
            match word.split_once('=') {
                Some(("size", value)) => size = Some(parse_size(value)?),
                _ => return Err(StoreError::Option { store, option: word }),
            }
        }
        let size = size.ok_or(StoreError::NoSize(store))?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(StoreError::Sectors(size));
        }
        Ok(if store == "mem" { StoreKind::Memory { size } } else { StoreKind::Null { size } })
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreKind::Null { size } => write!(f, "null,size={size}"),
            StoreKind::Memory { size } => write!(f, "mem,size={size}"),
            StoreKind::File(FileOptions { path, direct, read_only }) => {
                write!(f, "file={}", path.to_string_lossy().replace(',', ",,"))?;
                if *direct {
                    f.write_str(",direct=on")?;
                }
                if *read_only { f.write_str(",ro=on") } else { Ok(()) }
            }
        }
    }
}

/// The parts between commas; two commas stand for one in a part, as QEMU has it.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    words
}

fn switch(option: &'static str, value: &str) -> Result<bool, StoreError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(StoreError::Switch { option, value: value.to_owned() }),
    }
}

/// Bytes: a number, perhaps with k, M, G or T.
///
/// # Errors
/// [`StoreError::Size`].
pub fn parse_size(text: &str) -> Result<u64, StoreError> {
    let wrong = || StoreError::Size(text.to_owned());
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|size| *size <= MAX_SIZE).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_is_read_back_as_it_prints() {
        for text in
            ["null,size=512", "mem,size=1048576", "file=/a/b", "file=/a,,b,direct=on,ro=on", "file=x,ro=on"]
        {
            assert_eq!(text.parse::<StoreKind>().unwrap().to_string(), text);
        }
        assert_eq!("null,size=1G".parse::<StoreKind>().unwrap(), StoreKind::Null { size: 1 << 30 });
        assert_eq!("file=x,direct=off".parse::<StoreKind>().unwrap().to_string(), "file=x");
    }

    #[test]
    fn comma_in_a_path_is_written_twice() {
        let kind = "file=a,,b,ro=on".parse::<StoreKind>().unwrap();
        let StoreKind::File(options) = kind else { panic!("{kind:?}") };
        assert_eq!((options.path.to_str(), options.read_only), (Some("a,b"), true));
    }

    #[test]
    fn unknown_stores_options_and_sizes_are_refused_by_name() {
        let error = |text: &str| text.parse::<StoreKind>().unwrap_err().to_string();
        assert!(error("disk").contains("no store is called \"disk\""));
        assert!(error("").contains("no store is called"));
        assert!(error("null").contains("needs its size"));
        assert!(error("null,size=1x").contains("not a size"));
        assert!(error("mem,size=99999999999T").contains("not a size"));
        assert!(error("mem,size=1000").contains("multiple of 512"));
        assert!(error("mem,size=0").contains("multiple of 512"));
        assert!(error("mem,size=1G,direct=on").contains("no option"));
        assert!(error("file=").contains("needs a path"));
        assert!(error("file=x,direct=maybe").contains("neither on nor off"));
        assert!(error("file=x,size=1").contains("no option"));
    }
}
