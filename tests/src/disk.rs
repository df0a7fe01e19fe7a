//! A disk's driver under load that knows what must be on the disk.
//!
//! [`Work`] writes, reads and flushes blocks at random, several at a time, and keeps a ledger of what each block may hold. It does so on
//! any [`RequestQueue`]: that of a virtio device ([`Load`]), which survives its device, or that of an NVMe controller
//! ([`NvmeLoad`]), which does not. A [`Journal`] tells another process of each write, so that the driver's process may be what is
//! killed. [`Watched`] finds whoever writes into a guest's memory afterwards.

use std::time::Duration;

mod journal;
mod nvme;
mod virtio;
mod watched;
mod work;

pub use journal::{Entry, Journal, Stream, Unheard, follow};
pub use nvme::{NvmeLoad, NvmeWay};
pub use virtio::{Load, Way};
pub use watched::Watched;
pub use work::{Ask, RequestQueue, Work};

/// Bytes of a block.
pub const BLOCK: u32 = 4096;
/// Requests under way at a time.
pub const DEPTH: u16 = 32;
/// After that a device that does not answer hangs.
const WATCHDOG: Duration = Duration::from_secs(30);
