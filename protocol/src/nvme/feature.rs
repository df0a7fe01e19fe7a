//! Features (base specification, section 5.27): identifiers, and what is selected of one.

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery (NVM command set).
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing.
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration.
pub const INTERRUPT_VECTOR: u8 = 0x09;
/// Write Atomicity Normal (NVM command set).
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENTS: u8 = 0x0b;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Host Identifier.
pub const HOST_ID: u8 = 0x81;

/// Command dword 10 of both commands: the identifier is in bits 0-7.
pub const CDW10_FEATURE: u32 = 0xff;
/// Command dword 10 of set features: the value is to outlive resets.
pub const CDW10_SAVE: u32 = 1 << 31;

/// What get features selects (command dword 10, bits 8-10).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// The value in force.
    Current,
    /// The value after a reset.
    Default,
    /// The value that was saved; the default one if none was.
    Saved,
    /// What can be done with the feature: see [`capability`].
    Capabilities,
}

impl Select {
    /// What a command selects; `None` if that is reserved.
    pub const fn of(cdw10: u32) -> Option<Self> {
        match cdw10 >> 8 & 7 {
            0 => Some(Select::Current),
            1 => Some(Select::Default),
            2 => Some(Select::Saved),
            3 => Some(Select::Capabilities),
            _ => None,
        }
    }
}

/// The bits of the result for [`Select::Capabilities`].
pub mod capability {
    /// It can be saved.
    pub const SAVEABLE: u32 = 1;
    /// Each namespace has its own value.
    pub const NAMESPACE: u32 = 1 << 1;
    /// It can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// [`ASYNC_EVENTS`]: the critical warnings of the health log that are told of, in the bits they have there.
pub const EVENT_WARNINGS: u32 = 0xff;
/// [`ASYNC_EVENTS`]: changes of namespaces are told of. The same bit says so of the controller in the identify structure.
pub const EVENT_NAMESPACES: u32 = 1 << 8;

/// Bytes of [`TIMESTAMP`].
pub const TIMESTAMP_LEN: usize = 8;
/// [`HOST_ID`]: command dword 11 asks for 16 bytes, not 8.
pub const HOST_ID_EXTENDED: u32 = 1;
