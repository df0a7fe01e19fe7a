//! Messages and the bytes they have on the wire, written down independently of the encoder.

use super::{Answer, Expected, MESSAGE_LEN, Request, RequestKind, Response, VqState};
use crate::virtio::packed::Position;

/// The bytes of a message that starts with these hexadecimal digits; zeroes follow.
pub(crate) fn message(hex: &str) -> Vec<u8> {
    let mut bytes = crate::vhost_user::golden::bytes(hex);
    bytes.resize(MESSAGE_LEN, 0);
    bytes
}

/// Every request.
#[rustfmt::skip]
pub(crate) fn requests() -> Vec<(Request, Vec<u8>)> {
    use RequestKind as K;
    let request = |id, kind, hex: &str| (Request { id, kind }, message(hex));
    vec![
        request(0, K::GetVqState { index: 3 }, "00000000 00000000 00000000000000000000000000000000 03000000"),
        request(1, K::SetStatus(0x0f), "01000000 01000000 00000000000000000000000000000000 0f"),
        request(2, K::UpdateIotlb { first: 0, last: u64::MAX, asid: 0 }, "02000000 02000000 00000000000000000000000000000000 0000000000000000 ffffffffffffffff"),
        request(3, K::UpdateIotlb { first: 0x1000, last: 0x1fff, asid: 2 }, "02000000 03000000 00000000000000000000000000000000 0010000000000000 ff1f000000000000 02000000"),
        request(4, K::SetVqGroupAsid { group: 1, asid: 2 }, "03000000 04000000 00000000000000000000000000000000 01000000 02000000"),
        request(5, K::SetVqReady { index: 7, ready: true }, "04000000 05000000 00000000000000000000000000000000 07000000 01000000"),
        request(6, K::SetVqReady { index: 7, ready: false }, "04000000 06000000 00000000000000000000000000000000 07000000 00000000"),
        request(u32::MAX, K::Suspend, "05000000 ffffffff"),
    ]
}

/// Every kind of response, and what makes it expected.
#[rustfmt::skip]
pub(crate) fn responses() -> Vec<(Response, Expected, Vec<u8>)> {
    let response = |id, answer, expected, hex: &str| (Response { id, answer }, expected, message(hex));
    let split = VqState::Split { avail_index: 0xbeef };
    let packed = VqState::Packed {
        avail: Position { slot: 0x7fff, wrap: true },
        used: Position { slot: 0x0102, wrap: false },
    };
    vec![
        response(9, Answer::Done, Expected::Done, "09000000 00000000"),
        response(9, Answer::Failed, Expected::Done, "09000000 01000000"),
        response(9, Answer::Failed, Expected::Packed, "09000000 01000000"),
        response(1, Answer::VqState { index: 3, state: split }, Expected::Split, "01000000 00000000 00000000000000000000000000000000 03000000 efbe"),
        response(2, Answer::VqState { index: 3, state: packed }, Expected::Packed, "02000000 00000000 00000000000000000000000000000000 03000000 0100 ff7f 0000 0201"),
    ]
}
