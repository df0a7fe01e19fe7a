use std::sync::atomic::Ordering;

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::feature;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::status::Status;

use super::rig::*;

fn get(rig: &Rig, feature: u8, cdw11: u32) -> Command {
    let dptr = [rig.data.at.0, 0];
    Command { dptr, cdw10: feature.into(), cdw11, ..Command::new(admin::GET_FEATURES, 0, 0) }
}

fn set(rig: &Rig, feature: u8, cdw11: u32) -> Command {
    Command { cdw0: admin::SET_FEATURES.into(), ..get(rig, feature, cdw11) }
}

fn selected(rig: &Rig, feature: u8, select: u32, cdw11: u32) -> Command {
    Command { cdw10: u32::from(feature) | select << 8, ..get(rig, feature, cdw11) }
}

#[test]
fn features_keep_what_was_set_until_a_reset() {
    let mut rig = Rig::enabled();
    for (feature, value, kept, default) in [
        (feature::ARBITRATION, u32::MAX, 0xffff_ff07, 0),
        (feature::POWER_MANAGEMENT, 0, 0, 0),
        (feature::TEMPERATURE_THRESHOLD, 350, 350, 343),
        (feature::VOLATILE_WRITE_CACHE, 0, 0, 1),
        (feature::INTERRUPT_COALESCING, 0x1234_0102, 0x0102, 0),
        (feature::INTERRUPT_VECTOR, 1 << 16, 1 << 16, 0),
        (feature::WRITE_ATOMICITY, 1, 1, 0),
        (feature::ASYNC_EVENTS, u32::MAX, 0x1ff, 0),
    ] {
        assert_eq!(rig.done(get(&rig, feature, 0)), default, "{feature:#x}");
        rig.done(set(&rig, feature, value));
        assert_eq!(rig.done(get(&rig, feature, 0)), kept, "{feature:#x}");
        for select in [1, 2] {
            assert_eq!(rig.done(selected(&rig, feature, select, 0)), default, "{feature:#x}");
        }
        assert_eq!(rig.done(selected(&rig, feature, 3, 0)) & 5, 4, "{feature:#x}");
    }
    assert!(!rig.device.shared().write_back.load(Ordering::Relaxed));
    rig.disable();
    assert!(rig.device.shared().write_back.load(Ordering::Relaxed));
    rig.enable();
    assert_eq!(rig.done(get(&rig, feature::ASYNC_EVENTS, 0)), 0);
    assert_eq!(rig.done(get(&rig, feature::VOLATILE_WRITE_CACHE, 0)), 1);
}

