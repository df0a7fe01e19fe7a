//! The configuration space of a PCI function: offsets and bits of the header (PCI Local Bus 3.0, section 6.1) and of the
//! capabilities for power management, MSI-X and PCI Express (PCI Express Base 5.0, chapter 7).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the space of a PCI Express function.
pub const CONFIG_LEN: usize = 4096;

/// The header of a function that is no bridge (type 0).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// [`command`].
    pub command: u16,
    /// [`status`].
    pub status: u16,
    /// Revision.
    pub revision: u8,
    /// Programming interface, sub class, class.
    pub class: [u8; 3],
    /// Bytes of a cache line, in dwords.
    pub cache_line: u8,
    /// Latency timer; nothing in PCI Express.
    pub latency: u8,
    /// Type of the header: 0, and bit 7 if the device has several functions.
    pub kind: u8,
    /// Self test.
    pub self_test: u8,
    /// Base addresses.
    pub bars: [u32; 6],
    /// CardBus.
    pub cardbus: u32,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Expansion ROM.
    pub rom: u32,
    /// Where the first capability is.
    pub capabilities: u8,
    /// Reserved.
    pub reserved: [u8; 7],
    /// What software notes down about the interrupt.
    pub interrupt_line: u8,
    /// The pin: 1 is INTA.
    pub interrupt_pin: u8,
    /// Nothing in PCI Express.
    pub grant_and_latency: [u8; 2],
}

/// [`Header::command`].
pub mod command {
    /// It answers in memory.
    pub const MEMORY: u16 = 1 << 1;
    /// It may reach memory.
    pub const BUS_INITIATOR: u16 = 1 << 2;
    /// It reports parity errors.
    pub const PARITY: u16 = 1 << 6;
    /// It reports system errors.
    pub const SYSTEM_ERROR: u16 = 1 << 8;
    /// It must not assert its pin.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
}

/// [`Header::status`].
pub mod status {
    /// The pin is asserted.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There are capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// [`Header::bars`]: an address of 64 bits, whose upper half is the next one.
pub const BAR_64: u32 = 4;

/// Identifiers of capabilities.
pub mod capability {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Power management.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Power {
    /// [`capability::POWER`].
    pub id: u8,
    /// Where the next capability is.
    pub next: u8,
    /// The version: 3 (bits 0-2), and what it can do.
    pub capabilities: u16,
    /// The state (bits 0-1), and whether it keeps what it was told when it wakes up: [`Power::NO_SOFT_RESET`].
    pub control: u16,
    /// Bridges, data.
    pub reserved: u16,
}

impl Power {
    /// [`Power::control`]: waking up is no reset.
    pub const NO_SOFT_RESET: u16 = 1 << 3;
    /// [`Power::control`]: the state.
    pub const STATE: u16 = 3;
}

/// MSI-X.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Msix {
    /// [`capability::MSIX`].
    pub id: u8,
    /// Where the next capability is.
    pub next: u8,
    /// The vectors, 0's based (bits 0-10), [`Msix::MASKED`], [`Msix::ENABLED`].
    pub control: u16,
    /// Where the table is: the BAR (bits 0-2) and the offset in it.
    pub table: u32,
    /// Where the pending bits are, likewise.
    pub pending: u32,
}

impl Msix {
    /// [`Msix::control`]: all vectors are masked.
    pub const MASKED: u16 = 1 << 14;
    /// [`Msix::control`]: MSI-X is in use.
    pub const ENABLED: u16 = 1 << 15;
    /// Bytes of an entry of the table: address (64 bits), data, and control (32 bits each).
    pub const ENTRY_LEN: usize = 16;
}

/// PCI Express, of version 2.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Express {
    /// [`capability::EXPRESS`].
    pub id: u8,
    /// Where the next capability is.
    pub next: u8,
    /// The version: 2 (bits 0-3), and what kind of port: an endpoint is 0 (bits 4-7).
    pub capabilities: u16,
    /// Device capabilities: [`Express::ROLE_BASED_ERRORS`], [`Express::FUNCTION_RESET`].
    pub device_capabilities: u32,
    /// Device control: [`Express::INITIATE_RESET`].
    pub device_control: u16,
    /// Device status.
    pub device_status: u16,
    /// Link capabilities.
    pub link_capabilities: u32,
    /// Link control.
    pub link_control: u16,
    /// Link status: speed (bits 0-3) and width (4-9).
    pub link_status: u16,
    /// Slots and roots.
    pub slot_and_root: [u32; 4],
    /// Device capabilities 2.
    pub device_capabilities2: u32,
    /// Device control 2.
    pub device_control2: u16,
    /// Device status 2.
    pub device_status2: u16,
    /// Link capabilities 2.
    pub link_capabilities2: u32,
    /// Link control 2.
    pub link_control2: u16,
    /// Link status 2.
    pub link_status2: u16,
    /// Slots.
    pub slot2: [u32; 2],
}

impl Express {
    /// [`Express::device_capabilities`]: errors are reported by role, which every device does.
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// [`Express::device_capabilities`]: it can be reset by [`Express::INITIATE_RESET`].
    pub const FUNCTION_RESET: u32 = 1 << 28;
    /// [`Express::device_control`]: reset the function. Reads as zero.
    pub const INITIATE_RESET: u16 = 1 << 15;
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Power>() == 8);
const _: () = assert!(size_of::<Msix>() == 12 && size_of::<Express>() == 60);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_those_of_the_specifications() {
        assert_eq!(
            (offset_of!(Header, status), offset_of!(Header, class), offset_of!(Header, kind)),
            (6, 9, 14)
        );
        assert_eq!((offset_of!(Header, bars), offset_of!(Header, subsystem_vendor)), (0x10, 0x2c));
        assert_eq!((offset_of!(Header, capabilities), offset_of!(Header, interrupt_pin)), (0x34, 0x3d));
        assert_eq!((offset_of!(Power, control), offset_of!(Msix, pending)), (4, 8));
        assert_eq!((offset_of!(Express, device_control), offset_of!(Express, link_status)), (8, 0x12));
        assert_eq!(
            (offset_of!(Express, device_capabilities2), offset_of!(Express, link_capabilities2)),
            (0x24, 0x2c)
        );
    }
}
