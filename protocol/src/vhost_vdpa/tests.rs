use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::vhost_user::IotlbPerm;

#[test]
fn each_message_has_its_golden_bytes() {
    for (message, bytes) in golden::messages() {
        assert_eq!(message.to_bytes().as_slice(), bytes, "{message:?}");
        assert_eq!(IotlbMessage::decode(&bytes), Ok(message));
    }
}

#[test]
fn message_that_is_none_is_refused_with_the_reason() {
    let (update, good) = golden::messages().swap_remove(0);
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        IotlbMessage::decode(&bytes)
    };
    assert_eq!(changed(0, &[2]), Ok(update));
    assert_eq!(changed(0, &[1]), Err(IotlbError::Version(1)));
    for kind in [0, 1, 4, 7, 255] {
        assert_eq!(changed(33, &[kind]), Err(IotlbError::Unknown(kind)));
    }
    let [no_byte, wraps, permits] = [
        "is about no byte",
        "wraps around the end of the addresses",
        "permits nothing, or what is neither reading nor writing",
    ]
    .map(|problem| Err(IotlbError::Body(problem)));
    assert_eq!(changed(16, &[0; 8]), no_byte);
    assert_eq!(changed(16, &[0xff; 8]), wraps);
    assert_eq!(changed(24, &[0xff; 8]), wraps);
    assert_eq!((changed(32, &[0]), changed(32, &[4])), (permits, permits));
    for len in [0, 40, MESSAGE_LEN - 1, MESSAGE_LEN + 1] {
        assert_eq!(IotlbMessage::decode(&vec![2; len]), Err(IotlbError::Length { len }));
    }
}

#[test]
fn backend_features_have_the_bits_of_the_header() {
    let names: Vec<_> = BackendFeatures::from_bits_retain(0x1ff).iter_names().map(|(name, _)| name).collect();
    let expected = [
        "IOTLB_MSG_V2",
        "IOTLB_BATCH",
        "IOTLB_ASID",
        "SUSPEND",
        "RESUME",
        "ENABLE_AFTER_DRIVER_OK",
        "DESC_ASID",
        "IOTLB_PERSIST",
    ];
    assert_eq!(names, expected);
    assert_eq!(BackendFeatures::IOTLB_MSG_V2.bits(), 2);
}

#[test]
fn device_that_is_not_there_is_absent() {
    let path = "/dev/vhost-vdpa-never-made";
    let error = VhostVdpa::open(Path::new(path)).unwrap_err();
    assert_eq!(error, VdpaError::Absent { path: path.into() });
    assert!(error.to_string().contains("modprobe vhost_vdpa"), "{error}");
}

#[test]
fn file_that_is_no_vdpa_device_is_refused() {
    let path = "/dev/null";
    let error = VhostVdpa::open(Path::new(path)).unwrap_err();
    assert_eq!(error, VdpaError::NotVdpa { path: path.into() });
}

#[test]
fn each_refusal_of_the_kernel_has_its_meaning() {
    let call = "IT";
    let meanings = [
        (Errno::IO, VdpaError::DeviceFailed { call }),
        (Errno::PERM, VdpaError::NotOwner { call }),
        (Errno::BUSY, VdpaError::TooLate { call }),
        (Errno::NOBUFS, VdpaError::NoSuchQueue { call }),
        (Errno::OPNOTSUPP, VdpaError::Unsupported { call }),
        (Errno::NOTTY, VdpaError::Unsupported { call }),
        (Errno::INVAL, VdpaError::Refused { call }),
        (Errno::NOMEM, VdpaError::Failed { call, errno: Errno::NOMEM }),
    ];
    for (errno, meaning) in meanings {
        assert_eq!(VdpaError::of_call(call, errno), meaning);
    }
    let path = || "p".to_string();
    assert_eq!(VdpaError::of_open(path(), Errno::BUSY), VdpaError::Busy { path: path() });
    let denied = VdpaError::Denied { path: path(), errno: Errno::ACCESS };
    assert_eq!(VdpaError::of_open(path(), Errno::ACCESS), denied);
}

fn message() -> impl Strategy<Value = IotlbMessage> {
    let range =
        || (any::<u64>(), 1..=u64::MAX).prop_map(|(first, size)| (first, size.min(u64::MAX - first).max(1)));
    let perm = (1u8..=3).prop_map(IotlbPerm::from_bits_truncate);
    let change = prop_oneof![
        (range(), any::<u64>(), perm).prop_map(|((iova, size), user_addr, perm)| {
            let size = size.min(u64::MAX - user_addr).max(1);
            IotlbChange::Update { iova, size, user_addr, perm }
        }),
        range().prop_map(|(iova, size)| IotlbChange::Invalidate { iova, size }),
        Just(IotlbChange::BatchBegin),
        Just(IotlbChange::BatchEnd),
    ];
    (any::<u32>(), change).prop_map(|(asid, change)| IotlbMessage { asid, change })
}

proptest! {
    #[test]
    fn messages_survive_their_bytes(message in message()) {
        prop_assert_eq!(IotlbMessage::decode(&message.to_bytes()), Ok(message));
    }
}
