//! SGL descriptors.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::{
    SGL_BIT_BUCKET, SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor,
};
use mdev_protocol::nvme::opcode::nvm::{READ, WRITE};
use mdev_protocol::nvme::status::Status;

use super::intruder::{Intruder, NOWHERE, transfer};
use super::prps::fails_alone;
use super::trial::Trial;

/// Bytes of data of each command.
const LEN: u32 = 8 * 512;

fn command(opcode: u8, first: SglDescriptor) -> Command {
    let command = transfer(opcode, first.pointer(), 8);
    Command { cdw0: command.cdw0 | 1 << 14, ..command }
}

/// A segment with these descriptors, written from an offset in the room for lists on.
fn segment(intruder: &Intruder, kind: u8, offset: u64, descriptors: &[SglDescriptor]) -> SglDescriptor {
    let lists = intruder.lists.slice().expect("a part");
    for (number, descriptor) in descriptors.iter().enumerate() {
        lists.write(offset as usize + number * 16, *descriptor).expect("room");
    }
    SglDescriptor::new(kind, intruder.lists.at.0 + offset, descriptors.len() as u32 * 16)
}

#[test]
fn descriptors_that_make_no_sense_are_refused_at_once() {
    let mut trial = Trial::begin("adaptive");
    for opcode in [READ, WRITE] {
        trial.case(&format!("descriptors of opcode {opcode}"), |intruder, _| {
            let (at, lists) = (intruder.data.at.0, intruder.lists.at.0);
            let data = |len| SglDescriptor::new(SGL_DATA_BLOCK, at, len);
            let good = data(LEN);
            let mut refused = |what: &str, first, status: Status| {
                assert_eq!(intruder.io(0, command(opcode, first)).status().plain(), status, "{what}");
            };
            // What is thrown away is enough for a read, and nothing to write.
            let bucket = if opcode == READ { Status::SUCCESS } else { Status::SGL_DATA_LENGTH_INVALID };
            refused("a bit bucket", SglDescriptor::new(SGL_BIT_BUCKET, 0, LEN), bucket);
            for kind in 4..16 {
                let what = format!("kind {kind}");
                refused(&what, SglDescriptor::new(kind, at, LEN), Status::SGL_TYPE_INVALID);
            }
            for sub_kind in 1..16 {
                let first = SglDescriptor { identifier: sub_kind, ..good };
                refused(&format!("sub type {sub_kind}"), first, Status::SGL_TYPE_INVALID);
            }
            for (len, status) in
                [(0, Status::SGL_DATA_LENGTH_INVALID), (LEN - 512, Status::SGL_DATA_LENGTH_INVALID)]
            {
                refused("too few bytes", data(len), status);
            }
            refused("too many bytes", data(LEN + 1), Status::SGL_DATA_LENGTH_INVALID);
            refused("4 GiB", data(u32::MAX), Status::SGL_DATA_LENGTH_INVALID);
            for kind in [SGL_SEGMENT, SGL_LAST_SEGMENT] {
                for len in [0, 1, 15, 17, u32::MAX] {
                    let first = SglDescriptor::new(kind, lists, len);
                    refused("no whole descriptors", first, Status::INVALID_SGL_SEGMENT);
                }
                let first = SglDescriptor::new(kind, lists, 0xffff_fff0);
                refused("a quarter of a billion", first, Status::INVALID_SGL_COUNT);
            }
        });
    }
    trial.end();
}

