//! Data pointers as commands see them.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::{
    SGL_BIT_BUCKET, SGL_DATA_BLOCK, SGL_KEYED_DATA_BLOCK, SGL_LAST_SEGMENT, SGL_SEGMENT,
    SGL_TRANSPORT_DATA_BLOCK, SglDescriptor,
};
use mdev_protocol::nvme::status::Status;

use super::rig::{Options, Rig, SIZE, read, write};
use crate::store::Store;
use crate::store::held::Held;

/// Fills the data with numbers and the store with what a transfer of them should be.
fn numbered(rig: &Rig) {
    for page in 0..64 {
        rig.fill(page * 4096, 4096, page as u8 + 1);
    }
}

/// What the store has, read by the plainest way.
fn stored(rig: &mut Rig, blocks: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let away = 2 << 20;
    for lba in 0..blocks {
        let at = rig.at(away);
        assert_eq!(rig.run(read(lba.into(), 1, at, 0)), Status::SUCCESS);
        bytes.extend(rig.bytes(away, 512));
    }
    bytes
}

#[test]
fn list_is_followed_in_its_order() {
    let mut rig = Rig::new("mem,size=4M");
    numbered(&rig);
    let at = |page: u64| rig.at(page * 4096);
    rig.list(0, &[at(9), at(8), at(20), at(3)]);
    let (first, list) = (at(5) + 2048, rig.lists.at.0);
    assert_eq!(rig.run(write(0, 36, first, list)), Status::SUCCESS);
    let expected = [(6, 2048), (10, 4096), (9, 4096), (21, 4096), (4, 4096)];
    let expected: Vec<u8> = expected.iter().flat_map(|&(byte, len)| vec![byte; len]).collect();
    assert_eq!(stored(&mut rig, 36), expected);
}

#[test]
fn list_goes_on_where_its_page_ends() {
    let mut rig = Rig::new("mem,size=4M");
    numbered(&rig);
    let at = |page: u64| rig.at(page * 4096);
    let next = rig.lists.at.0 + 2 * 4096;
    // Two entries are left in the first page: the second says where it goes on.
    rig.list(4080, &[at(1), next]);
    rig.list(8192, &[at(2), at(3)]);
    let (first, list) = (at(0), rig.lists.at.0 + 4080);
    assert_eq!(rig.run(write(0, 32, first, list)), Status::SUCCESS);
    let expected: Vec<u8> = (1..5).flat_map(|byte| vec![byte; 4096]).collect();
    assert_eq!(stored(&mut rig, 32), expected);
    // One entry that is the last of its page is an entry where it is the last of the list.
    rig.list(4088, &[next, 0]);
    let (first, list) = (rig.at(5 * 4096) + 4094, rig.lists.at.0 + 4088);
    let misaligned = rig.run(write(0, 16, first, list));
    assert_eq!(misaligned.plain(), Status::PRP_OFFSET_INVALID);
    let first = rig.at(5 * 4096) + 4092;
    assert_eq!(rig.run(write(0, 8, first, next)), Status::SUCCESS);
}

#[test]
fn pointers_that_are_not_where_they_must_be_are_refused() {
    let mut rig = Rig::new("null,size=4M");
    let (at, list) = (rig.at(0), rig.lists.at.0);
    rig.list(0, &[at, at + 512, at]);
    rig.list(4080, &[at, list + 512]);
    let bad = [
        read(0, 1, at + 1, 0),
        read(0, 1, at + 2, 0),
        read(0, 9, at, at + 512),
        read(0, 9, at, at + 4),
        read(0, 32, at, list + 4),
        // A second entry with an offset; a second list with one.
        read(0, 32, at, list),
        read(0, 32, at, list + 4080),
    ];
    for command in bad {
        assert_eq!(rig.run(command).plain(), Status::PRP_OFFSET_INVALID, "{command:x?}");
    }
}

#[test]
fn list_that_names_itself_ends() {
    let mut rig = Rig::new("null,size=4M");
    let list = rig.lists.at.0;
    rig.list(0, &[list; 512]);
    let at = rig.at(0);
    // The last word of the page says that it goes on at its beginning.
    assert_eq!(rig.run(read(0, 2048, at, list + 4088)), Status::SUCCESS);
}

#[test]
fn data_may_lie_where_queues_are() {
    let mut rig = Rig::new("null,size=4M");
    let (queue, data) = (rig.queues[0].part.at.0, rig.at(0));
    assert_eq!(rig.run(read(0, 8, queue, 0)), Status::SUCCESS);
    assert_eq!(rig.run(read(0, 16, data, queue)), Status::SUCCESS);
}

