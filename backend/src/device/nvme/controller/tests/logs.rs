use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::log::{self, CommandEffects, ErrorEntry, FirmwareSlots, Health};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use zerocopy::FromBytes;

use super::rig::*;

/// `len` bytes of a page from `offset` on.
fn get(rig: &Rig, page: u8, len: u32, offset: u64) -> Command {
    let dwords = len / 4 - 1;
    Command {
        dptr: [rig.data.at.0, 0],
        cdw10: u32::from(page) | dwords << 16,
        cdw11: dwords >> 16,
        cdw12: offset as u32,
        cdw13: (offset >> 32) as u32,
        ..Command::new(admin::GET_LOG_PAGE, 0, NSID_ALL)
    }
}

fn page(rig: &mut Rig, page: u8, len: u32) -> Vec<u8> {
    rig.data.slice().unwrap().fill(0xee);
    rig.done(get(rig, page, len, 0));
    rig.bytes(len as usize)
}

#[test]
fn supported_pages_are_those_that_can_be_read() {
    let mut rig = Rig::enabled();
    let bytes = page(&mut rig, log::SUPPORTED, 1024);
    for (number, entry) in (0..=255u8).zip(bytes.chunks_exact(4)) {
        let expected = if entry[0] & 1 != 0 { Status::SUCCESS } else { Status::INVALID_LOG_PAGE };
        assert_eq!(rig.run(get(&rig, number, 64, 0)).0, expected, "page {number:#x}");
    }
}

#[test]
fn errors_are_logged_the_latest_first() {
    let mut rig = Rig::enabled();
    assert_eq!(page(&mut rig, log::ERRORS, 4096), [0; 4096]);
    let cid = rig.submit(Command::new(0xff, 0, 7));
    let ended = rig.ended();
    assert!(ended[0].status().has_more() && ended[0].status().is_final());
    rig.run(create_cq(0, 64, rig.data.at.0));
    let bytes = page(&mut rig, log::ERRORS, 4096);
    let entries: Vec<ErrorEntry> =
        bytes.chunks_exact(64).map(|entry| ErrorEntry::read_from_bytes(entry).unwrap()).collect();
    assert_eq!((entries[0].count, entries[1].count, entries[2].count), (2, 1, 0));
    assert_eq!((entries[1].cid, entries[1].nsid, entries[1].sq_id), (cid, 7, 0));
    assert_eq!(entries[1].status, ended[0].status & !1);
    let health = Health::read_from_bytes(&page(&mut rig, log::HEALTH, 512)).unwrap();
    assert_eq!(u128::from_le_bytes(health.error_entries), 2);
}

#[test]
fn health_tells_what_queues_have_moved() {
    let mut rig = Rig::enabled();
    rig.device.shared().usage(1).unwrap().add_reads(3, 512_000);
    rig.device.shared().usage(2).unwrap().add_writes(2, 512_001);
    let health = Health::read_from_bytes(&page(&mut rig, log::HEALTH, 512)).unwrap();
    assert_eq!((u128::from_le_bytes(health.reads), u128::from_le_bytes(health.units_read)), (3, 1));
    assert_eq!((u128::from_le_bytes(health.writes), u128::from_le_bytes(health.units_written)), (2, 2));
    assert_eq!((health.warning, u16::from_le_bytes(health.temperature), health.spare), (0, 313, 100));
    let of_one = Command { nsid: 1, ..get(&rig, log::HEALTH, 512, 0) };
    assert_eq!(rig.run(of_one).0, Status::INVALID_FIELD);
    rig.done(Command { nsid: 0, ..get(&rig, log::HEALTH, 512, 0) });
}

#[test]
fn firmware_and_effects_are_told() {
    let mut rig = Rig::enabled();
    let slots = FirmwareSlots::read_from_bytes(&page(&mut rig, log::FIRMWARE_SLOTS, 512)).unwrap();
    assert_eq!((slots.active, slots.revisions[1]), (1, [0; 8]));
    assert!(slots.revisions[0].starts_with(env!("CARGO_PKG_VERSION").as_bytes()));
    let effects = CommandEffects::read_from_bytes(&page(&mut rig, log::COMMAND_EFFECTS, 4096)).unwrap();
    assert_eq!(effects.io[usize::from(nvm::WRITE)], 3);
    assert_eq!(effects.admin[usize::from(admin::IDENTIFY)], 1);
    assert_eq!((effects.admin[usize::from(admin::FORMAT_NVM)], effects.io[usize::from(nvm::COPY)]), (0, 0));
    let features = page(&mut rig, log::FEATURE_EFFECTS, 1024);
    assert_eq!(
        (features[7 * 4], features[8 * 4 + 2] >> 4, features[3 * 4], features[5 * 4 + 2] >> 4),
        (1, 2, 0, 1)
    );
}

#[test]
fn parts_of_pages_are_read_and_nothing_beyond_their_end() {
    let mut rig = Rig::enabled();
    rig.data.slice().unwrap().fill(0xee);
    rig.done(get(&rig, log::HEALTH, 16, 176));
    assert_eq!(rig.bytes(17), [&[0; 16][..], &[0xee]].concat());
    rig.done(get(&rig, log::HEALTH, 4096, 500));
    assert_eq!((rig.bytes(13)[11], rig.bytes(13)[12]), (0, 0));
    rig.data.slice().unwrap().fill(0xee);
    rig.done(get(&rig, log::HEALTH, 1 << 20, 500));
    assert_eq!(rig.bytes(13)[12], 0xee);
    rig.done(get(&rig, log::HEALTH, 4, 512));
    for (len, offset) in [(4, 516), (4, u64::MAX - 3), (4, 2), ((1 << 20) + 4, 0)] {
        assert_eq!(
            rig.run(get(&rig, log::HEALTH, len, offset)).0,
            Status::INVALID_FIELD,
            "{len} at {offset}"
        );
    }
    let by_entry = Command { cdw14: 1 << 23, ..get(&rig, log::ERRORS, 64, 0) };
    assert_eq!(rig.run(by_entry).0, Status::INVALID_FIELD);
}
