//! What a device answers.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{MESSAGE_LEN, VqState};

/// `struct vduse_dev_response`. Its union has one member, `struct vduse_vq_state`, and zeroes follow.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Wire {
    id: u32,
    result: u32,
    reserved: [u32; 4],
    index: u32,
    state: [u16; 4],
    rest: [u32; 29],
}

const _: () = assert!(size_of::<Wire>() == MESSAGE_LEN);

const OK: u32 = 0;
const FAILED: u32 = 1;

/// The answer to a request.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// The request's number.
    pub id: u32,
    /// What is answered.
    pub answer: Answer,
}

/// What a device answers.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is done. To [`RequestKind::GetVqState`](super::RequestKind::GetVqState) answer with the state.
    Done,
    /// It was not done.
    Failed,
    /// How far the queue is.
    VqState {
        /// Which queue was asked for. The kernel does not look at it.
        index: u32,
        /// How far it is, in the layout that was negotiated.
        state: VqState,
    },
}

/// What the asker expects, which the bytes of a response do not say.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// That it is done.
    Done,
    /// How far a split ring is.
    Split,
    /// How far a packed ring is.
    Packed,
}

/// Why bytes are no response. The kernel refuses them with `EINVAL`, but for an unknown result, which it takes for a failure.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// It is too short or too long.
    #[error("a response of VDUSE has {MESSAGE_LEN} bytes, and this one {len}")]
    Length {
        /// Bytes that came.
        len: usize,
    },
    /// Fields that nobody knows are not zero.
    #[error("response {id} of VDUSE has something in its reserved fields")]
    Reserved {
        /// The request's number.
        id: u32,
    },
    /// It neither succeeded nor failed.
    #[error("response {id} of VDUSE has the result {result}, neither success nor failure")]
    Result {
        /// The request's number.
        id: u32,
        /// The result.
        result: u32,
    },
}

impl Response {
    /// The response in the bytes of one write(2), to a request that expects this.
    ///
    /// # Errors
    /// [`ResponseError`]: they are not one.
    pub fn decode(bytes: &[u8], expected: Expected) -> Result<Self, ResponseError> {
        let Ok(Wire { id, result, reserved, index, state, .. }) = Wire::read_from_bytes(bytes) else {
            return Err(ResponseError::Length { len: bytes.len() });
        };
        if reserved != [0; 4] {
            return Err(ResponseError::Reserved { id });
        }
        let answer = match (result, expected) {
            (OK, Expected::Done) => Answer::Done,
            (OK, Expected::Split) => Answer::VqState { index, state: VqState::from_words(state, false) },
            (OK, Expected::Packed) => Answer::VqState { index, state: VqState::from_words(state, true) },
            (FAILED, _) => Answer::Failed,
            _ => return Err(ResponseError::Result { id, result }),
        };
        Ok(Self { id, answer })
    }

    /// The response as it is handed to the kernel by write(2).
    pub fn to_bytes(&self) -> [u8; MESSAGE_LEN] {
        let (result, index, state) = match self.answer {
            Answer::Done => (OK, 0, [0; 4]),
            Answer::Failed => (FAILED, 0, [0; 4]),
            Answer::VqState { index, state } => (OK, index, state.to_words()),
        };
        zerocopy::transmute!(Wire { id: self.id, result, reserved: [0; 4], index, state, rest: [0; 29] })
    }
}
