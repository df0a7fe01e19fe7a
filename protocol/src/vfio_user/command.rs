//! The commands, and which end sends them.

use zerocopy::IntoBytes;

use super::access::{DmaRead, DmaReadDone, DmaWrite, DmaWriteDone, RegionRead, RegionWrite, RegionWriteDone};
use super::access::{RegionReadDone, RegionWriteMulti};
use super::device::{DeviceInfo, Feature, MigrationData, MigrationRead, QueryInfo};
use super::dma::{DmaMap, DmaUnmap};
use super::io_fds::{QueryIoFds, RegionIoFds};
use super::irq::{IrqInfo, QueryIrq, SetIrqs};
use super::region::{QueryRegion, RegionInfo};
use super::table::{FdRule, Payload, direction, take};
use super::version::Version;
use super::{Header, MessageError, with_header};

/// Makes [`Command`] from its numbers and names.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $id:literal $wire:literal;)*) => {
        /// What an end may ask of the other.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Command {
            $($(#[$doc])* $name = $id,)*
        }

        impl Command {
            /// Every command, by ascending number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The command with this number. (14 was `DIRTY_PAGES` in drafts and is nobody's now.)
            pub fn from_id(id: u16) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its number on the wire.
            pub fn id(self) -> u16 {
                self as u16
            }

            /// Its name, without the prefix that all share.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $wire,)*
                }
            }
        }
    };
}

commands! {
    /// Agrees on a version and on capabilities.
    Version = 1 "VERSION";
    /// Lends memory to the device.
    DmaMap = 2 "DMA_MAP";
    /// Takes memory back.
    DmaUnmap = 3 "DMA_UNMAP";
    /// Asks for the number of regions and interrupts.
    DeviceGetInfo = 4 "DEVICE_GET_INFO";
    /// Asks about a region.
    DeviceGetRegionInfo = 5 "DEVICE_GET_REGION_INFO";
    /// Asks for descriptors by which parts of a region are reached.
    DeviceGetRegionIoFds = 6 "DEVICE_GET_REGION_IO_FDS";
    /// Asks about a kind of interrupt.
    DeviceGetIrqInfo = 7 "DEVICE_GET_IRQ_INFO";
    /// Wires, masks or triggers interrupts.
    DeviceSetIrqs = 8 "DEVICE_SET_IRQS";
    /// Reads a region.
    RegionRead = 9 "REGION_READ";
    /// Writes a region.
    RegionWrite = 10 "REGION_WRITE";
    /// Reads the client's memory.
    DmaRead = 11 "DMA_READ";
    /// Writes the client's memory.
    DmaWrite = 12 "DMA_WRITE";
    /// Resets the device.
    DeviceReset = 13 "DEVICE_RESET";
    /// Writes regions several times.
    RegionWriteMulti = 15 "REGION_WRITE_MULTI";
    /// Gets, sets or probes a feature.
    DeviceFeature = 16 "DEVICE_FEATURE";
    /// Reads the device's state.
    MigDataRead = 17 "MIG_DATA_READ";
    /// Writes the device's state.
    MigDataWrite = 18 "MIG_DATA_WRITE";
}

direction! {
    /// What the client asks of the server.
    request Request;
    /// What the server answers.
    reply Reply;

    /// Agree on a version; the first message of a connection.
    Version(version: Version) => (version: Version);
    /// Memory that the device may reach; in the file that comes along, or else by messages only.
    DmaMap(map: DmaMap) => ;
    /// Memory that it may reach no longer. It is answered when nothing refers to it any more.
    DmaUnmap(unmap: DmaUnmap) => (unmap: DmaUnmap);
    /// How many regions and kinds of interrupts are there?
    DeviceGetInfo(query: QueryInfo) => (info: DeviceInfo);
    /// What is this region? The file to map comes with the reply.
    DeviceGetRegionInfo(query: QueryRegion) => (info: RegionInfo);
    /// By which descriptors is it reached?
    DeviceGetRegionIoFds(query: QueryIoFds) => (info: RegionIoFds);
    /// What is this kind of interrupt?
    DeviceGetIrqInfo(query: QueryIrq) => (info: IrqInfo);
    /// Wire, mask or trigger interrupts.
    DeviceSetIrqs(set: SetIrqs) => ;
    /// Read a region.
    RegionRead(read: RegionRead) => (done: RegionReadDone);
    /// Write a region.
    RegionWrite(write: RegionWrite) => (done: RegionWriteDone);
    /// Reset the device.
    DeviceReset => ;
    /// Write regions several times, if the capability is agreed on.
    RegionWriteMulti(writes: RegionWriteMulti) => (done: u64);
    /// Get, set or probe a feature.
    DeviceFeature(feature: Feature) => (feature: Feature);
    /// Read the device's state.
    MigDataRead(read: MigrationRead) => (data: MigrationData);
    /// Write the device's state.
    MigDataWrite(data: MigrationData) => ;
}

direction! {
    /// What the server asks of the client.
    request DmaRequest;
    /// What the client answers.
    reply DmaReply;

    /// Read memory that was lent.
    DmaRead(read: DmaRead) => (done: DmaReadDone);
    /// Write memory that was lent.
    DmaWrite(write: DmaWrite) => (done: DmaWriteDone);
}
