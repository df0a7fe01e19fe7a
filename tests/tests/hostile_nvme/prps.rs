//! PRP entries.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm::{COMPARE, DATASET_MANAGEMENT, READ, WRITE};
use mdev_protocol::nvme::status::Status;

use super::intruder::{Intruder, NOWHERE, PAGE, transfer};
use super::trial::Trial;

/// Blocks of as much data as a command may have.
const MOST: u32 = 2048;
const LAST_PAGE: u64 = u64::MAX - 4095;

/// Writes entries of a list, from an offset in the room for lists on, and says where they are.
fn list(intruder: &Intruder, offset: u64, entries: &[u64]) -> u64 {
    let lists = intruder.lists.slice().expect("a part");
    for (number, entry) in entries.iter().enumerate() {
        lists.write(offset as usize + number * 8, entry.to_le()).expect("room");
    }
    intruder.lists.at.0 + offset
}

#[test]
fn entries_that_make_no_sense_are_refused_at_once() {
    let mut trial = Trial::begin("adaptive");
    let wrong = Status::PRP_OFFSET_INVALID;
    for opcode in [READ, WRITE, COMPARE] {
        trial.case(&format!("offsets of opcode {opcode}"), |intruder, _| {
            let at = intruder.data.at.0;
            let in_page = list(intruder, 0, &[at, at + 4]);
            let odd = [
                ("an address that is no dword's", transfer(opcode, [at + 1, 0], 1)),
                ("the same of bit 1", transfer(opcode, [at + 2, 0], 1)),
                ("a second entry with an offset", transfer(opcode, [at, at + PAGE + 8], 16)),
                ("a list that is not aligned", transfer(opcode, [at, in_page + 4], 24)),
                ("an entry of a list with an offset", transfer(opcode, [at, in_page], 24)),
            ];
            for (what, command) in odd {
                assert_eq!(intruder.io(0, command).status().plain(), wrong, "{what}");
            }
            intruder.must_work("after entries that make no sense");
        });
    }
    trial.case("ranges of deallocation with an offset", |intruder, _| {
        let at = intruder.data.at.0 + 1;
        let command =
            Command { dptr: [at, 0], cdw10: 255, cdw11: 4, ..Command::new(DATASET_MANAGEMENT, 0, 1) };
        assert_eq!(intruder.io(0, command).status().plain(), wrong);
    });
    trial.end();
}

#[test]
fn addresses_that_are_nowhere_fail_alone_after_a_second() {
    let mut trial = Trial::begin("adaptive");
    for opcode in [READ, WRITE] {
        trial.case(&format!("nowhere, opcode {opcode}"), |intruder, _| {
            let data = intruder.data.at.0;
            let end = data + intruder.data.len - PAGE;
            let end_of_memory = super::intruder::DATA_AT + (8 << 20) - PAGE;
            let nowhere = list(intruder, 0, &[data, NOWHERE, data]);
            let wraps = list(intruder, PAGE, &[LAST_PAGE, 0, data]);
            // A list whose only entry in its page says where it goes on.
            let on_to_nowhere = list(intruder, 3 * PAGE - 8, &[NOWHERE]);
            let on_to_the_end = list(intruder, 4 * PAGE - 8, &[LAST_PAGE]);
            let cases = [
                ("no memory at all", transfer(opcode, [NOWHERE, 0], 1)),
                ("address zero", transfer(opcode, [0, 0], 1)),
                ("the last page there is", transfer(opcode, [LAST_PAGE, 0], 8)),
                ("from the last page to the first", transfer(opcode, [LAST_PAGE, 0], 16)),
                ("the last dword there is", transfer(opcode, [u64::MAX - 3, data], 1)),
                ("a second page that is nowhere", transfer(opcode, [end, NOWHERE], 16)),
                ("beyond the end of a region", transfer(opcode, [end_of_memory, end_of_memory + PAGE], 16)),
                ("a list that is nowhere", transfer(opcode, [data, NOWHERE], MOST)),
                ("a list in the last bytes there are", transfer(opcode, [data, u64::MAX - 7], MOST)),
                ("a list with an entry that is nowhere", transfer(opcode, [data, nowhere], 32)),
                ("a list with entries that wrap", transfer(opcode, [data, wraps], 32)),
                ("a list that goes on nowhere", transfer(opcode, [data, on_to_nowhere], MOST)),
                ("a list that goes on at the end", transfer(opcode, [data, on_to_the_end], MOST)),
            ];
            fails_alone(intruder, &cases);
        });
    }
    trial.end();
}