#[test]
fn addresses_that_are_nowhere_fail_the_command() {
    for (first, second, blocks) in
        [(u64::MAX - 3, 0, 8), (!4095, 0, 8), (1 << 20, !4095, 16), (1 << 20, !7, 32)]
    {
        let mut rig = Rig::new("null,size=4M");
        rig.offer(read(0, blocks, first, second));
        rig.poll();
        std::thread::sleep(std::time::Duration::from_millis(35));
        rig.poll();
        let status = rig.reap()[0].status().plain();
        assert!(
            matches!(status, Status::DATA_TRANSFER_ERROR | Status::PRP_OFFSET_INVALID),
            "{first:x} {second:x} {status:?}"
        );
    }
}

fn with_sgl(command: Command, descriptor: SglDescriptor) -> Command {
    Command { cdw0: command.cdw0 | 1 << 14, dptr: descriptor.pointer(), ..command }
}

/// Writes descriptors to the list pages.
fn segment(rig: &Rig, offset: usize, descriptors: &[SglDescriptor]) {
    let words: Vec<u64> = descriptors.iter().flat_map(|descriptor| descriptor.pointer()).collect();
    rig.list(offset, &words);
}

#[test]
fn data_blocks_and_segments_are_followed() {
    let mut rig = Rig::new("mem,size=4M");
    numbered(&rig);
    let at = rig.at(0);
    let block = |page: u64, len| SglDescriptor::new(SGL_DATA_BLOCK, at + page * 4096 + 1, len);
    let one = with_sgl(write(0, 1, 0, 0), block(7, 512));
    assert_eq!(rig.run(one), Status::SUCCESS);
    assert_eq!(stored(&mut rig, 1), [8; 512]);
    let list = rig.lists.at.0;
    let last = SglDescriptor::new(SGL_LAST_SEGMENT, list + 4096, 32);
    segment(&rig, 0, &[block(0, 100), block(1, 0), block(2, 412), last]);
    segment(&rig, 4096, &[block(3, 1), block(4, 511)]);
    let several = with_sgl(write(0, 2, 0, 0), SglDescriptor::new(SGL_SEGMENT, list, 64));
    assert_eq!(rig.run(several), Status::SUCCESS);
    let expected = [(1, 100), (3, 412), (4, 1), (5, 511)];
    let expected: Vec<u8> = expected.iter().flat_map(|&(byte, len)| vec![byte; len]).collect();
    assert_eq!(stored(&mut rig, 2), expected);
}

#[test]
fn descriptors_that_make_no_sense_are_refused_with_their_reason() {
    let mut rig = Rig::new("null,size=4M");
    let (at, list) = (rig.at(0), rig.lists.at.0);
    let data = |len| SglDescriptor::new(SGL_DATA_BLOCK, at, len);
    let to = |kind, len| SglDescriptor::new(kind, list, len);
    let run = |rig: &mut Rig, first: SglDescriptor, descriptors: &[SglDescriptor]| {
        segment(rig, 0, descriptors);
        let status = rig.run(with_sgl(read(0, 1, 0, 0), first));
        assert!(status.is_success() || status.is_final());
        status.plain()
    };
    for kind in [SGL_KEYED_DATA_BLOCK, SGL_TRANSPORT_DATA_BLOCK, 6, 15] {
        let odd = SglDescriptor::new(kind, at, 512);
        assert_eq!(run(&mut rig, odd, &[]), Status::SGL_TYPE_INVALID);
        assert_eq!(run(&mut rig, to(SGL_LAST_SEGMENT, 16), &[odd]), Status::SGL_TYPE_INVALID);
    }
    let mut offset = data(512);
    offset.identifier |= 1;
    assert_eq!(run(&mut rig, offset, &[]), Status::SGL_TYPE_INVALID);
    for len in [0, 1, 511, 513, u32::MAX] {
        assert_eq!(run(&mut rig, data(len), &[]), Status::SGL_DATA_LENGTH_INVALID);
    }
    let last = |len| to(SGL_LAST_SEGMENT, len);
    assert_eq!(run(&mut rig, last(32), &[data(512), data(1)]), Status::SGL_DATA_LENGTH_INVALID);
    assert_eq!(run(&mut rig, last(32), &[data(u32::MAX), data(513)]), Status::SGL_DATA_LENGTH_INVALID);
    for len in [0, 8, 17] {
        assert_eq!(run(&mut rig, last(len), &[data(512)]), Status::INVALID_SGL_SEGMENT);
        assert_eq!(run(&mut rig, to(SGL_SEGMENT, len), &[data(512)]), Status::INVALID_SGL_SEGMENT);
    }
    // A segment in a last one; not at the end of its segment; a segment that does not go on.
    assert_eq!(run(&mut rig, last(32), &[data(512), last(16)]), Status::INVALID_SGL_SEGMENT);
    let middle = [last(16), data(512)];
    assert_eq!(run(&mut rig, to(SGL_SEGMENT, 32), &middle), Status::INVALID_SGL_COUNT);
    assert_eq!(run(&mut rig, to(SGL_SEGMENT, 16), &[data(512)]), Status::INVALID_SGL_SEGMENT);
    // One that names itself.
    let own = to(SGL_SEGMENT, 16);
    assert_eq!(run(&mut rig, own, &[own]), Status::INVALID_SGL_COUNT);
    assert_eq!(run(&mut rig, last(!15), &[data(512)]), Status::INVALID_SGL_COUNT);
    assert_eq!(run(&mut rig, last(16), &[data(512)]), Status::SUCCESS);
}

