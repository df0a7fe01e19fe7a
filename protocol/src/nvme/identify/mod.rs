//! What the identify command returns (base specification, section 5.17; NVM command set specification, section 4.1.5): one
//! page each.

mod controller;
mod namespace;

pub use controller::{IdentifyController, PowerState, attribute, optional_admin, optional_nvm};
pub use namespace::{IdentifyNamespace, IndependentNamespace, LbaFormat, NvmController};

/// Bytes of every structure.
pub const IDENTIFY_LEN: usize = 4096;
/// Identifiers in a list of namespaces.
pub const NAMESPACE_LIST_LEN: usize = 1024;
/// Identifiers in a list of controllers, behind their count.
pub const CONTROLLER_LIST_LEN: usize = 2047;
/// The NVM command set, where a command set is named.
pub const CSI_NVM: u8 = 0;

/// What is asked for: command dword 10, bits 0-7.
pub mod cns {
    /// A namespace, of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// The controller.
    pub const CONTROLLER: u8 = 0x01;
    /// The active namespaces.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// The names of a namespace.
    pub const DESCRIPTORS: u8 = 0x03;
    /// What a namespace has of a command set.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// What the controller has of a command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// The active namespaces of a command set.
    pub const COMMAND_SET_ACTIVE: u8 = 0x07;
    /// A namespace, of whatever command set.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// The allocated namespaces.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// A namespace that need not be active.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// The controllers that a namespace is attached to.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// The controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// What a primary controller can give to others.
    pub const PRIMARY_CONTROLLER: u8 = 0x14;
    /// The secondary controllers.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// The allocated namespaces of a command set.
    pub const COMMAND_SET_ALLOCATED: u8 = 0x1a;
    /// What an allocated namespace has of a command set.
    pub const COMMAND_SET_ALLOCATED_NAMESPACE: u8 = 0x1b;
    /// The command sets that go together.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Types of namespace identification descriptors.
pub mod descriptor {
    /// IEEE extended unique identifier, 8 bytes.
    pub const EUI64: u8 = 1;
    /// Globally unique identifier, 16 bytes.
    pub const NGUID: u8 = 2;
    /// UUID, 16 bytes.
    pub const UUID: u8 = 3;
    /// Command set identifier, 1 byte.
    pub const CSI: u8 = 4;

    /// The four bytes before the name.
    pub const fn head(kind: u8, len: u8) -> [u8; 4] {
        [kind, len, 0, 0]
    }
}
