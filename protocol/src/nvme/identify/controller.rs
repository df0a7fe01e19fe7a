//! The controller (base specification, figure 275).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::IDENTIFY_LEN;

/// [`IdentifyController::attributes`].
pub mod attribute {
    /// Host identifiers of 16 bytes.
    pub const LONG_HOST_ID: u32 = 1;
}

/// [`IdentifyController::optional_admin`].
pub mod optional_admin {
    /// Namespace Management and Namespace Attachment.
    pub const NAMESPACES: u16 = 1 << 3;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
}

/// [`IdentifyController::optional_nvm`].
pub mod optional_nvm {
    /// Compare.
    pub const COMPARE: u16 = 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Features can be saved, and selected by what they were.
    pub const SELECT: u16 = 1 << 4;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
}

/// A power state.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerState {
    /// Hundredths of a watt at most.
    pub max_power: u16,
    /// Reserved.
    pub reserved0: u8,
    /// The scale of the power (bit 0), no I/O in this state (bit 1).
    pub flags: u8,
    /// Microseconds to enter it.
    pub entry_latency: u32,
    /// Microseconds to leave it.
    pub exit_latency: u32,
    /// How it compares with others, and its idle and active power.
    pub relative: [u8; 20],
}

/// What the controller is. Fields that no controller here fills are in groups of bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Serial number, ASCII, filled with spaces.
    pub serial: [u8; 20],
    /// Model, likewise.
    pub model: [u8; 40],
    /// Firmware revision, likewise.
    pub firmware: [u8; 8],
    /// Recommended arbitration burst, as an exponent of two.
    pub arbitration_burst: u8,
    /// OUI of the vendor.
    pub oui: [u8; 3],
    /// What of the subsystem there may be more of.
    pub multipath: u8,
    /// Bytes of a command's data at most, as an exponent of two in units of the smallest page; 0: no limit.
    pub max_transfer: u8,
    /// Its identifier in the subsystem.
    pub controller_id: u16,
    /// The version, as in the register.
    pub version: u32,
    /// Latencies of the state in which the power is off: resume, and entry, in microseconds.
    pub power_off_latency: [u32; 2],
    /// Asynchronous events that are optional: bits of the feature.
    pub events: u32,
    /// [`attribute`].
    pub attributes: u32,
    /// Read recovery levels.
    pub read_recovery: u16,
    /// Reserved.
    pub reserved0: [u8; 9],
    /// 1: an I/O controller.
    pub kind: u8,
    /// Globally unique identifier of the FRU.
    pub fru_guid: [u8; 16],
    /// Command retry delays, in units of 100 ms.
    pub retry_delays: [u16; 3],
    /// Reserved, and what belongs to management interfaces.
    pub reserved1: [u8; 122],
    /// [`optional_admin`].
    pub optional_admin: u16,
    /// Abort commands at a time, 0's based.
    pub abort_limit: u8,
    /// Asynchronous event requests at a time, 0's based.
    pub event_limit: u8,
    /// Firmware: the first slot is read-only (bit 0), slots (bits 1-3).
    pub firmware_updates: u8,
    /// Log pages: bits of what is optional.
    pub log_attributes: u8,
    /// Entries of the error log, 0's based.
    pub error_entries: u8,
    /// Power states, 0's based.
    pub power_states: u8,
    /// How vendor specific admin commands look.
    pub vendor_admin: u8,
    /// Autonomous power state transitions.
    pub autonomous_power: u8,
    /// Kelvin above which it warns.
    pub warning_temperature: u16,
    /// Kelvin above which it is critical.
    pub critical_temperature: u16,
    /// Firmware activation, host memory buffers.
    pub reserved2: [u8; 10],
    /// Bytes of all namespaces (128 bits).
    pub total_capacity: [u8; 16],
    /// Bytes that no namespace has (128 bits).
    pub unallocated_capacity: [u8; 16],
    /// Replay protection, self-tests.
    pub reserved3: [u8; 7],
    /// The granularity of firmware updates.
    pub firmware_granularity: u8,
    /// Keep alive, in units of 100 ms; 0: there is none.
    pub keep_alive: u16,
    /// Thermal management, sanitizing, sets, groups, asymmetric access, domains.
    pub reserved4: [u8; 190],
    /// Bytes of a submission queue entry: at least (bits 0-3), at most (4-7), as exponents of two.
    pub submission_entry: u8,
    /// The same for completion queues.
    pub completion_entry: u8,
    /// Commands of a queue at a time; for other transports.
    pub max_commands: u16,
    /// The highest namespace identifier.
    pub namespaces: u32,
    /// [`optional_nvm`].
    pub optional_nvm: u16,
    /// Fused operations.
    pub fused: u16,
    /// Formatting.
    pub format: u8,
    /// Volatile write cache: there is one (bit 0), what a flush of all namespaces does (bits 1-2).
    pub write_cache: u8,
    /// Blocks that are written atomically, 0's based.
    pub atomic_write: u16,
    /// The same in spite of a power failure.
    pub atomic_write_power_fail: u16,
    /// How vendor specific I/O commands look.
    pub vendor_io: u8,
    /// Write protection of namespaces.
    pub write_protection: u8,
    /// Blocks that are compared and written atomically, 0's based.
    pub atomic_compare_write: u16,
    /// Formats of copy descriptors.
    pub copy_formats: u16,
    /// SGLs: 1 in bits 0-1 if there are any, without a rule of alignment; bit 16 if there are bit buckets.
    pub sgl: u32,
    /// Namespaces at most, if that is less than the highest identifier.
    pub max_namespaces: u32,
    /// Domains.
    pub reserved5: [u8; 224],
    /// The name of the subsystem, UTF-8, with a zero at its end.
    pub subsystem_name: [u8; 256],
    /// Reserved, and what belongs to fabrics.
    pub reserved6: [u8; 1024],
    /// The power states.
    pub power: [PowerState; 32],
    /// Of the vendor.
    pub vendor_specific: [u8; 1024],
}

impl Default for IdentifyController {
    fn default() -> Self {
        FromZeros::new_zeroed()
    }
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_LEN && size_of::<PowerState>() == 32);
