//! The PCI configuration space: bytes, and which of their bits can be written.
//!
//! BARs can be written as far as their sizes let them be, so that hosts find these; where they point to is the client's
//! matter. What has an effect when it is written is told by a [`Change`].

use std::mem::offset_of;

use mdev_protocol::pci::{BAR_64, CONFIG_LEN, Express, Header, Msix, Power, capability, command, status};
use zerocopy::IntoBytes;

use super::{BAR0_LEN, BAR4_LEN, PENDING_OFFSET};

const POWER: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
/// The BAR with the table of MSI-X vectors.
const MSIX_BAR: u32 = 4;

/// PCI vendor of the function.
pub(super) const VENDOR: u16 = 0x1b36;
/// PCI vendor of the subsystem.
pub(super) const SUBSYSTEM_VENDOR: u16 = 0x1af4;

const HEADER: Header = Header {
    vendor: VENDOR,
    device: 0x0010,
    command: 0,
    status: status::CAPABILITIES,
    revision: 2,
    // Mass storage, non-volatile memory, NVM Express I/O controller.
    class: [0x02, 0x08, 0x01],
    cache_line: 0,
    latency: 0,
    kind: 0,
    self_test: 0,
    bars: [BAR_64, 0, 0, 0, BAR_64, 0],
    cardbus: 0,
    subsystem_vendor: SUBSYSTEM_VENDOR,
    subsystem: 0x1100,
    rom: 0,
    capabilities: POWER as u8,
    reserved: [0; 7],
    interrupt_line: 0,
    interrupt_pin: 1,
    grant_and_latency: [0; 2],
};

/// Payloads of 256 bytes at most, as [`Express::device_capabilities`] has them.
const PAYLOAD_256: u32 = 1;
/// Extended tags.
const EXTENDED_TAGS: u32 = 1 << 5;
/// 8 GT/s and four lanes, as both link registers have them.
const LINK: u16 = 3 | 4 << 4;
/// Completion timeouts can be disabled, in [`Express::device_capabilities2`].
const TIMEOUT_DISABLE: u32 = 1 << 4;
/// The link speeds up to 8 GT/s, in [`Express::link_capabilities2`].
const SPEEDS: u32 = 0b111 << 1;

const EXPRESS_CAPABILITY: Express = Express {
    id: capability::EXPRESS,
    next: 0,
    capabilities: 2,
    device_capabilities: PAYLOAD_256 | EXTENDED_TAGS | Express::ROLE_BASED_ERRORS | Express::FUNCTION_RESET,
    // Relaxed ordering, no snoop, reads of 512 bytes.
    device_control: 0x2810,
    device_status: 0,
    link_capabilities: LINK as u32,
    link_control: 0,
    link_status: LINK,
    slot_and_root: [0; 4],
    device_capabilities2: TIMEOUT_DISABLE,
    device_control2: 0,
    device_status2: 0,
    link_capabilities2: SPEEDS,
    link_control2: 3,
    link_status2: 0,
    slot2: [0; 2],
};

/// What follows from a write.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The function is to be reset.
    pub(super) reset: bool,
    /// MSI-X has been enabled or disabled.
    pub(super) by_message: Option<bool>,
    /// All messages have been masked or unmasked.
    pub(super) messages_masked: Option<bool>,
    /// The pin has been disabled or enabled.
    pub(super) pin_disabled: Option<bool>,
    /// The function may reach memory, or must not any more.
    pub(super) initiator: Option<bool>,
}

/// The bits that have an effect when they change. See [`Change`].
struct Switches {
    by_message: bool,
    messages_masked: bool,
    pin_disabled: bool,
    initiator: bool,
}

/// See the [module](self).
pub(super) struct ConfigSpace {
    vectors: u16,
    bytes: Box<[u8; CONFIG_LEN]>,
    writable: Box<[u8; CONFIG_LEN]>,
}

fn put(space: &mut [u8], at: usize, bytes: &[u8]) {
    space.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
}

