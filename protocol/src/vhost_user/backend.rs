//! The back-end channel: the back-end asks, the front-end answers, on the socket of `SET_BACKEND_REQ_FD`.

use super::header::Header;
use super::iotlb::Iotlb;
use super::payload::{Payload, SharedObject, ShmemMap, Size, VringArea, VringState};
use super::table::{ACK, FdRule, ReplyRule, Row, channel, fds_or_none, size_or};
use super::{MessageError, ProtocolFeatures, with_header};
use crate::frame::{Fds, Incoming};

channel! {
    /// Requests of the back-end.
    request BackendRequest;
    /// Requests of the back-end with their payloads.
    message BackendMessage;
    /// Replies of the front-end with their payloads.
    reply BackendReply;

    /// A translation is missing, or an access was not allowed.
    IotlbMsg(iotlb: Iotlb) = 1 "IOTLB_MSG", fds None => Ack, needs BACKEND_REQ;
    /// Configuration space has changed.
    ConfigChangeMsg = 2 "CONFIG_CHANGE_MSG", fds None => Ack, needs BACKEND_REQ | CONFIG;
    /// The guest may notify a queue by writing to this file.
    VringHostNotifierMsg(area: VringArea) = 3 "VRING_HOST_NOTIFIER_MSG", fds AsFlagged
        => Ack, needs BACKEND_REQ | HOST_NOTIFIER;
    /// A call, as a message.
    VringCall(state: VringState) = 4 "VRING_CALL", fds None => Ack, needs BACKEND_REQ | INBAND_NOTIFICATIONS;
    /// A vring has failed.
    VringErr(state: VringState) = 5 "VRING_ERR", fds None => Ack, needs BACKEND_REQ | INBAND_NOTIFICATIONS;
    /// This back-end exports a shared object.
    SharedObjectAdd(object: SharedObject) = 6 "SHARED_OBJECT_ADD", fds None
        => Ack, needs BACKEND_REQ | SHARED_OBJECT;
    /// It exports it no longer.
    SharedObjectRemove(object: SharedObject) = 7 "SHARED_OBJECT_REMOVE", fds None
        => Ack, needs BACKEND_REQ | SHARED_OBJECT;
    /// Find a shared object. (The reply's value is 0 when the object comes with it.)
    SharedObjectLookup(object: SharedObject) = 8 "SHARED_OBJECT_LOOKUP", fds None
        => Own(result: u64, fds AtMostOne), needs BACKEND_REQ | SHARED_OBJECT;
    /// Show a piece of a file in a shared memory region.
    ShmemMap(map: ShmemMap) = 9 "SHMEM_MAP", fds One => Ack, needs BACKEND_REQ | BACKEND_SEND_FD | SHMEM;
    /// Take it away again.
    ShmemUnmap(map: ShmemMap) = 10 "SHMEM_UNMAP", fds None => Ack, needs BACKEND_REQ | SHMEM;
}
