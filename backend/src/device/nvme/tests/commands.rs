//! What commands do, and how they are refused.

use mdev_protocol::nvme::command::{
    CDW11_DEALLOCATE, CDW12_DEALLOCATE, CDW12_FORCE_UNIT_ACCESS, CDW12_LIMITED_RETRY, CDW12_PROTECTION,
    Command, NSID_ALL,
};
use mdev_protocol::nvme::data::DatasetRange;
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;
use std::sync::atomic::Ordering;

use super::rig::{Options, Rig, SIZE, read, transfer, write};
use crate::device::DropCause;
use crate::store::{Operation, Store};

const BLOCKS: u64 = SIZE / 512;

fn refused(rig: &mut Rig, command: Command) -> Status {
    let status = rig.run(command);
    assert!(status.is_final(), "{status:?} is worth no second try");
    status.plain()
}

#[test]
fn what_is_written_is_read() {
    let mut rig = Rig::new("mem,size=4M");
    rig.fill(0, 8192, 7);
    let (from, to) = (rig.at(512), rig.at(3 * 4096 + 1024));
    let second = |at: u64| at / 4096 * 4096 + 4096;
    assert_eq!(rig.run(write(5, 9, from, second(from))), Status::SUCCESS);
    assert_eq!(rig.run(read(5, 9, to, second(to))), Status::SUCCESS);
    assert_eq!(rig.bytes(3 * 4096 + 1024, 9 * 512), [7; 9 * 512]);
    assert_eq!(rig.bytes(3 * 4096, 1024), [0; 1024]);
    assert_eq!(rig.bytes(3 * 4096 + 1024 + 9 * 512, 512), [0; 512]);
    let used = rig.device.shared().used();
    assert_eq!((used.reads, used.writes, used.read_bytes), (1, 1, 9 * 512));
    let counters = rig.counters();
    assert_eq!((counters.packets, counters.bytes, counters.dropped()), (2, 2 * 9 * 512, 0));
}

#[test]
fn null_store_moves_nothing_but_looks_at_every_page() {
    let mut rig = Rig::new("null,size=4M");
    rig.fill(0, 4096, 3);
    let at = rig.at(0);
    assert_eq!(rig.run(read(0, 8, at, 0)), Status::SUCCESS);
    assert_eq!(rig.bytes(0, 4096), [3; 4096]);
    // The second page is in no memory.
    rig.offer(read(0, 8, at + 4092, u64::MAX - 4095));
    assert_eq!(rig.poll(), 0);
    rig.queues[0].engine.forsake();
    rig.poll();
    assert_eq!(rig.reap()[0].status().plain(), Status::DATA_TRANSFER_ERROR);
    assert_eq!(rig.counters().drops_by(DropCause::NoMemory), 1);
}

#[test]
fn compare_tells_equal_from_different() {
    let mut rig = Rig::new("mem,size=4M");
    rig.fill(0, 8192, 9);
    let at = rig.at(0);
    assert_eq!(rig.run(write(0, 16, at, at + 4096)), Status::SUCCESS);
    let compare = transfer(nvm::COMPARE, 0, 16, at, at + 4096);
    assert_eq!(rig.run(compare), Status::SUCCESS);
    rig.fill(8191, 1, 8);
    assert_eq!(rig.run(compare), Status::COMPARE_FAILURE);
    assert_eq!(rig.device.shared().mishaps.count(), 1);
}

#[test]
fn zeroes_are_read_back_with_and_without_deallocation() {
    let mut rig = Rig::new("mem,size=4M");
    for flags in [0, CDW12_DEALLOCATE, CDW12_FORCE_UNIT_ACCESS] {
        rig.fill(0, 4096, 9);
        let at = rig.at(0);
        assert_eq!(rig.run(write(8, 8, at, 0)), Status::SUCCESS);
        let mut zeroes = transfer(nvm::WRITE_ZEROES, 8, 8, 0, 0);
        zeroes.cdw12 |= flags;
        assert_eq!(rig.run(zeroes), Status::SUCCESS);
        assert_eq!(rig.run(read(8, 8, at, 0)), Status::SUCCESS);
        assert_eq!(rig.bytes(0, 4096), [0; 4096]);
    }
}

#[test]
fn long_change_goes_on_over_several_polls_and_holds_up_what_is_behind_it() {
    let mut rig = Rig::on(Store::open(&"mem,size=64M".parse().unwrap()).unwrap(), Options::default());
    let at = rig.at(0);
    rig.place(0, transfer(nvm::WRITE_ZEROES, 0, 65536, 0, 0));
    rig.place(0, read(9, 1, at, 0));
    rig.ring(0);
    assert_eq!(rig.poll(), 1);
    assert!(rig.queues[0].engine.arm(), "there is more to do");
    rig.queues[0].engine.disarm();
    let mut polls = 1;
    while rig.look().is_empty() {
        rig.poll();
        polls += 1;
    }
    assert_eq!(polls, 16, "32 MiB in steps of 2");
    rig.poll();
    assert_eq!(rig.look().len(), 1);
}

