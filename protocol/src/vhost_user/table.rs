//! How a message is described: one row a request, from which the types of a channel, its parsers and its encoders
//! are made.

use std::ops::RangeInclusive;

use super::list::MAX_REGIONS;
use super::payload::Size;
use super::{MessageError, ProtocolFeatures};
use crate::frame::Fds;

/// How many descriptors a message carries.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FdRule {
    /// None.
    None,
    /// Exactly one.
    One,
    /// One or none.
    AtMostOne,
    /// None; one that comes nevertheless is closed, for the sake of front-ends that send it.
    Dropped,
    /// As many as the payload has memory regions.
    PerRegion,
    /// One or none, as the payload says.
    AsFlagged,
}

impl FdRule {
    /// The numbers that some message of this kind may carry.
    pub const fn range(self) -> RangeInclusive<usize> {
        match self {
            Self::None => 0..=0,
            Self::One => 1..=1,
            Self::AtMostOne | Self::Dropped | Self::AsFlagged => 0..=1,
            Self::PerRegion => 0..=MAX_REGIONS,
        }
    }

    /// Holds a message with `fds` against the rule, where its payload asks for `demanded`.
    pub(super) fn check(
        self,
        name: &'static str,
        demanded: usize,
        fds: &mut Fds,
    ) -> Result<(), MessageError> {
        let (min, max) = match self {
            Self::PerRegion | Self::AsFlagged => (demanded, demanded),
            _ => self.range().into_inner(),
        };
        let got = fds.len();
        if got < min {
            return Err(MessageError::MissingFds { name, got, min });
        }
        if got > max {
            return Err(MessageError::SurplusFds { name, got, max });
        }
        if self == Self::Dropped {
            fds.clear();
        }
        Ok(())
    }
}

/// When a request is answered, and with what.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ReplyRule {
    /// With a `u64` (0: it worked), when the request asks for it and `REPLY_ACK` is negotiated.
    Ack,
    /// With a `u64` (0: it worked), always.
    AckAlways,
    /// With a `u64`: always under `LOG_SHMFD`, otherwise as [`ReplyRule::Ack`].
    AckWithLogShmfd,
    /// With a payload of its own, always; asking for a reply changes nothing.
    Own,
    /// As [`ReplyRule::Ack`], but with a payload of its own once postcopy migration listens.
    Postcopy,
}

/// What is known of a request.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number on the wire.
    pub id: u32,
    /// Its name, without the prefix that all share.
    pub name: &'static str,
    /// Bytes of its payload.
    pub size: Size,
    /// Its descriptors.
    pub fds: FdRule,
    /// When and how it is answered.
    pub reply: ReplyRule,
    /// Bytes of the reply's payload; those of a `u64` where the reply is an acknowledgement.
    pub reply_size: Size,
    /// The reply's descriptors.
    pub reply_fds: FdRule,
    /// The protocol features that make it legal, all of them.
    pub needs: ProtocolFeatures,
}

impl Row {
    /// Whether a reply is due to this request, whose header says `need_reply`, under the `negotiated` features.
    /// (In postcopy mode a session knows more.)
    pub fn reply_due(&self, need_reply: bool, negotiated: ProtocolFeatures) -> bool {
        let asked = need_reply && negotiated.contains(ProtocolFeatures::REPLY_ACK);
        match self.reply {
            ReplyRule::Ack | ReplyRule::Postcopy => asked,
            ReplyRule::AckAlways | ReplyRule::Own => true,
            ReplyRule::AckWithLogShmfd => asked || negotiated.contains(ProtocolFeatures::LOG_SHMFD),
        }
    }

    /// Whether a reply with `len` bytes of payload is an acknowledgement.
    pub(super) fn is_ack(&self, len: usize) -> bool {
        match self.reply {
            ReplyRule::Own => false,
            ReplyRule::Postcopy => ACK.admits(len),
            _ => true,
        }
    }