#[test]
fn what_no_feature_can_have_is_refused_with_its_status() {
    let mut rig = Rig::enabled();
    for unknown in [0, 3, 0x0c, 0x0f, 0x16, 0x19, 0x80, 0xff] {
        assert_eq!(rig.run(get(&rig, unknown, 0)).0, Status::INVALID_FIELD, "{unknown:#x}");
        assert_eq!(rig.run(set(&rig, unknown, 0)).0, Status::INVALID_FIELD, "{unknown:#x}");
    }
    let saved = Command { cdw10: 6 | 1 << 31, ..set(&rig, 6, 1) };
    assert_eq!(rig.run(saved).0, Status::FEATURE_NOT_SAVEABLE);
    assert_eq!(rig.run(selected(&rig, 6, 4, 0)).0, Status::INVALID_FIELD);
    let of = |nsid| Command { nsid, ..set(&rig, 6, 1) };
    let (known, unknown, all) = (of(1), of(2), of(NSID_ALL));
    assert_eq!(rig.run(known).0, Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    assert_eq!(rig.run(unknown).0, Status::INVALID_NAMESPACE);
    rig.done(all);
    for (feature, value) in [
        (feature::POWER_MANAGEMENT, 1),
        (feature::INTERRUPT_VECTOR, u32::from(PAIRS) + 1),
        (feature::TEMPERATURE_THRESHOLD, 1 << 16),
        (feature::TEMPERATURE_THRESHOLD, 2 << 20),
    ] {
        assert_eq!(rig.run(set(&rig, feature, value)).0, Status::INVALID_FIELD, "{feature:#x} {value:#x}");
    }
    assert_eq!(rig.run(get(&rig, feature::INTERRUPT_VECTOR, 5)).0, Status::INVALID_FIELD);
}

#[test]
fn number_of_queues_is_bounded_and_fixed_once_there_are_some() {
    let mut rig = Rig::enabled();
    let last = u32::from(PAIRS) - 1;
    assert_eq!(rig.done(get(&rig, feature::NUMBER_OF_QUEUES, 0)), last | last << 16);
    assert_eq!(rig.done(set(&rig, feature::NUMBER_OF_QUEUES, 0x007f_007f)), last | last << 16);
    assert_eq!(rig.done(set(&rig, feature::NUMBER_OF_QUEUES, 0x0001_0001)), 1 | 1 << 16);
    assert_eq!(rig.run(create_cq(3, 64, rig.data.at.0)).0, Status::INVALID_QUEUE_ID);
    for value in [0xffff, 0xffff_0000, u32::MAX] {
        assert_eq!(rig.run(set(&rig, feature::NUMBER_OF_QUEUES, value)).0, Status::INVALID_FIELD);
    }
    rig.done(create_cq(2, 64, rig.data.at.0));
    assert_eq!(rig.run(set(&rig, feature::NUMBER_OF_QUEUES, 1)).0, Status::COMMAND_SEQUENCE_ERROR);
}

#[test]
fn recovery_belongs_to_a_namespace() {
    let mut rig = Rig::enabled();
    let of = |rig: &Rig, nsid, value| Command { nsid, ..set(rig, feature::ERROR_RECOVERY, value) };
    let read = |rig: &Rig, nsid| Command { nsid, ..get(rig, feature::ERROR_RECOVERY, 0) };
    rig.done(of(&rig, 3, 7));
    assert_eq!((rig.done(read(&rig, 1)), rig.done(read(&rig, 3))), (0, 7));
    rig.done(of(&rig, NSID_ALL, 9));
    assert_eq!((rig.done(read(&rig, 1)), rig.done(read(&rig, 3))), (9, 9));
    assert_eq!(rig.run(of(&rig, 11, 1)).0, Status::INVALID_NAMESPACE);
    assert_eq!(rig.run(read(&rig, 0)).0, Status::INVALID_NAMESPACE);
    assert_eq!(rig.run(of(&rig, 1, 1 << 16)).0, Status::INVALID_FIELD);
}

#[test]
fn timestamp_and_host_identifier_travel_as_data() {
    let mut rig = Rig::enabled();
    rig.data.slice().unwrap().copy_from(&0x0000_0123_4567_0000u64.to_le_bytes());
    rig.done(set(&rig, feature::TIMESTAMP, 0));
    rig.done(get(&rig, feature::TIMESTAMP, 0));
    let value = u64::from_le_bytes(rig.bytes(8).try_into().unwrap());
    assert_eq!((value >> 48, (value & 0xffff_ffff_ffff) >> 16), (2, 0x0123_4567), "set by the host");
    let id: Vec<u8> = (1..=16).collect();
    rig.data.slice().unwrap().copy_from(&id);
    rig.done(set(&rig, feature::HOST_ID, 1));
    rig.data.slice().unwrap().fill(0);
    rig.done(get(&rig, feature::HOST_ID, 1));
    assert_eq!(rig.bytes(17), [&id[..], &[0]].concat());
    let nowhere = Command { dptr: [1, 0], ..set(&rig, feature::HOST_ID, 1) };
    assert_eq!(rig.run(nowhere).0, Status::PRP_OFFSET_INVALID);
}

#[test]
fn opcodes_that_are_not_there_are_refused() {
    let mut rig = Rig::enabled();
    for opcode in [
        admin::KEEP_ALIVE,
        admin::FIRMWARE_COMMIT,
        admin::FIRMWARE_DOWNLOAD,
        admin::DEVICE_SELF_TEST,
        admin::FORMAT_NVM,
        admin::SANITIZE,
        admin::SECURITY_SEND,
        0x03,
        0xff,
    ] {
        assert_eq!(rig.run(Command::new(opcode, 0, 0)).0, Status::INVALID_OPCODE, "{opcode:#x}");
    }
}
