//! Messages and the bytes they have on the wire, written down independently of the encoder.

use super::{IotlbChange, IotlbMessage, MESSAGE_LEN};
use crate::vhost_user::IotlbPerm;
use crate::vhost_user::golden::bytes;

/// Every message.
#[rustfmt::skip]
pub(crate) fn messages() -> Vec<(IotlbMessage, Vec<u8>)> {
    use IotlbChange as C;
    let message = |asid, change, hex: &str| {
        let mut bytes = bytes(hex);
        bytes.resize(MESSAGE_LEN, 0);
        (IotlbMessage { asid, change }, bytes)
    };
    vec![
        message(0, C::Update { iova: 0x1000, size: 0x2000, user_addr: 0x7f00_0000_0000, perm: IotlbPerm::READ | IotlbPerm::WRITE }, "02000000 00000000 0010000000000000 0020000000000000 00000000007f0000 03 02"),
        message(3, C::Update { iova: 0, size: 1, user_addr: u64::MAX, perm: IotlbPerm::READ }, "02000000 03000000 0000000000000000 0100000000000000 ffffffffffffffff 01 02"),
        message(1, C::Invalidate { iova: 0x1000, size: 0x2000 }, "02000000 01000000 0010000000000000 0020000000000000 0000000000000000 00 03"),
        message(1, C::BatchBegin, "02000000 01000000 0000000000000000 0000000000000000 0000000000000000 00 05"),
        message(1, C::BatchEnd, "02000000 01000000 0000000000000000 0000000000000000 0000000000000000 00 06"),
    ]
}
