//! How messages are described: what a payload is, and the macro that makes the types of one direction, their parsers
//! and their encoders from a table.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Command, MessageError};

/// How many bytes a payload takes, both ends inclusive.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The fewest.
    pub min: usize,
    /// The most.
    pub max: usize,
}

impl Size {
    /// No payload.
    pub const EMPTY: Size = Size::exactly(0);

    /// Exactly `len` bytes.
    pub const fn exactly(len: usize) -> Self {
        Self { min: len, max: len }
    }
}

/// How many descriptors come with a message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FdRule {
    /// So many at least, and so many at most.
    Between(usize, usize),
    /// None, or exactly so many.
    NoneOr(usize),
}

impl FdRule {
    /// No descriptor.
    pub const NONE: Self = Self::Between(0, 0);

    /// Whether a message may come with `got` descriptors.
    pub fn admits(self, got: usize) -> bool {
        match self {
            Self::Between(min, max) => min <= got && got <= max,
            Self::NoneOr(count) => got == 0 || got == count,
        }
    }

    /// The most descriptors it admits.
    pub fn max(self) -> usize {
        match self {
            Self::Between(_, max) | Self::NoneOr(max) => max,
        }
    }
}

/// What is wrong with a payload; [`Problem::of`] says whose it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Body(&'static str),
    Argsz { argsz: u32, min: usize },
    TooMuchData { count: u64 },
    Unsupported(&'static str),
    NotJson { column: usize },
    Capability { key: &'static str, problem: &'static str },
}

impl Problem {
    fn of(self, command: Command) -> MessageError {
        let name = command.name();
        match self {
            Self::Body(problem) => MessageError::Body { name, problem },
            Self::Argsz { argsz, min } => MessageError::Argsz { name, argsz, min },
            Self::TooMuchData { count } => MessageError::TooMuchData { name, count },
            Self::Unsupported(what) => MessageError::Unsupported { name, what },
            Self::NotJson { column } => MessageError::NotJson { column },
            Self::Capability { key, problem } => MessageError::Capability { key, problem },
        }
    }
}

/// A payload's two directions. `decode` is called with a body that `SIZE` admits and says what else is wrong.
pub(super) trait Payload: Sized {
    const SIZE: Size;

    fn decode(body: &[u8]) -> Result<Self, Problem>;

    fn encode(&self, out: &mut Vec<u8>);

    fn fds(&self) -> FdRule {
        FdRule::NONE
    }
}

impl Payload for () {
    const SIZE: Size = Size::EMPTY;

    fn decode(_: &[u8]) -> Result<Self, Problem> {
        Ok(())
    }

    fn encode(&self, _: &mut Vec<u8>) {}
}

/// The fields at the start of a body, and what follows them.
pub(super) fn fields<T: FromBytes + Immutable>(body: &[u8]) -> Result<(T, &[u8]), Problem> {
    T::read_from_prefix(body).map_err(|_| Problem::Body("is too short"))
}

/// Appends fields as they lie in memory.
pub(super) fn put<T: IntoBytes + Immutable + ?Sized>(out: &mut Vec<u8>, fields: &T) {
    out.extend_from_slice(fields.as_bytes());
}

/// Refuses an `argsz` that has no room for the `min` bytes of a structure.
pub(super) fn check_argsz(argsz: u32, min: usize) -> Result<(), Problem> {
    if (argsz as usize) < min { Err(Problem::Argsz { argsz, min }) } else { Ok(()) }
}

/// Decodes the payload of `command` from a body of any length, with so many descriptors.
pub(super) fn take<P: Payload>(command: Command, body: &[u8], fds: usize) -> Result<P, MessageError> {
    let Size { min, max } = P::SIZE;
    if body.len() < min || body.len() > max {
        return Err(MessageError::Size { name: command.name(), size: body.len(), min, max });
    }
    let payload = P::decode(body).map_err(|problem| problem.of(command))?;
    let rule = payload.fds();
    if !rule.admits(fds) {
        return Err(MessageError::FdCount { name: command.name(), got: fds, rule });
    }
    Ok(payload)
}