fn deallocate(rig: &Rig, ranges: &[(u64, u32)]) -> Command {
    let bytes: Vec<u64> =
        ranges.iter().flat_map(|(first, blocks)| [u64::from(*blocks) << 32, *first]).collect();
    rig.list(0, &bytes);
    let mut command = Command::new(nvm::DATASET_MANAGEMENT, 77, 1);
    command.cdw10 = ranges.len() as u32 - 1;
    command.cdw11 = CDW11_DEALLOCATE;
    command.dptr = [rig.lists.at.0, 0];
    command
}

#[test]
fn deallocated_ranges_read_as_zeros() {
    assert_eq!(DatasetRange::LEN, 16);
    let mut rig = Rig::new("mem,size=4M");
    rig.fill(0, 8192, 9);
    let at = rig.at(0);
    assert_eq!(rig.run(write(0, 16, at, at + 4096)), Status::SUCCESS);
    let command = deallocate(&rig, &[(8, 8), (100, 0), (BLOCKS - 1, 1)]);
    rig.offer(command);
    // A step each.
    while rig.poll() > 0 {}
    assert_eq!(rig.reap()[0].status(), Status::SUCCESS);
    assert_eq!(rig.run(read(0, 16, at, at + 4096)), Status::SUCCESS);
    assert_eq!((rig.bytes(0, 4096), rig.bytes(4096, 4096)), (vec![9; 4096], vec![0; 4096]));
}

#[test]
fn deallocation_out_of_range_changes_nothing() {
    let mut rig = Rig::new("mem,size=4M");
    rig.fill(0, 4096, 9);
    let at = rig.at(0);
    assert_eq!(rig.run(write(0, 8, at, 0)), Status::SUCCESS);
    for bad in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
        let command = deallocate(&rig, &[(0, 8), bad]);
        assert_eq!(refused(&mut rig, command), Status::LBA_OUT_OF_RANGE);
    }
    let mut hint = deallocate(&rig, &[(u64::MAX, 1)]);
    hint.cdw11 = 3;
    assert_eq!(rig.run(hint), Status::SUCCESS, "other attributes are hints");
    assert_eq!(rig.run(read(0, 8, at, 0)), Status::SUCCESS);
    assert_eq!(rig.bytes(0, 4096), [9; 4096]);
}

#[test]
fn commands_without_data_succeed() {
    let mut rig = Rig::new("mem,size=4M");
    assert_eq!(rig.run(Command::new(nvm::FLUSH, 3, 1)), Status::SUCCESS);
    assert_eq!(rig.run(transfer(nvm::VERIFY, 0, 100, 0, 0)), Status::SUCCESS);
}

#[test]
fn ends_of_the_namespace_are_exact() {
    let mut rig = Rig::new("null,size=4M");
    let at = rig.at(0);
    for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::WRITE_ZEROES, nvm::VERIFY] {
        assert_eq!(rig.run(transfer(opcode, BLOCKS - 8, 8, at, 0)), Status::SUCCESS);
        for (lba, blocks) in [(BLOCKS - 7, 8), (BLOCKS, 1), (u64::MAX, 1), (u64::MAX / 512 + 1, 1)] {
            let command = transfer(opcode, lba, blocks, at, 0);
            assert_eq!(refused(&mut rig, command), Status::LBA_OUT_OF_RANGE, "{opcode:#x} {lba:#x}");
        }
    }
}

#[test]
fn longest_transfer_is_exact() {
    let mut rig = Rig::on(Store::open(&"null,size=64M".parse().unwrap()).unwrap(), Options::default());
    let at = rig.at(0);
    rig.list(0, &(1..256).map(|page| at + page * 4096).collect::<Vec<_>>());
    let list = rig.lists.at.0;
    assert_eq!(rig.run(read(0, 2048, at, list)), Status::SUCCESS);
    assert_eq!(refused(&mut rig, read(0, 2049, at, list)), Status::INVALID_FIELD);
    assert_eq!(refused(&mut rig, read(0, 65536, at, list)), Status::INVALID_FIELD);
}

