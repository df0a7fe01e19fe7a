//! What the kernel asks of a device.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Answer, MESSAGE_LEN, Response};

/// `struct vduse_dev_request`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Wire {
    kind: u32,
    id: u32,
    reserved: [u32; 4],
    body: [u8; BODY],
}

/// Bytes of the union in a request. Its members are shorter, and zeroes follow.
const BODY: usize = 128;

const _: () = assert!(size_of::<Wire>() == MESSAGE_LEN);

const GET_VQ_STATE: u32 = 0;
const SET_STATUS: u32 = 1;
const UPDATE_IOTLB: u32 = 2;
const SET_VQ_GROUP_ASID: u32 = 3;
const SET_VQ_READY: u32 = 4;
const SUSPEND: u32 = 5;

/// A request of the kernel, and the number under which it is answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Its number. One that was not answered comes again, under the same number, when the device is opened anew.
    pub id: u32,
    /// What is asked.
    pub kind: RequestKind,
}

/// What the kernel asks.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// How far is this queue? Answered with [`Answer::VqState`].
    GetVqState {
        /// The queue.
        index: u32,
    },
    /// The driver sets the device status, 0 for a reset ([`virtio::status`](crate::virtio::status)).
    SetStatus(u8),
    /// What these addresses mean has changed: forget it and ask anew ([`Device::iotlb_file`](super::Device::iotlb_file)).
    UpdateIotlb {
        /// The first address.
        first: u64,
        /// The last address, not below the first.
        last: u64,
        /// The address space; 0 in version 0.
        asid: u32,
    },
    /// A group of queues gets another address space (version 1).
    SetVqGroupAsid {
        /// The group.
        group: u32,
        /// Its address space from now on.
        asid: u32,
    },
    /// The driver enables or disables a queue
    /// ([`VduseFeatures::QUEUE_READY`](super::VduseFeatures::QUEUE_READY)). Refusing it breaks the device.
    SetVqReady {
        /// The queue.
        index: u32,
        /// Whether it is enabled.
        ready: bool,
    },
    /// Stop all queues until a reset ([`VduseFeatures::SUSPEND`](super::VduseFeatures::SUSPEND)). Once it is answered neither
    /// kicks nor interrupts pass.
    Suspend,
}

/// Why bytes are no request.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is too short or too long. It has no number, so nothing can be answered.
    #[error("a request of VDUSE has {MESSAGE_LEN} bytes, and this one {len}")]
    Length {
        /// Bytes that came.
        len: usize,
    },
    /// Nobody here knows what is asked.
    #[error(
        "request {id} of VDUSE is of type {kind}, which is unknown; is the kernel newer than this program?"
    )]
    Unknown {
        /// Its number.
        id: u32,
        /// Its type.
        kind: u32,
    },
    /// It contradicts itself.
    #[error("request {id} of VDUSE {problem}")]
    Body {
        /// Its number.
        id: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl RequestError {
    /// What is to be answered: that the request failed. `None` if there is nobody to answer.
    pub fn response(&self) -> Option<Response> {
        match *self {
            Self::Length { .. } => None,
            Self::Unknown { id, .. } | Self::Body { id, .. } => Some(Response { id, answer: Answer::Failed }),
        }
    }
}

impl Request {
    /// The request in the bytes that one read(2) has given.
    ///
    /// # Errors
    /// [`RequestError`]: they are not one. Reserved fields are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        let Ok(Wire { kind, id, body, .. }) = Wire::read_from_bytes(bytes) else {
            return Err(RequestError::Length { len: bytes.len() });
        };
        let short = || RequestError::Body { id, problem: "is too short" };
        let ([first, second], _) = <[u32; 2]>::read_from_prefix(&body).map_err(|_| short())?;
        let ([start, last], rest) = <[u64; 2]>::read_from_prefix(&body).map_err(|_| short())?;
        let (asid, _) = u32::read_from_prefix(rest).map_err(|_| short())?;
        let kind = match kind {
            GET_VQ_STATE => RequestKind::GetVqState { index: first },
            SET_STATUS => {
                let [status, ..] = body;
                RequestKind::SetStatus(status)
            }
            UPDATE_IOTLB if start > last => {
                return Err(RequestError::Body {
                    id,
                    problem: "is about addresses whose last is below the first",
                });
            }
            UPDATE_IOTLB => RequestKind::UpdateIotlb { first: start, last, asid },
            SET_VQ_GROUP_ASID => RequestKind::SetVqGroupAsid { group: first, asid: second },
            SET_VQ_READY if second > 1 => {
                return Err(RequestError::Body { id, problem: "neither enables a queue nor disables it" });
            }
            SET_VQ_READY => RequestKind::SetVqReady { index: first, ready: second == 1 },
            SUSPEND => RequestKind::Suspend,
            kind => return Err(RequestError::Unknown { id, kind }),
        };
        Ok(Self { id, kind })
    }

    /// The request as the kernel hands it to a read(2).
    pub fn to_bytes(&self) -> [u8; MESSAGE_LEN] {
        let mut wire = Wire { kind: self.kind.number(), id: self.id, ..Wire::new_zeroed() };
        match self.kind {
            RequestKind::GetVqState { index } => put(&mut wire.body, &index),
            RequestKind::SetStatus(status) => put(&mut wire.body, &status),
            RequestKind::UpdateIotlb { first, last, asid } => {
                put(&mut wire.body, &[first, last, u64::from(asid)]);
            }
            RequestKind::SetVqGroupAsid { group, asid } => put(&mut wire.body, &[group, asid]),
            RequestKind::SetVqReady { index, ready } => put(&mut wire.body, &[index, u32::from(ready)]),
            RequestKind::Suspend => {}
        }
        zerocopy::transmute!(wire)
    }
}

impl RequestKind {
    /// Its number on the wire (`enum vduse_req_type`).
    fn number(self) -> u32 {
        match self {
            Self::GetVqState { .. } => GET_VQ_STATE,
            Self::SetStatus(_) => SET_STATUS,
            Self::UpdateIotlb { .. } => UPDATE_IOTLB,
            Self::SetVqGroupAsid { .. } => SET_VQ_GROUP_ASID,
            Self::SetVqReady { .. } => SET_VQ_READY,
            Self::Suspend => SUSPEND,
        }
    }

    /// Its name in the kernel's header, without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::GetVqState { .. } => "GET_VQ_STATE",
            Self::SetStatus(_) => "SET_STATUS",
            Self::UpdateIotlb { .. } => "UPDATE_IOTLB",
            Self::SetVqGroupAsid { .. } => "SET_VQ_GROUP_ASID",
            Self::SetVqReady { .. } => "SET_VQ_READY",
            Self::Suspend => "SUSPEND",
        }
    }
}

fn put<T: IntoBytes + Immutable>(body: &mut [u8; BODY], fields: &T) {
    body.iter_mut().zip(fields.as_bytes()).for_each(|(place, byte)| *place = *byte);
}
