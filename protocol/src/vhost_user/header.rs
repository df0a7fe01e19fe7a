//! The twelve bytes before every message.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MessageError;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The longest body any message has, in bytes (`GET_SHMEM_CONFIG`'s reply). A header that announces more is taken
/// for a broken stream.
pub const MAX_BODY: usize = 2056;

/// A message's header: which message, which way, how long.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The request's id, also in its reply.
    pub request: u32,
    /// Version (bits 0-1), reply (bit 2), need_reply (bit 3).
    pub flags: u32,
    /// Bytes that follow.
    pub size: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = size_of::<Self>();

    /// The header of a request.
    pub fn request(request: u32, size: u32, need_reply: bool) -> Self {
        Self { request, flags: VERSION | if need_reply { NEED_REPLY } else { 0 }, size }
    }

    /// The header of a reply.
    pub fn reply(request: u32, size: u32) -> Self {
        Self { request, flags: VERSION | REPLY, size }
    }

    /// Whether this heads a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// Whether the sender of this request wants an acknowledgement even where none is due otherwise. Whether it
    /// may ask (`REPLY_ACK`) is the session's question.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// How many bytes follow, if the stream can be trusted: known version, the expected way, a believable length.
    pub(super) fn body_len(&self, expect_reply: bool) -> Result<usize, MessageError> {
        let Self { request, flags, size } = *self;
        if flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version { request, flags });
        }
        match (self.is_reply(), expect_reply) {
            (true, false) => return Err(MessageError::ReplyAsRequest { request }),
            (false, true) => return Err(MessageError::RequestAsReply { request }),
            _ => {}
        }
        if size as usize > MAX_BODY {
            return Err(MessageError::TooLong { request, size, max: MAX_BODY });
        }
        Ok(size as usize)
    }
}
