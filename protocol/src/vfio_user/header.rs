//! The sixteen bytes before every message.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MessageError;
use super::access::MAX_DATA;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// The longest body any message has, in bytes: [`MAX_DATA`] and what says where they belong. A header that announces
/// more is taken for a broken stream.
pub const MAX_BODY: usize = MAX_DATA + 16;

/// A message's header: which command, which way, how long.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The sender's number for a command, also in its reply. Numbers may repeat, even at the same time.
    pub id: u16,
    /// The command, also in its reply.
    pub command: u16,
    /// Bytes of the message, these sixteen included.
    pub size: u32,
    /// Type (bits 0-3), no_reply (bit 4), error (bit 5).
    pub flags: u32,
    /// In a reply with the error bit: an errno, or 0 if the sender has none to tell.
    pub error: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = size_of::<Self>();

    /// The header of a command with `body` bytes.
    pub fn command(id: u16, command: u16, body: usize, no_reply: bool) -> Self {
        let flags = TYPE_COMMAND | if no_reply { NO_REPLY } else { 0 };
        Self { id, command, size: whole(body), flags, error: 0 }
    }

    /// The header of the reply to the command with this header, with `body` bytes.
    pub fn reply(&self, body: usize) -> Self {
        Self { id: self.id, command: self.command, size: whole(body), flags: TYPE_REPLY, error: 0 }
    }

    /// The reply that says that the command with this header failed. It is the whole message.
    pub fn failure(&self, errno: u32) -> Self {
        Self { flags: TYPE_REPLY | ERROR, error: errno, ..self.reply(0) }
    }

    /// Whether this heads a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_REPLY
    }

    /// Whether this heads a command whose sender waits for a reply. Nothing else is to be answered, well-formed or not.
    pub fn wants_reply(&self) -> bool {
        self.flags & (TYPE_MASK | NO_REPLY) == TYPE_COMMAND
    }

    /// Whether this is a reply that says that the command failed.
    pub fn is_failure(&self) -> bool {
        self.is_reply() && self.flags & ERROR != 0
    }

    /// Whether this heads a reply, if it heads either that or a command.
    pub(super) fn direction(&self) -> Result<bool, MessageError> {
        match self.flags & TYPE_MASK {
            TYPE_COMMAND => Ok(false),
            TYPE_REPLY => Ok(true),
            _ => Err(MessageError::Type { command: self.command, flags: self.flags }),
        }
    }

    /// How many bytes follow, if the stream can be trusted: a believable length.
    pub(super) fn body_len(&self) -> Result<usize, MessageError> {
        let Self { command, size, .. } = *self;
        let body = (size as usize).checked_sub(Self::LEN).ok_or(MessageError::TooShort {
            command,
            size,
            min: Self::LEN,
        })?;
        if body > MAX_BODY {
            return Err(MessageError::TooLong { command, size, max: MAX_BODY.saturating_add(Self::LEN) });
        }
        Ok(body)
    }
}

/// The size of a message with so many bytes of body. Bodies are made by this module, and none exceeds [`MAX_BODY`].
fn whole(body: usize) -> u32 {
    body.saturating_add(Header::LEN) as u32
}
