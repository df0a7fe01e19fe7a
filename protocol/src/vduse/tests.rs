use proptest::prelude::*;

use super::*;
use crate::virtio::packed::Position;

mod files;

#[test]
fn each_request_has_its_golden_bytes() {
    for (request, bytes) in golden::requests() {
        assert_eq!(request.to_bytes().as_slice(), bytes, "{request:?}");
        assert_eq!(Request::decode(&bytes), Ok(request));
    }
}

#[test]
fn each_response_has_its_golden_bytes() {
    for (response, expected, bytes) in golden::responses() {
        assert_eq!(response.to_bytes().as_slice(), bytes, "{response:?}");
        assert_eq!(Response::decode(&bytes, expected), Ok(response));
    }
}

#[test]
fn unknown_request_is_answered_with_its_failure() {
    let error = Request::decode(&golden::message("06000000 2a000000")).unwrap_err();
    assert_eq!(error, RequestError::Unknown { id: 42, kind: 6 });
    assert_eq!(error.response(), Some(Response { id: 42, answer: Answer::Failed }));
}

#[test]
fn request_that_contradicts_itself_is_answered_with_its_failure() {
    let head = "2a000000 00000000000000000000000000000000";
    let backwards = format!("02000000 {head} 0020000000000000 ff1f000000000000");
    let maybe_ready = format!("04000000 {head} 00000000 02000000");
    for hex in [backwards, maybe_ready] {
        let error = Request::decode(&golden::message(&hex)).unwrap_err();
        assert!(matches!(error, RequestError::Body { id: 42, .. }), "{error:?}");
        assert_eq!(error.response(), Some(Response { id: 42, answer: Answer::Failed }));
    }
}

#[test]
fn message_of_another_length_has_no_number_to_answer() {
    for len in [0, 1, MESSAGE_LEN - 1, MESSAGE_LEN + 1] {
        let error = Request::decode(&vec![0; len]).unwrap_err();
        assert_eq!((error, error.response()), (RequestError::Length { len }, None));
        assert_eq!(Response::decode(&vec![0; len], Expected::Done), Err(ResponseError::Length { len }));
    }
}

#[test]
fn reserved_fields_of_a_request_are_not_looked_at() {
    let mut bytes = Request { id: 1, kind: RequestKind::Suspend }.to_bytes();
    bytes[8..].fill(0xff);
    assert_eq!(Request::decode(&bytes), Ok(Request { id: 1, kind: RequestKind::Suspend }));
}

#[test]
fn response_with_reserved_fields_or_an_unknown_result_is_refused() {
    let reserved = golden::message("07000000 00000000 00000000000000000000000000000001");
    assert_eq!(Response::decode(&reserved, Expected::Done), Err(ResponseError::Reserved { id: 7 }));
    let result = golden::message("07000000 02000000");
    assert_eq!(Response::decode(&result, Expected::Done), Err(ResponseError::Result { id: 7, result: 2 }));
}

#[test]
fn bits_that_no_position_has_are_left_out_of_a_state() {
    let bytes =
        golden::message("01000000 00000000 00000000000000000000000000000000 00000000 0200 ffff ffff 0080");
    let Answer::VqState { state, .. } = Response::decode(&bytes, Expected::Packed).unwrap().answer else {
        panic!("no state");
    };
    let avail = Position { slot: 0x7fff, wrap: false };
    assert_eq!(state, VqState::Packed { avail, used: Position { slot: 0, wrap: true } });
}

#[test]
fn names_are_those_of_files() {
    let longest = "x".repeat(DeviceName::MAX);
    for name in ["vd0", "control0", "...", "Gerät", &longest] {
        let parsed: DeviceName = name.parse().unwrap();
        assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (name, name));
        assert_eq!(parsed.path().to_str(), Some(format!("/dev/vduse/{name}").as_str()));
        let field = parsed.field();
        assert_eq!((&field[..name.len()], field[name.len()]), (name.as_bytes(), 0));
    }
    for name in ["control", ".", "..", "a/b", "/", "a!b", "a\0"] {
        assert_eq!(name.parse::<DeviceName>(), Err(NameError::NoFile { name: name.into() }));
    }
    let too_long = "x".repeat(DeviceName::MAX + 1);
    assert_eq!(too_long.parse::<DeviceName>(), Err(NameError::Length { len: 256 }));
    assert_eq!("".parse::<DeviceName>(), Err(NameError::Length { len: 0 }));
}

#[test]
fn kinds_have_the_numbers_of_the_specification() {
    let ids: Vec<u32> = (0..64).filter(|id| DeviceKind::from_id(*id).is_some()).collect();
    assert_eq!(ids, [1, 2, 26]);
    assert_eq!(DeviceKind::from_id(2), Some(DeviceKind::Block));
}

/// A device that the kernel would make.
fn device(kind: DeviceKind) -> DeviceConfig {
    DeviceConfig {
        name: "vd0".parse().unwrap(),
        kind,
        vendor_id: 0x1af4,
        features: 3 << 32,
        queues: 2,
        queue_align: 4096,
        groups: None,
        space: vec![1; 60],
    }
}

