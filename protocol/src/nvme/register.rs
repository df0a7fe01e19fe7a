//! The controller's registers (base specification, section 3.1.3): offsets in the first BAR, and the fields of each.
//!
//! Registers of memory buffers, boot partitions and persistent memory regions read as zero where a controller has none; they
//! have no names here.

/// Controller Capabilities, 64 bits; see [`Capabilities`].
pub const CAP: u32 = 0x00;
/// Version; see [`version`].
pub const VS: u32 = 0x08;
/// Interrupt Mask Set.
pub const INTMS: u32 = 0x0c;
/// Interrupt Mask Clear.
pub const INTMC: u32 = 0x10;
/// Controller Configuration; see [`Configuration`].
pub const CC: u32 = 0x14;
/// Controller Status; see [`csts`].
pub const CSTS: u32 = 0x1c;
/// NVM Subsystem Reset.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes; see [`QueueAttributes`].
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub const ACQ: u32 = 0x30;
/// Controller Ready Timeouts: with media ready (bits 0-15) and independent of media (16-31), in units of 500 ms.
pub const CRTO: u32 = 0x68;
/// Where the doorbells begin.
pub const DOORBELLS: u32 = 0x1000;

/// The bits of [`ASQ`] and [`ACQ`] that are part of the address.
pub const BASE_ADDRESS: u64 = !0xfff;

/// The register [`VS`] of a version.
pub const fn version(major: u16, minor: u8, tertiary: u8) -> u32 {
    (major as u32) << 16 | (minor as u32) << 8 | tertiary as u32
}

/// What [`CAP`] says.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of a queue at most, 0's based.
    pub max_entries: u16,
    /// Queues must be physically contiguous.
    pub contiguous: bool,
    /// How long the controller may take to become ready, in units of 500 ms.
    pub timeout: u8,
    /// Doorbells are `4 << stride` bytes apart.
    pub stride: u8,
    /// The command sets: bit 0 is the NVM command set.
    pub command_sets: u8,
    /// The smallest page, as an exponent of two beyond 4 KiB.
    pub min_page: u8,
    /// The greatest page, likewise.
    pub max_page: u8,
    /// It can become ready with its media ready, and says in [`CRTO`] when.
    pub ready_with_media: bool,
}

impl Capabilities {
    /// The register.
    pub const fn bits(self) -> u64 {
        self.max_entries as u64
            | (self.contiguous as u64) << 16
            | (self.timeout as u64) << 24
            | (self.stride as u64 & 0xf) << 32
            | (self.command_sets as u64) << 37
            | (self.min_page as u64 & 0xf) << 48
            | (self.max_page as u64 & 0xf) << 52
            | (self.ready_with_media as u64) << 59
    }
}

/// What [`CC`] says.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// The bits that have a meaning, but for the one of controllers that can be ready before their media.
    pub const FIELDS: u32 = 0x00ff_fff1;
    /// Of [`Configuration::FIELDS`], the page size, the command set and the arbitration: fixed while it is enabled.
    pub const FIXED: u32 = 0x3ff0;

    /// Enable.
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// The command set that was selected; 0 is the NVM command set.
    pub const fn command_set(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// The page size, as an exponent of two beyond 4 KiB.
    pub const fn page(self) -> u8 {
        (self.0 >> 7 & 0xf) as u8
    }

    /// The arbitration; 0 is round robin.
    pub const fn arbitration(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// Shutdown Notification: 0 is none.
    pub const fn shutdown(self) -> u8 {
        (self.0 >> 14 & 3) as u8
    }

    /// Bytes of an I/O submission queue entry, as an exponent of two.
    pub const fn submission_entry(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }

    /// Bytes of an I/O completion queue entry, as an exponent of two.
    pub const fn completion_entry(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }
}

/// The bits of [`CSTS`].
pub mod csts {
    /// Ready.
    pub const READY: u32 = 1;
    /// Controller Fatal Status.
    pub const FATAL: u32 = 1 << 1;
    /// Shutdown Status: it is under way.
    pub const SHUTTING_DOWN: u32 = 1 << 2;
    /// Shutdown Status: it is complete.
    pub const SHUT_DOWN: u32 = 2 << 2;
}

/// What [`AQA`] says.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueAttributes(pub u32);

impl QueueAttributes {
    /// The bits that have a meaning.
    pub const FIELDS: u32 = 0x0fff_0fff;

    /// Entries of the admin submission queue, 0's based.
    pub const fn submission(self) -> u16 {
        (self.0 & 0xfff) as u16
    }

    /// Entries of the admin completion queue, 0's based.
    pub const fn completion(self) -> u16 {
        (self.0 >> 16 & 0xfff) as u16
    }
}