impl ConfigSpace {
    /// A function with so many MSI-X vectors.
    pub(super) fn new(vectors: u16) -> Self {
        let mut space =
            Self { vectors, bytes: Box::new([0; CONFIG_LEN]), writable: Box::new([0; CONFIG_LEN]) };
        space.reset();
        let mask = Header {
            command: command::MEMORY
                | command::BUS_INITIATOR
                | command::PARITY
                | command::SYSTEM_ERROR
                | command::INTERRUPT_DISABLE,
            cache_line: 0xff,
            bars: [
                (BAR0_LEN as u32).wrapping_neg(),
                u32::MAX,
                0,
                0,
                (BAR4_LEN as u32).wrapping_neg(),
                u32::MAX,
            ],
            interrupt_line: 0xff,
            ..Header::default()
        };
        let writable = &mut space.writable[..];
        put(writable, 0, mask.as_bytes());
        put(writable, POWER, Power { control: Power::STATE, ..Power::default() }.as_bytes());
        put(writable, MSIX, Msix { control: Msix::MASKED | Msix::ENABLED, ..Msix::default() }.as_bytes());
        let express = Express {
            device_control: !Express::INITIATE_RESET,
            link_control: 0x3,
            device_control2: 0x1f,
            ..Express::default()
        };
        put(writable, EXPRESS, express.as_bytes());
        space
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        let power = Power {
            id: capability::POWER,
            next: MSIX as u8,
            capabilities: 3,
            control: Power::NO_SOFT_RESET,
            reserved: 0,
        };
        let msix = Msix {
            id: capability::MSIX,
            next: EXPRESS as u8,
            control: self.vectors.saturating_sub(1) & 0x7ff,
            table: MSIX_BAR,
            pending: PENDING_OFFSET as u32 | MSIX_BAR,
        };
        self.bytes.fill(0);
        let bytes = &mut self.bytes[..];
        put(bytes, 0, HEADER.as_bytes());
        put(bytes, POWER, power.as_bytes());
        put(bytes, MSIX, msix.as_bytes());
        put(bytes, EXPRESS, EXPRESS_CAPABILITY.as_bytes());
    }

    /// Reads bytes; zeros beyond the end.
    pub(super) fn read(&self, offset: u64, out: &mut [u8], asserted: bool) {
        out.fill(0);
        let Ok(first) = usize::try_from(offset) else { return };
        let places = out.iter_mut().zip(self.bytes.iter().enumerate().skip(first));
        for (place, (at, byte)) in places {
            let interrupt = asserted && at == offset_of!(Header, status);
            *place = byte | if interrupt { status::INTERRUPT as u8 } else { 0 };
        }
    }

    /// Writes the bits that can be written.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Change {
        const CONTROL_UPPER: usize = EXPRESS + offset_of!(Express, device_control) + 1;
        let Ok(first) = usize::try_from(offset) else { return Change::default() };
        let before = self.switches();
        let mut reset = false;
        let places = self.bytes.iter_mut().zip(self.writable.iter()).enumerate().skip(first);
        for ((at, (place, mask)), byte) in places.zip(data) {
            *place = *place & !mask | byte & mask;
            reset |= at == CONTROL_UPPER && byte & (Express::INITIATE_RESET >> 8) as u8 != 0;
        }
        let after = self.switches();
        let turned = |which: fn(&Switches) -> bool| {
            let now = which(&after);
            (which(&before) != now).then_some(now)
        };
        Change {
            reset,
            by_message: turned(|one| one.by_message),
            messages_masked: turned(|one| one.messages_masked),
            pin_disabled: turned(|one| one.pin_disabled),
            initiator: turned(|one| one.initiator),
        }
    }

    fn switches(&self) -> Switches {
        const CONTROL: usize = MSIX + offset_of!(Msix, control);
        let word = |at: usize| {
            let mut bytes = self.bytes.iter().skip(at).copied();
            u16::from_le_bytes([bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)])
        };
        let command = word(offset_of!(Header, command));
        let control = word(CONTROL);
        Switches {
            by_message: control & Msix::ENABLED != 0,
            messages_masked: control & Msix::MASKED != 0,
            pin_disabled: command & command::INTERRUPT_DISABLE != 0,
            initiator: command & command::BUS_INITIATOR != 0,
        }
    }
}