#[test]
fn namespaces_that_are_not_there_are_refused() {
    let mut rig = Rig::new("null,size=4M");
    for nsid in [0, 2, 500, NSID_ALL] {
        for opcode in [nvm::READ, nvm::FLUSH, nvm::DATASET_MANAGEMENT] {
            let command = Command { nsid, ..transfer(opcode, 0, 1, 0, 0) };
            if (opcode, nsid) == (nvm::FLUSH, NSID_ALL) {
                assert_eq!(rig.run(command), Status::SUCCESS);
                continue;
            }
            assert_eq!(refused(&mut rig, command), Status::INVALID_NAMESPACE);
        }
        let unknown = Command { nsid, ..transfer(0x7f, 0, 1, 0, 0) };
        assert_eq!(refused(&mut rig, unknown), Status::INVALID_OPCODE);
    }
    rig.device.shared().namespaces.detach(1).unwrap();
    let at = rig.at(0);
    assert_eq!(refused(&mut rig, read(0, 1, at, 0)), Status::INVALID_NAMESPACE);
    rig.device.shared().namespaces.attach(1).unwrap();
    assert_eq!(rig.run(read(0, 1, at, 0)), Status::SUCCESS);
}

#[test]
fn opcodes_and_flags_that_are_not_served_are_refused() {
    let mut rig = Rig::new("null,size=4M");
    let at = rig.at(0);
    for opcode in [nvm::WRITE_UNCORRECTABLE, nvm::COPY, 0x0d, 0x7f, 0xff] {
        assert_eq!(refused(&mut rig, transfer(opcode, 0, 1, at, 0)), Status::INVALID_OPCODE);
    }
    // Fused operations, and a reserved kind of data pointer.
    for flags in [1u32, 2, 3, 0xc0] {
        for opcode in [nvm::READ, nvm::FLUSH, nvm::WRITE_ZEROES] {
            let mut command = transfer(opcode, 0, 1, at, 0);
            command.cdw0 |= flags << 8;
            assert_eq!(refused(&mut rig, command), Status::INVALID_FIELD);
        }
    }
    assert!(rig.counters().drops_by(DropCause::Unsupported) == 5);
}

#[test]
fn values_that_were_not_offered_are_refused_and_what_is_reserved_is_not_looked_at() {
    let mut rig = Rig::new("mem,size=4M");
    let at = rig.at(0);
    for directive in 1..16 {
        let mut command = write(0, 1, at, 0);
        command.cdw12 |= directive << 20;
        assert_eq!(refused(&mut rig, command), Status::INVALID_FIELD, "directive {directive}");
    }
    // Protection information of blocks that have none, retries, attributes of the data, reserved bits.
    for opcode in [nvm::READ, nvm::WRITE, nvm::WRITE_ZEROES, nvm::VERIFY] {
        for bits in [CDW12_PROTECTION, CDW12_LIMITED_RETRY, 1 << 24, 1 << 16] {
            let mut command = transfer(opcode, 0, 1, at, 0);
            command.cdw12 |= bits;
            (command.cdw2, command.cdw3, command.cdw14, command.cdw15) = (u32::MAX, u32::MAX, 5, u32::MAX);
            command.cdw13 = 0xff;
            command.cdw0 |= 0x3c00;
            assert_eq!(rig.run(command), Status::SUCCESS, "{opcode:#x} {bits:#x}");
        }
    }
}

#[test]
fn nothing_changes_what_is_read_only() {
    let store = Store::open(&"mem,size=4M".parse().unwrap()).unwrap();
    let mut rig = Rig::on(store, Options { read_only: true, ..Options::default() });
    let at = rig.at(0);
    assert_eq!(rig.run(read(0, 1, at, 0)), Status::SUCCESS);
    assert_eq!(rig.run(Command::new(nvm::FLUSH, 3, 1)), Status::SUCCESS);
    for opcode in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::DATASET_MANAGEMENT] {
        assert_eq!(refused(&mut rig, transfer(opcode, 0, 1, at, 0)), Status::WRITE_PROTECTED);
    }
    assert_eq!(rig.counters().drops_by(DropCause::ReadOnly), 3);
}

#[test]
fn durability_is_asked_for_by_the_command_or_by_the_cache_switch() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    let mut forced = write(0, 1, at, 0);
    forced.cdw12 |= CDW12_FORCE_UNIT_ACCESS;
    let durable = |rig: &mut Rig, command| {
        rig.offer(command);
        rig.poll();
        let operation = held.pending().last().unwrap().operation;
        held.finish_all();
        operation == Operation::Write { durable: true }
    };
    assert!(!durable(&mut rig, write(0, 1, at, 0)));
    assert!(durable(&mut rig, forced));
    rig.device.shared().write_back.store(false, Ordering::Relaxed);
    assert!(durable(&mut rig, write(0, 1, at, 0)));
}