/// Makes the commands of one direction and their replies from a table. A row reads
///
/// ```text
/// /// What the command is for.
/// Variant(field: Payload) => (field: ReplyPayload);
/// ```
///
/// where either parenthesis may be missing: there is no payload then.
macro_rules! direction {
    (
        $(#[$request_doc:meta])* request $Request:ident;
        $(#[$reply_doc:meta])* reply $Reply:ident;
        $(
            $(#[$doc:meta])*
            $name:ident $(($field:ident: $payload:ty))? => $(($reply_field:ident: $reply_payload:ty))?;
        )*
    ) => {
        $(#[$request_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $Request {
            $($(#[$doc])* $name $(($payload))?,)*
        }

        $(#[$reply_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $Reply {
            /// The command failed, with this errno; 0 if the sender had none to tell.
            Failed(u32),
            $(
                #[doc = concat!("[`", stringify!($Request), "::", stringify!($name), "`] is done.")]
                $name $(($reply_payload))?,
            )*
        }

        impl $Request {
            /// The commands of this direction, by ascending number.
            pub const COMMANDS: &'static [Command] = &[$(Command::$name),*];

            /// Which command this is.
            pub fn command(&self) -> Command {
                match self {
                    $(Self::$name $((direction!(@ignore $payload)))? => Command::$name,)*
                }
            }

            /// The bytes of the message, header included, under the sender's number `id`. Its descriptors travel
            /// beside it.
            pub fn to_bytes(&self, id: u16, no_reply: bool) -> Vec<u8> {
                let command = self.command().id();
                with_header(|body| Header::command(id, command, body, no_reply), |out| match self {
                    $(Self::$name $(($field))? => { $($field.encode(out);)? })*
                })
            }

            /// How many descriptors travel beside it.
            pub fn fds(&self) -> FdRule {
                match self {
                    $(Self::$name $(($field))? => direction!(@fds $($field)?),)*
                }
            }

            pub(super) fn decode(command: Command, body: &[u8], fds: usize) -> Result<Self, MessageError> {
                match command {
                    $(Command::$name => direction!(@take Self::$name, command, body, fds $(, $payload)?),)*
                    _ => Err(MessageError::WrongWay { name: command.name(), reply: false }),
                }
            }
        }

        impl $Reply {
            /// Which command this answers; a failure may answer any.
            pub fn command(&self) -> Option<Command> {
                match self {
                    Self::Failed(_) => None,
                    $(Self::$name $((direction!(@ignore $reply_payload)))? => Some(Command::$name),)*
                }
            }

            /// The bytes of the reply to the command with the header `asked`, header included. Its descriptors
            /// travel beside it.
            pub fn to_bytes(&self, asked: &Header) -> Vec<u8> {
                if let Self::Failed(errno) = self {
                    return asked.failure(*errno).as_bytes().to_vec();
                }
                with_header(|body| asked.reply(body), |out| match self {
                    Self::Failed(_) => {}
                    $(Self::$name $(($reply_field))? => { $($reply_field.encode(out);)? })*
                })
            }

            /// How many descriptors travel beside it.
            pub fn fds(&self) -> FdRule {
                match self {
                    Self::Failed(_) => FdRule::NONE,
                    $(Self::$name $(($reply_field))? => direction!(@fds $($reply_field)?),)*
                }
            }

            pub(super) fn decode(
                header: &Header,
                command: Command,
                body: &[u8],
                fds: usize,
            ) -> Result<Self, MessageError> {
                if !$Request::COMMANDS.contains(&command) {
                    return Err(MessageError::WrongWay { name: command.name(), reply: true });
                }
                if header.is_failure() {
                    return take::<()>(command, body, fds).map(|()| Self::Failed(header.error));
                }
                match command {
                    $(Command::$name => direction!(@take Self::$name, command, body, fds $(, $reply_payload)?),)*
                    _ => Err(MessageError::WrongWay { name: command.name(), reply: true }),
                }
            }
        }
    };
    (@ignore $payload:ty) => { _ };
    (@fds) => { FdRule::NONE };
    (@fds $field:ident) => { $field.fds() };
    (@take $variant:expr, $command:ident, $body:ident, $fds:ident) => {
        take::<()>($command, $body, $fds).map(|()| $variant)
    };
    (@take $variant:expr, $command:ident, $body:ident, $fds:ident, $payload:ty) => {
        take::<$payload>($command, $body, $fds).map($variant)
    };
}

pub(super) use direction;
