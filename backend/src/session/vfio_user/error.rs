//! Why one message was not obeyed.

use std::io;

use mdev_dma::FileError;
use mdev_pin::IoasError;
use rustix::io::Errno;
use thiserror::Error;

/// Why one message was not obeyed. The session goes on.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("the first message must be VERSION")]
    NotAgreed,
    #[error("VERSION was agreed on already")]
    AgreedAlready,
    #[error("version {major}.{minor} is not spoken here: the client must speak 0.x")]
    Version { major: u16, minor: u16 },
    #[error("this device does not support it")]
    Unsupported,
    #[error("there is no region {0}")]
    NoSuchRegion(u32),
    #[error("region {region} has no {count} bytes at {offset:#x}")]
    BeyondRegion { region: u32, offset: u64, count: u64 },
    #[error("there is no kind of interrupt {0}")]
    NoSuchIrq(u32),
    #[error("kind of interrupt {index} has {there}, not {count} from {start} on")]
    BeyondIrqs { index: u32, start: u32, count: u32, there: u32 },
    #[error("an eventfd is wanted: {0}")]
    EventFd(io::Error),
    #[error("the {size:#x} bytes at {address:#x} are not whole pages")]
    Unaligned { address: u64, size: u64 },
    #[error("memory that may be neither read nor written is of no use")]
    NoAccess,
    #[error(
        "the {size:#x} bytes at {address:#x} overlap with what is mapped at {existing:#x}: unmap that first"
    )]
    Overlap { address: u64, size: u64, existing: u64 },
    #[error("nothing is mapped at {address:#x} with exactly {size:#x} bytes")]
    NotMapped { address: u64, size: u64 },
    #[error("{0} ranges are mapped already: the client must not exceed max_dma_maps")]
    TooMany(usize),
    #[error("the memory at {address:#x}: {source}")]
    File { address: u64, source: FileError },
    #[error("the memory at {address:#x}: its file does not tell its length: {source}")]
    Length { address: u64, source: io::Error },
    #[error("the memory at {address:#x} ends at byte {end:#x} of its file, which has only {file:#x}")]
    BeyondFile { address: u64, end: u64, file: u64 },
    #[error("the file of the memory at {address:#x} does not permit what is asked for")]
    Permission { address: u64 },
    #[error(transparent)]
    Ioas(#[from] IoasError),
    #[error("the server's commands, and nothing else, go over the second socket if there is one")]
    WrongSocket,
    #[error("the device still has commands in flight")]
    StillRunning,
}

impl Refusal {
    /// What the client is told.
    pub(super) fn errno(&self) -> u32 {
        let errno = match self {
            Refusal::Unsupported => Errno::NOTSUP,
            Refusal::Overlap { .. } => Errno::EXIST,
            Refusal::NotMapped { .. } => Errno::NOENT,
            Refusal::TooMany(_) => Errno::NOSPC,
            Refusal::Permission { .. } => Errno::ACCESS,
            Refusal::Ioas(error) => return error.errno().unsigned_abs(),
            Refusal::StillRunning => Errno::BUSY,
            _ => Errno::INVAL,
        };
        errno.raw_os_error().unsigned_abs()
    }
}