#[test]
fn device_that_the_kernel_would_refuse_is_refused_with_the_reason() {
    type Change = fn(&mut DeviceConfig);
    let block: [(Change, ConfigError); 9] = [
        (|d| d.queues = 0x1_0000, ConfigError::Queues(0x1_0000)),
        (|d| d.queue_align = 2, ConfigError::Align(2)),
        (|d| d.queue_align = 8192, ConfigError::Align(8192)),
        (|d| d.queue_align = 12, ConfigError::Align(12)),
        (|d| d.space = vec![0; 4097], ConfigError::Space(4097)),
        (
            |d| d.groups = Some(Groups { groups: 0, address_spaces: 1 }),
            ConfigError::Groups(Groups { groups: 0, address_spaces: 1 }),
        ),
        (
            |d| d.groups = Some(Groups { groups: 1, address_spaces: 0x1_0000 }),
            ConfigError::Groups(Groups { groups: 1, address_spaces: 0x1_0000 }),
        ),
        (|d| d.features = 1 << 32, ConfigError::NoAccessPlatform),
        (|d| d.features |= 1 << 11, ConfigError::Feature("VIRTIO_BLK_F_CONFIG_WCE")),
    ];
    let net: [(Change, ConfigError); 2] = [
        (|d| d.features |= 1 << 17, ConfigError::Feature("VIRTIO_NET_F_CTRL_VQ")),
        (|d| d.features = 1 << 33, ConfigError::NoVersion1),
    ];
    let of_kind = |kind, cases: &[(Change, ConfigError)]| {
        assert_eq!(device(kind).check(), Ok(()));
        for (change, expected) in cases {
            let mut device = device(kind);
            change(&mut device);
            assert_eq!(device.check(), Err(*expected));
        }
    };
    of_kind(DeviceKind::Block, &block);
    of_kind(DeviceKind::Net, &net);
    // What is refused of one kind is fine with another.
    assert_eq!(DeviceConfig { features: 1 << 33 | 1 << 17, ..device(DeviceKind::Block) }.check(), Ok(()));
    assert_eq!(DeviceConfig { features: 3 << 32 | 1 << 11, ..device(DeviceKind::Net) }.check(), Ok(()));
}

#[test]
fn device_has_the_bytes_of_the_header() {
    use zerocopy::IntoBytes;
    let groups = Some(Groups { groups: 2, address_spaces: 3 });
    let fields = DeviceConfig { groups, ..device(DeviceKind::Net) }.fields();
    let bytes = fields.as_bytes();
    assert_eq!(bytes[..4], *b"vd0\0");
    assert!(bytes[4..256].iter().all(|byte| *byte == 0));
    let expected = "f41a0000 01000000 0000000003000000 02000000 00100000 02000000 03000000";
    assert_eq!(bytes[256..288], crate::vhost_user::golden::bytes(expected));
    assert!(bytes[288..].iter().all(|byte| *byte == 0));
    let old = device(DeviceKind::Block).fields();
    assert_eq!((old.ngroups, old.nas, old.device_id), (0, 0, 2));
}

fn position() -> impl Strategy<Value = Position> {
    (0u16..0x8000, any::<bool>()).prop_map(|(slot, wrap)| Position { slot, wrap })
}

fn request() -> impl Strategy<Value = Request> {
    let kind = prop_oneof![
        any::<u32>().prop_map(|index| RequestKind::GetVqState { index }),
        any::<u8>().prop_map(RequestKind::SetStatus),
        (any::<u64>(), any::<u64>(), any::<u32>())
            .prop_map(|(a, b, asid)| { RequestKind::UpdateIotlb { first: a.min(b), last: a.max(b), asid } }),
        any::<(u32, u32)>().prop_map(|(group, asid)| RequestKind::SetVqGroupAsid { group, asid }),
        any::<(u32, bool)>().prop_map(|(index, ready)| RequestKind::SetVqReady { index, ready }),
        Just(RequestKind::Suspend),
    ];
    (any::<u32>(), kind).prop_map(|(id, kind)| Request { id, kind })
}

fn response() -> impl Strategy<Value = (Response, Expected)> {
    let answer = prop_oneof![
        Just((Answer::Done, Expected::Done)),
        prop_oneof![Just(Expected::Done), Just(Expected::Split), Just(Expected::Packed)]
            .prop_map(|expected| (Answer::Failed, expected)),
        any::<(u32, u16)>().prop_map(|(index, avail_index)| {
            (Answer::VqState { index, state: VqState::Split { avail_index } }, Expected::Split)
        }),
        (any::<u32>(), position(), position()).prop_map(|(index, avail, used)| {
            (Answer::VqState { index, state: VqState::Packed { avail, used } }, Expected::Packed)
        }),
    ];
    (any::<u32>(), answer).prop_map(|(id, (answer, expected))| (Response { id, answer }, expected))
}

proptest! {
    #[test]
    fn requests_survive_their_bytes(request in request()) {
        prop_assert_eq!(Request::decode(&request.to_bytes()), Ok(request));
    }

    #[test]
    fn responses_survive_their_bytes((response, expected) in response()) {
        prop_assert_eq!(Response::decode(&response.to_bytes(), expected), Ok(response));
    }

    #[test]
    fn any_request_is_understood_or_answered_under_its_number(
        kind in 0u32..8, rest in proptest::collection::vec(any::<u8>(), MESSAGE_LEN - 4),
    ) {
        let bytes = [kind.to_le_bytes().as_slice(), &rest].concat();
        let id = u32::from_le_bytes(rest[..4].try_into().unwrap());
        match Request::decode(&bytes) {
            Ok(request) => prop_assert_eq!(request.id, id),
            Err(error) => prop_assert_eq!(error.response(), Some(Response { id, answer: Answer::Failed })),
        }
    }
}
