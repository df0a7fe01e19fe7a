//! vfio-user: how a client (QEMU's `vfio-user-pci`) uses a device that another process, the server, emulates.
//!
//! Both ends ask over one Unix socket, so each receives commands of the other and replies to its own, told apart by
//! a bit of the header. Commands of the server and their replies travel on a second socket where the two have agreed
//! on one (`twin_socket`): the same kinds of messages, so the same types.
//!
//! | | receives | asks | answers |
//! |---|---|---|---|
//! | server | `Connection<ToServer>` | [`DmaRequest`] | [`Reply`] |
//! | client | `Connection<ToClient>` | [`Request`] | [`DmaReply`] |
//!
//! A command is answered under its own number and command, in any order, unless its header says that no reply is
//! wanted ([`Header::wants_reply`]). A failure is a header alone. What cannot be decoded is answered with
//! [`MessageError::errno`].
//!
//! # Limits
//!
//! A message carries at most [`MAX_DATA`] bytes of data, which is what a peer must assume that says nothing of it, and
//! [`MAX_FDS`](crate::frame::MAX_FDS) descriptors. What an end announces in [`Capabilities`] may be less: that the other
//! keeps to it is for the session to check ([`Request::transfer`]).
//!
//! # What may block, what never fails
//!
//! Only [`Client`] waits. Encoding never fails: payloads that could outgrow a message are made by constructors that
//! refuse it. Decoding takes time and memory in proportion to the message, whatever it counts.
//!
//! # What it does not implement
//!
//! The contents of device features and of migration data (opaque bytes), the dirty bitmap that drafts had in
//! `DMA_UNMAP`, and peers of the other byte order.
//!
//! Source: "vfio-user Protocol Specification" (`docs/interop/vfio-user.rst`) and `hw/vfio-user` of QEMU 11, and
//! `linux/vfio.h`.

mod access;
mod client;
mod command;
mod device;
mod dma;
mod error;
#[cfg(test)]
pub(crate) mod golden;
mod header;
mod io_fds;
mod irq;
mod message;
mod region;
mod table;
mod version;

use zerocopy::IntoBytes;

pub use access::{
    Data, DmaLayout, DmaRead, DmaReadDone, DmaWrite, DmaWriteDone, MAX_DATA, MAX_WRITES, RegionRead,
    RegionReadDone, RegionWrite, RegionWriteDone, RegionWriteMulti,
};
pub use client::{Client, ClientError, LentMemory, Ticket};
pub use command::{Command, DmaReply, DmaRequest, Reply, Request};
pub use device::{DeviceFlags, DeviceInfo, Feature, MigrationData, MigrationRead, QueryInfo};
pub use dma::{DmaFlags, DmaMap, DmaUnmap};
pub use error::MessageError;
pub use header::{Header, MAX_BODY};
pub use io_fds::{IoFdKind, MAX_SUB_REGIONS, QueryIoFds, RegionIoFds, SubRegion, SubRegions};
pub use irq::{IrqAction, IrqData, IrqFlags, IrqInfo, MAX_IRQS, QueryIrq, SetIrqs};
pub use message::{ToClient, ToServer};
pub use region::{MAX_AREAS, QueryRegion, RegionCaps, RegionFlags, RegionInfo, SparseArea};
pub use table::{FdRule, Size};
pub use version::{Capabilities, MAX_VERSION_DATA, Migration, TwinSocket, Version};

impl Request {
    /// How many bytes of data this moves, in either direction: what `max_data_xfer_size` limits. 0 where it moves none.
    pub fn transfer(&self) -> usize {
        match self {
            Self::RegionRead(read) => read.count as usize,
            Self::RegionWrite(write) => write.data.len(),
            Self::MigDataRead(read) => read.size as usize,
            Self::MigDataWrite(MigrationData(data)) => data.len(),
            _ => 0,
        }
    }
}

/// A message: what `encode` appends, behind the header that `header` makes for so many bytes.
fn with_header(header: impl FnOnce(usize) -> Header, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; Header::LEN];
    encode(&mut bytes);
    let body = bytes.len().saturating_sub(Header::LEN);
    for (to, from) in bytes.iter_mut().zip(header(body).as_bytes()) {
        *to = *from;
    }
    bytes
}

#[cfg(test)]
mod tests;