/// What a read of two blocks that are all fives leaves of a page of sevens, and what it finds in the bucket's place.
fn read_with_buckets(mut rig: Rig, mut run: impl FnMut(&mut Rig, Command) -> Status) {
    let (at, list) = (rig.at(0), rig.lists.at.0);
    rig.fill(4096, 4096, 7);
    let data = |offset, len| SglDescriptor::new(SGL_DATA_BLOCK, at + 4096 + offset, len);
    // Its address means nothing.
    let bucket = |len| SglDescriptor::new(SGL_BIT_BUCKET, u64::MAX, len);
    segment(&rig, 0, &[bucket(24), data(0, 100), bucket(0), bucket(400), data(500, 500)]);
    let several = SglDescriptor::new(SGL_LAST_SEGMENT, list, 80);
    assert_eq!(run(&mut rig, with_sgl(read(0, 2, 0, 0), several)), Status::SUCCESS);
    let bytes = rig.bytes(4096, 4096);
    let expected = |index: usize| if index < 100 || (500..1000).contains(&index) { 5 } else { 7 };
    assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == expected(index)));
    // Nothing is wanted at all.
    assert_eq!(run(&mut rig, with_sgl(read(0, 2, 0, 0), bucket(1024))), Status::SUCCESS);
    assert_eq!(rig.bytes(4096, 4096), bytes);
    for len in [1023, 1025, u32::MAX] {
        let wrong = with_sgl(read(0, 2, 0, 0), bucket(len));
        assert_eq!(run(&mut rig, wrong).plain(), Status::SGL_DATA_LENGTH_INVALID);
    }
    // What comes from the host is not counted by them.
    segment(&rig, 0, &[data(0, 512), bucket(u32::MAX), data(512, 512)]);
    let written = with_sgl(write(4, 2, 0, 0), SglDescriptor::new(SGL_LAST_SEGMENT, list, 48));
    assert_eq!(run(&mut rig, written), Status::SUCCESS);
    let first = with_sgl(read(4, 2, 0, 0), SglDescriptor::new(SGL_DATA_BLOCK, at, 1024));
    assert_eq!(run(&mut rig, first), Status::SUCCESS);
    assert_eq!(rig.bytes(0, 1024), bytes[..1024]);
    assert_eq!(rig.ioas.pins(), 0);
}

#[test]
fn bit_buckets_take_what_is_not_wanted_from_a_store_that_needs_no_time() {
    let mut rig = Rig::new("mem,size=4M");
    rig.fill(0, 1024, 5);
    let at = rig.at(0);
    assert_eq!(rig.run(write(0, 2, at, 0)), Status::SUCCESS);
    read_with_buckets(rig, |rig, command| rig.run(command));
}

#[test]
fn bit_buckets_take_what_is_not_wanted_from_a_store_that_takes_its_time() {
    let held = Held::new([vec![5; 1024], vec![0; SIZE as usize - 1024]].concat());
    let rig = Rig::on(Store::Held(held.clone()), Options::default());
    read_with_buckets(rig, |rig, command| {
        rig.offer(command);
        rig.poll();
        held.finish_all();
        rig.poll();
        rig.reap()[0].status()
    });
}

#[test]
fn segments_longer_than_what_is_read_at_once_are_read_on() {
    let mut rig = Rig::new("mem,size=4M");
    numbered(&rig);
    let at = rig.at(0);
    let blocks: Vec<_> =
        (0..256u64).map(|index| SglDescriptor::new(SGL_DATA_BLOCK, at + index % 64 * 4096, 16)).collect();
    segment(&rig, 0, &blocks);
    let command = with_sgl(write(0, 8, 0, 0), SglDescriptor::new(SGL_LAST_SEGMENT, rig.lists.at.0, 4096));
    assert_eq!(rig.run(command), Status::SUCCESS);
    let expected: Vec<u8> = (0..256u32).flat_map(|index| [(index % 64) as u8 + 1; 16]).collect();
    assert_eq!(stored(&mut rig, 8), expected);
}
