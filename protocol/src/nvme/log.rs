//! Log pages (base specification, section 5.16.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Supported Log Pages: 256 dwords, one per log page.
pub const SUPPORTED: u8 = 0x00;
/// Error Information: entries of [`ErrorEntry`].
pub const ERRORS: u8 = 0x01;
/// SMART / Health Information: [`Health`].
pub const HEALTH: u8 = 0x02;
/// Firmware Slot Information: [`FirmwareSlots`].
pub const FIRMWARE_SLOTS: u8 = 0x03;
/// Changed Namespace List: 1024 identifiers.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects: [`CommandEffects`].
pub const COMMAND_EFFECTS: u8 = 0x05;
/// Feature Identifiers Supported and Effects: 256 dwords, one per feature.
pub const FEATURE_EFFECTS: u8 = 0x12;

/// An entry of [`SUPPORTED`]: there is such a page.
pub const PAGE_SUPPORTED: u32 = 1;
/// Entries of [`CHANGED_NAMESPACES`].
pub const CHANGED_LEN: usize = 1024;

/// An entry of [`COMMAND_EFFECTS`] or [`FEATURE_EFFECTS`]: there is such a command or feature.
pub const EFFECT_SUPPORTED: u32 = 1;
/// An effect: the data of a namespace may change.
pub const EFFECT_DATA: u32 = 1 << 1;
/// An effect: what a namespace can do may change.
pub const EFFECT_NAMESPACE: u32 = 1 << 2;
/// An effect: the list of namespaces may change.
pub const EFFECT_INVENTORY: u32 = 1 << 3;
/// An entry of [`FEATURE_EFFECTS`]: the value belongs to a namespace.
pub const SCOPE_NAMESPACE: u32 = 1 << 20;
/// An entry of [`FEATURE_EFFECTS`]: the value belongs to the controller.
pub const SCOPE_CONTROLLER: u32 = 1 << 21;

/// What a get log page command asks for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LogRequest {
    /// The page.
    pub page: u8,
    /// The event that belongs to the page stays silent after it is read.
    pub retain: bool,
    /// Bytes that are wanted, a multiple of four.
    pub len: u64,
    /// The first of them, in the page.
    pub offset: u64,
    /// The offset counts entries, not bytes.
    pub by_entry: bool,
}

impl LogRequest {
    /// Of command dwords 10 to 14.
    pub const fn new(cdw10: u32, cdw11: u32, cdw12: u32, cdw13: u32, cdw14: u32) -> Self {
        let dwords = (cdw10 >> 16) as u64 | (cdw11 as u64 & 0xffff) << 16;
        Self {
            page: cdw10 as u8,
            retain: cdw10 & 1 << 15 != 0,
            len: dwords.saturating_add(1).saturating_mul(4),
            offset: cdw12 as u64 | (cdw13 as u64) << 32,
            by_entry: cdw14 & 1 << 23 != 0,
        }
    }
}

/// An entry of the error log; all zeros where there is none.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// The number of the error in the controller's life, from 1 on.
    pub count: u64,
    /// The submission queue.
    pub sq_id: u16,
    /// The command.
    pub cid: u16,
    /// Its status, as in a completion: the phase tag is in bit 0.
    pub status: u16,
    /// Byte (bits 0-7) and bit (8-10) of the command that is at fault; 0xffff if none is.
    pub location: u16,
    /// The first logical block that failed.
    pub block: u64,
    /// The namespace.
    pub nsid: u32,
    /// Where vendor's information is.
    pub vendor: u8,
    /// The transport: 0 is none of those that are listed, which is PCI Express.
    pub transport: u8,
    /// Reserved.
    pub reserved0: [u8; 2],
    /// Depends on the command.
    pub command: u64,
    /// Depends on the transport.
    pub transport_specific: u16,
    /// Reserved.
    pub reserved1: [u8; 22],
}

/// How the controller is. 128-bit numbers are little-endian bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Health {
    /// Bits of what is critical: [`WARNING_TEMPERATURE`] and others.
    pub warning: u8,
    /// Kelvin (16 bits).
    pub temperature: [u8; 2],
    /// Percent of the spare capacity that is left.
    pub spare: u8,
    /// Percent of the spare capacity below which is a warning.
    pub spare_threshold: u8,
    /// Percent of the life that is used.
    pub used: u8,
    /// The same as `warning`, of endurance groups.
    pub group_warning: u8,
    /// Reserved.
    pub reserved0: [u8; 25],
    /// Thousands of 512 bytes that were read, rounded up.
    pub units_read: [u8; 16],
    /// The same, written.
    pub units_written: [u8; 16],
    /// Commands that read.
    pub reads: [u8; 16],
    /// Commands that write.
    pub writes: [u8; 16],
    /// Minutes it was busy.
    pub busy_minutes: [u8; 16],
    /// Power cycles.
    pub power_cycles: [u8; 16],
    /// Hours it was on.
    pub power_on_hours: [u8; 16],
    /// Power cycles without a shutdown before.
    pub unsafe_shutdowns: [u8; 16],
    /// Unrecovered errors of media.
    pub media_errors: [u8; 16],
    /// Entries of the error log in the controller's life.
    pub error_entries: [u8; 16],
    /// Minutes above the warning temperature (32 bits).
    pub warning_minutes: [u8; 4],
    /// Minutes above the critical temperature (32 bits).
    pub critical_minutes: [u8; 4],
    /// Sensors, Kelvin; 0 where there is none.
    pub sensors: [[u8; 2]; 8],
    /// Thermal management: how often, and for how long.
    pub thermal: [u8; 16],
    /// Reserved.
    pub reserved1: [u8; 280],
}

/// [`Health::warning`]: a temperature is beyond a threshold.
pub const WARNING_TEMPERATURE: u8 = 1 << 1;

impl Default for Health {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

/// Which firmware there is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlots {
    /// The slot that runs (bits 0-2) and the one that will (4-6).
    pub active: u8,
    /// Reserved.
    pub reserved0: [u8; 7],
    /// The revisions of slots 1 to 7, ASCII; zeros where there is none.
    pub revisions: [[u8; 8]; 7],
    /// Reserved.
    pub reserved1: [u8; 448],
}

impl Default for FirmwareSlots {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

/// Which commands there are, by opcode, and what they change.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandEffects {
    /// Admin commands.
    pub admin: [u32; 256],
    /// I/O commands.
    pub io: [u32; 256],
    /// Reserved.
    pub reserved: [u8; 2048],
}

impl Default for CommandEffects {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

const _: () = assert!(size_of::<ErrorEntry>() == 64 && size_of::<Health>() == 512);
const _: () = assert!(size_of::<FirmwareSlots>() == 512 && size_of::<CommandEffects>() == 4096);
