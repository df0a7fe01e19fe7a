//! What can be wrong with a message.

use rustix::io::Errno;

use super::access::MAX_DATA;
use super::table::FdRule;
use crate::frame::FdError;

/// What can be wrong with a message. [`MessageError::ends_stream`] tells the errors after which nothing that follows
/// can be believed from those that concern one message only.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The header announces less than itself.
    #[error(
        "message {command} announces {size} bytes, fewer than its header has ({min}); close the connection"
    )]
    TooShort {
        /// The header's command.
        command: u16,
        /// The announced length, in bytes.
        size: u32,
        /// The shortest there is, in bytes.
        min: usize,
    },
    /// The header announces more than any message has.
    #[error("message {command} announces {size} bytes, more than any has ({max}); close the connection")]
    TooLong {
        /// The header's command.
        command: u16,
        /// The announced length, in bytes.
        size: u32,
        /// The longest there is, in bytes.
        max: usize,
    },
    /// The header is neither a command's nor a reply's.
    #[error("message {command} has flags {flags:#x}, neither those of a command nor of a reply")]
    Type {
        /// The header's command.
        command: u16,
        /// The header's flags.
        flags: u32,
    },
    /// No command has this number.
    #[error("command {command} is unknown")]
    UnknownCommand {
        /// The header's command.
        command: u16,
    },
    /// The command is one of the other end.
    #[error("{name} came from the wrong end ({})", if *.reply { "as a reply" } else { "as a command" })]
    WrongWay {
        /// Name of the command.
        name: &'static str,
        /// Whether it was a reply.
        reply: bool,
    },
    /// The payload is too short or too long for its message.
    #[error("{name} has {size} bytes of payload instead of {min} to {max}")]
    Size {
        /// Name of the command.
        name: &'static str,
        /// Bytes that came.
        size: usize,
        /// Fewest bytes it has.
        min: usize,
        /// Most bytes it has.
        max: usize,
    },
    /// The payload contradicts itself.
    #[error("the payload of {name} {problem}")]
    Body {
        /// Name of the command.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The payload's own size has no room for its fields.
    #[error("{name} has an argsz of {argsz}, less than its {min} bytes")]
    Argsz {
        /// Name of the command.
        name: &'static str,
        /// The size it tells, in bytes.
        argsz: u32,
        /// The bytes of its fields.
        min: usize,
    },
    /// It asks for more data than any message carries.
    #[error("{name} is about {count} bytes, and one message carries at most {MAX_DATA}; send several")]
    TooMuchData {
        /// Name of the command.
        name: &'static str,
        /// Bytes of data.
        count: u64,
    },
    /// It asks for what is known and not done here.
    #[error("{name} asks for {what}, which is not supported")]
    Unsupported {
        /// Name of the command.
        name: &'static str,
        /// What it asks for.
        what: &'static str,
    },
    /// The text of `VERSION` is not JSON.
    #[error("the capabilities in VERSION are not JSON (at byte {column})")]
    NotJson {
        /// Where the text goes wrong, in bytes from 1, within its line.
        column: usize,
    },
    /// A capability is not what it should be.
    #[error("the capability {key} in VERSION {problem}")]
    Capability {
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The message has too few or too many descriptors; they are closed.
    #[error("{name} came with {got} file descriptors, which does not fit {rule:?}")]
    FdCount {
        /// Name of the command.
        name: &'static str,
        /// How many came.
        got: usize,
        /// How many it takes.
        rule: FdRule,
    },
    /// The descriptors did not come as they should; they are closed.
    #[error(transparent)]
    Fds(#[from] FdError),
}

impl MessageError {
    /// Whether the stream has lost its meaning and the connection is to be closed. Otherwise the message has been
    /// taken from the stream whole, its descriptors are closed, and the next message can be read; a command can be
    /// answered with [`MessageError::errno`].
    pub fn ends_stream(&self) -> bool {
        matches!(self, Self::TooShort { .. } | Self::TooLong { .. })
    }

    /// The errno with which a command that is wrong in this way is answered.
    pub fn errno(&self) -> u32 {
        let errno = match self {
            Self::UnknownCommand { .. } | Self::Unsupported { .. } => Errno::NOTSUP,
            Self::TooMuchData { .. } => Errno::TOOBIG,
            Self::TooShort { .. }
            | Self::TooLong { .. }
            | Self::Type { .. }
            | Self::WrongWay { .. }
            | Self::Size { .. }
            | Self::Body { .. }
            | Self::Argsz { .. }
            | Self::NotJson { .. }
            | Self::Capability { .. }
            | Self::FdCount { .. }
            | Self::Fds(_) => Errno::INVAL,
        };
        errno.raw_os_error().unsigned_abs()
    }
}
