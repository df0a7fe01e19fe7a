//! Asynchronous events (base specification, section 5.2): what dword 0 of a completion tells.

/// What happened.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// A constant of [`kind`].
    pub kind: u8,
    /// What it is about, depending on the type.
    pub information: u8,
    /// The log page that tells more, and that ends the silence about this type of events when it is read.
    pub log_page: u8,
}

/// Types of events.
pub mod kind {
    /// An error.
    pub const ERROR: u8 = 0;
    /// The health of the controller.
    pub const HEALTH: u8 = 1;
    /// Something to take notice of.
    pub const NOTICE: u8 = 2;
}

impl Event {
    /// A doorbell was written that belongs to no queue.
    pub const INVALID_DOORBELL_REGISTER: Event = Event::new(kind::ERROR, 0, super::log::ERRORS);
    /// A doorbell was written with a value that its queue cannot have.
    pub const INVALID_DOORBELL_VALUE: Event = Event::new(kind::ERROR, 1, super::log::ERRORS);
    /// A temperature crossed a threshold.
    pub const TEMPERATURE: Event = Event::new(kind::HEALTH, 1, super::log::HEALTH);
    /// A namespace came, went or changed.
    pub const NAMESPACES_CHANGED: Event = Event::new(kind::NOTICE, 0, super::log::CHANGED_NAMESPACES);

    const fn new(kind: u8, information: u8, log_page: u8) -> Self {
        Self { kind, information, log_page }
    }

    /// As dword 0 of a completion.
    pub const fn result(self) -> u32 {
        (self.kind & 7) as u32 | (self.information as u32) << 8 | (self.log_page as u32) << 16
    }
}