    pub(super) fn check_size(&self, size: Size, len: usize) -> Result<(), MessageError> {
        if size.admits(len) {
            return Ok(());
        }
        Err(MessageError::Size { name: self.name, size: len, min: size.min, max: size.max })
    }
}

/// The payload of an acknowledgement.
pub(super) const ACK: Size = Size::exactly(8);

/// The size of an optional payload: that of the one given, or nothing.
pub(super) const fn size_or(given: &[Size], otherwise: Size) -> Size {
    match given {
        [size, ..] => *size,
        [] => otherwise,
    }
}

/// The descriptors of an optional reply: those of the one given, or none.
pub(super) const fn fds_or_none(given: &[FdRule]) -> FdRule {
    match given {
        [rule, ..] => *rule,
        [] => FdRule::None,
    }
}

/// Makes the types of a channel from its table. A row reads
///
/// ```text
/// /// What the request is for.
/// Variant(field: Payload) = id "NAME", fds FdRule => ReplyRule(field: ReplyPayload, fds FdRule), needs FEATURE;
/// ```
///
/// where payloads, the parentheses behind the reply rule, and the `needs` part may be missing.
macro_rules! channel {
    (
        $(#[$request_doc:meta])* request $Request:ident;
        $(#[$message_doc:meta])* message $Message:ident;
        $(#[$reply_doc:meta])* reply $Reply:ident;
        $(
            $(#[$doc:meta])*
            $name:ident $(($field:ident: $payload:ty))? = $id:literal $wire:literal, fds $fds:ident
                => $rule:ident $(($reply_field:ident: $reply_payload:ty, fds $reply_fds:ident))?
                $(, needs $($needs:ident)|+)?;
        )*
    ) => {
        $(#[$request_doc])*
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $Request {
            $($(#[$doc])* $name = $id,)*
        }

        $(#[$message_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $Message {
            $($(#[$doc])* $name $(($payload))?,)*
        }

        $(#[$reply_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $Reply {
            /// Success or failure of a request that has no reply of its own.
            Ack {
                /// Number of the request, known or not.
                request: u32,
                /// 0: it worked.
                value: u64,
            },
            $($(
                #[doc = concat!("The reply to [`", stringify!($Request), "::", stringify!($name), "`].")]
                $name($reply_payload),
            )?)*
        }

        impl $Request {
            /// Every request, by ascending number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The request with this number.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its number on the wire.
            pub fn id(self) -> u32 {
                self as u32
            }

            /// Its name, without the prefix that all share.
            pub fn name(self) -> &'static str {
                self.row().name
            }

            /// What is known of it.
            pub fn row(self) -> &'static Row {
                match self {
                    $(Self::$name => const { &Row {
                        id: $id,
                        name: $wire,
                        size: size_or(&[$(<$payload as Payload>::SIZE)?], Size::EMPTY),
                        fds: FdRule::$fds,
                        reply: ReplyRule::$rule,
                        reply_size: size_or(&[$(<$reply_payload as Payload>::SIZE)?], ACK),
                        reply_fds: fds_or_none(&[$(FdRule::$reply_fds)?]),
                        needs: ProtocolFeatures::empty()$($(.union(ProtocolFeatures::$needs))+)?,
                    } },)*
                }
            }
        }

        impl $Message {
            /// Which request this is.
            pub fn request(&self) -> $Request {
                match self {
                    $(Self::$name $((channel!(@ignore $payload)))? => $Request::$name,)*
                }
            }

            /// The bytes of the request, header included. Its descriptors travel beside it.
            pub fn to_bytes(&self, need_reply: bool) -> Vec<u8> {
                let mut body = Vec::new();
                match self {
                    $(Self::$name $(($field))? => { $($field.encode(&mut body);)? })*
                }
                with_header(Header::request(self.request().id(), body.len() as u32, need_reply), &body)
            }

            /// How many descriptors the payload asks for, where the payload decides.
            fn demanded_fds(&self) -> usize {
                match self {
                    $(Self::$name $(($field))? => 0 $(.max($field.fds()))?,)*
                }
            }

            fn decode_body(request: $Request, body: &[u8]) -> Result<Self, &'static str> {
                match request {
                    $($Request::$name => Ok(Self::$name $((<$payload>::decode(body)?))?),)*
                }
            }
        }

        impl Incoming for $Message {
            type Header = Header;
            type Error = MessageError;
            const MAX_FDS: usize = $crate::vhost_user::MAX_REGIONS;

            fn body_len(header: &Header) -> Result<usize, MessageError> {
                header.body_len(false)
            }

            fn decode(header: &Header, body: &[u8], fds: &mut Fds) -> Result<Self, MessageError> {
                let id = header.request;
                let request = $Request::from_id(id).ok_or(MessageError::UnknownRequest { request: id })?;
                let row = request.row();
                row.check_size(row.size, body.len())?;
                let message = Self::decode_body(request, body)
                    .map_err(|problem| MessageError::Body { name: row.name, problem })?;
                row.fds.check(row.name, message.demanded_fds(), fds)?;
                Ok(message)
            }
        }

        impl $Reply {
            /// The acknowledgement of the request with `header`, known or not; 0 says that it worked.
            pub fn ack(header: &Header, value: u64) -> Self {
                Self::Ack { request: header.request, value }
            }

            /// Number of the request that this answers.
            pub fn request_id(&self) -> u32 {
                match self {
                    Self::Ack { request, .. } => *request,
                    $($(Self::$name(channel!(@ignore $reply_payload)) => $id,)?)*
                }
            }

            /// The bytes of the reply, header included. Its descriptors travel beside it.
            pub fn to_bytes(&self) -> Vec<u8> {
                let mut body = Vec::new();
                match self {
                    Self::Ack { value, .. } => value.encode(&mut body),
                    $($(Self::$name($reply_field) => $reply_field.encode(&mut body),)?)*
                }
                with_header(Header::reply(self.request_id(), body.len() as u32), &body)
            }

            /// How many descriptors the payload asks for, where the payload decides.
            fn demanded_fds(&self) -> usize {
                match self {
                    Self::Ack { .. } => 0,
                    $($(Self::$name($reply_field) => $reply_field.fds(),)?)*
                }
            }

            fn decode_body(request: $Request, body: &[u8]) -> Result<Self, &'static str> {
                match request {
                    $($($Request::$name => <$reply_payload>::decode(body).map(Self::$name),)?)*
                    _ => Self::decode_ack(request, body),
                }
            }

            fn decode_ack(request: $Request, body: &[u8]) -> Result<Self, &'static str> {
                u64::decode(body).map(|value| Self::Ack { request: request.id(), value })
            }
        }

        impl Incoming for $Reply {
            type Header = Header;
            type Error = MessageError;
            const MAX_FDS: usize = $crate::vhost_user::MAX_REGIONS;

            fn body_len(header: &Header) -> Result<usize, MessageError> {
                header.body_len(true)
            }

            fn decode(header: &Header, body: &[u8], fds: &mut Fds) -> Result<Self, MessageError> {
                let id = header.request;
                let request = $Request::from_id(id).ok_or(MessageError::UnknownRequest { request: id })?;
                let row = request.row();
                let is_ack = row.is_ack(body.len());
                let (size, rule) =
                    if is_ack { (ACK, FdRule::None) } else { (row.reply_size, row.reply_fds) };
                row.check_size(size, body.len())?;
                let decode = if is_ack { Self::decode_ack } else { Self::decode_body };
                let reply = decode(request, body)
                    .map_err(|problem| MessageError::Body { name: row.name, problem })?;
                rule.check(row.name, reply.demanded_fds(), fds)?;
                Ok(reply)
            }
        }
    };
    (@ignore $payload:ty) => { _ };
}

pub(super) use channel;