/// Each command fails with a data transfer error, and then its queue goes on. They wait at the same time, each on a queue of its own.
pub fn fails_alone(intruder: &mut Intruder, cases: &[(&str, Command)]) {
    intruder.create_pairs(cases.len());
    let cids: Vec<u16> =
        cases.iter().enumerate().map(|(ring, (_, command))| intruder.submit(ring, *command)).collect();
    for (ring, (what, _)) in cases.iter().enumerate() {
        let ended = intruder.await_io(ring, 1);
        let found = (ended[0].cid, ended[0].status().plain());
        assert_eq!(found, (cids[ring], Status::DATA_TRANSFER_ERROR), "{what}");
        let good = intruder.data.at.0;
        assert!(intruder.io(ring, transfer(READ, [good, 0], 1)).status().is_success(), "after {what}");
    }
    assert!(!intruder.is_fatal());
}

#[test]
fn lists_that_are_their_own_next_ones_end() {
    let mut trial = Trial::begin("adaptive");
    for opcode in [READ, WRITE] {
        trial.case(&format!("lists of themselves, opcode {opcode}"), |intruder, _| {
            let (data, lists) = (intruder.data.at.0, intruder.lists.at.0);
            // A page of entries that all name that page, and lists that begin at each of its last places.
            list(intruder, 0, &[lists; 512]);
            for first in (0..512).rev().step_by(37).chain([510, 256, 1, 0]) {
                let status = intruder.io(0, transfer(opcode, [data, lists + first * 8], MOST)).status();
                // Where the data is a list that was read already nothing is wrong with that.
                let fine = status.is_success() || status.plain() == Status::PRP_OFFSET_INVALID;
                assert!(fine, "a list from entry {first} on: {status:?}");
                list(intruder, 0, &[lists; 512]);
            }
            // Two pages that name each other.
            let there = list(intruder, PAGE, &[lists + 2 * PAGE; 512]);
            list(intruder, 2 * PAGE, &[there; 512]);
            let status = intruder.io(0, transfer(opcode, [data, there + 511 * 8], MOST)).status();
            assert!(status.is_success(), "{status:?}");
        });
    }
    trial.end();
}

#[test]
fn data_on_top_of_queues_harms_their_host_only() {
    let mut trial = Trial::begin("adaptive");
    for (what, place) in [("submission queue", 0), ("completion queue", 1), ("admin queues", 2)] {
        for opcode in [READ, WRITE] {
            trial.case(&format!("data on the {what}, opcode {opcode}"), |intruder, _| {
                let at = match place {
                    0 => intruder.rings[0].submissions.at.0,
                    1 => intruder.rings[0].completions.at.0,
                    _ => intruder.admin.submissions.at.0,
                };
                for _ in 0..40 {
                    let command = transfer(opcode, [at, at], 16);
                    intruder.rings[0].push(&command);
                }
                intruder.ring(0);
                // Whatever it reads there as commands or completions now.
                for tail in 0..64 {
                    intruder.bell(1, false, tail);
                    intruder.bell(1, true, 63 - tail);
                    intruder.bell(0, false, tail % 16);
                }
                intruder.csts();
            });
        }
    }
    trial.end();
}

#[test]
fn memory_that_may_only_be_read_or_written_is_not_used_otherwise() {
    use mdev_protocol::vfio_user::{DmaFlags, DmaMap};
    let mut trial = Trial::begin("adaptive");
    trial.case("one direction only", |intruder, _| {
        let file = super::maps::memfd(2 * PAGE);
        for (number, (flags, allowed, forbidden)) in
            [(DmaFlags::READ, WRITE, READ), (DmaFlags::WRITE, READ, WRITE)].into_iter().enumerate()
        {
            let offset = number as u64 * PAGE;
            let address = NOWHERE + offset;
            use std::os::fd::AsFd;
            let map = DmaMap { flags, offset, address, size: PAGE };
            intruder.client.dma_map(map, Some(file.as_fd())).expect("a page");
            let mut status = |opcode| intruder.io(0, transfer(opcode, [address, 0], 8)).status().plain();
            assert_eq!(status(allowed), Status::SUCCESS);
            assert_eq!(status(forbidden), Status::DATA_TRANSFER_ERROR);
        }
        let mut bytes = [1; 8];
        rustix::io::pread(&file, &mut bytes, 0).expect("its bytes");
        assert_eq!(bytes, [0; 8], "what must not be written was written");
    });
    trial.end();
}