#[test]
fn segments_without_end_or_in_wrong_places_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.case("segments", |intruder, _| {
        let (at, lists) = (intruder.data.at.0, intruder.lists.at.0);
        let good = SglDescriptor::new(SGL_DATA_BLOCK, at, LEN);
        let empty = SglDescriptor::new(SGL_DATA_BLOCK, at, 0);
        let itself = SglDescriptor::new(SGL_SEGMENT, lists, 16);
        let mut tried = |what: &str, kind, descriptors: &[SglDescriptor]| {
            let first = segment(intruder, kind, 0, descriptors);
            (what.to_owned(), intruder.io(0, command(READ, first)).status().plain())
        };
        let found = [
            tried("itself for ever", SGL_SEGMENT, &[itself]),
            tried("a last segment that goes on", SGL_LAST_SEGMENT, &[good, itself]),
            tried("a segment that does not go on", SGL_SEGMENT, &[good]),
            tried("a segment in the middle", SGL_SEGMENT, &[itself, good]),
            tried("too much in two", SGL_LAST_SEGMENT, &[good, good]),
            tried("more descriptors than there may be", SGL_LAST_SEGMENT, &[empty; 512]),
            tried("as many as there may be, and no data", SGL_LAST_SEGMENT, &[empty; 511]),
        ];
        let wanted = [
            Status::INVALID_SGL_COUNT,
            Status::INVALID_SGL_SEGMENT,
            Status::INVALID_SGL_SEGMENT,
            Status::INVALID_SGL_COUNT,
            Status::SGL_DATA_LENGTH_INVALID,
            Status::INVALID_SGL_COUNT,
            Status::SGL_DATA_LENGTH_INVALID,
        ];
        for ((what, found), wanted) in found.into_iter().zip(wanted) {
            assert_eq!(found, wanted, "{what}");
        }
        // Two that name each other, with a little data in each.
        let little = SglDescriptor::new(SGL_DATA_BLOCK, at, 1);
        let other = SglDescriptor::new(SGL_SEGMENT, lists + 4096, 32);
        let first = segment(intruder, SGL_SEGMENT, 0, &[little, other]);
        segment(intruder, SGL_SEGMENT, 4096, &[little, first]);
        let status = intruder.io(0, command(READ, first)).status().plain();
        assert_eq!(status, Status::INVALID_SGL_COUNT, "a ring of two");
        // As many as there may be, all of them data.
        let mut all = vec![empty; 511];
        all[510] = good;
        let first = segment(intruder, SGL_LAST_SEGMENT, 0, &all);
        assert!(intruder.io(0, command(READ, first)).status().is_success());
    });
    trial.end();
}

#[test]
fn descriptors_that_are_nowhere_fail_alone_after_a_second() {
    let mut trial = Trial::begin("adaptive");
    for opcode in [READ, WRITE] {
        trial.case(&format!("nowhere, opcode {opcode}"), |intruder, _| {
            let at = intruder.data.at.0;
            let data = |at, len| SglDescriptor::new(SGL_DATA_BLOCK, at, len);
            let half = data(at, LEN / 2);
            let lost_half = segment(intruder, SGL_LAST_SEGMENT, 0, &[half, data(NOWHERE, LEN / 2)]);
            let lost_rest = segment(
                intruder,
                SGL_SEGMENT,
                4096,
                &[half, SglDescriptor::new(SGL_LAST_SEGMENT, NOWHERE, 16)],
            );
            let wraps = u64::MAX - u64::from(LEN) / 2;
            let cases = [
                ("data that is nowhere", data(NOWHERE, LEN)),
                ("data at address zero", data(0, LEN)),
                ("data at the end of all addresses", data(u64::MAX - u64::from(LEN) + 1, LEN)),
                ("data that wraps", data(wraps, LEN)),
                ("data from the last byte on", data(u64::MAX, LEN)),
                ("half of the data", lost_half),
                ("a segment that is nowhere", SglDescriptor::new(SGL_SEGMENT, NOWHERE, 64)),
                ("a last segment that is nowhere", SglDescriptor::new(SGL_LAST_SEGMENT, NOWHERE, 64)),
                ("a segment that wraps", SglDescriptor::new(SGL_SEGMENT, u64::MAX - 31, 64)),
                (
                    "a segment in the last bytes there are",
                    SglDescriptor::new(SGL_LAST_SEGMENT, u64::MAX - 63, 64),
                ),
                ("a segment behind another", lost_rest),
            ];
            let cases = cases.map(|(what, first)| (what, command(opcode, first)));
            fails_alone(intruder, &cases);
        });
    }
    trial.end();
}
