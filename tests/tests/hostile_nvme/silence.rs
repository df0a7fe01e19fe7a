//! Memory that a client lends without a descriptor, and of which it then says nothing, reads nothing, or lends so little at a time that
//! each command becomes as many messages as it can.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::data::{SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SglDescriptor};
use mdev_protocol::nvme::opcode::admin::{ABORT, DELETE_CQ, DELETE_SQ};
use mdev_protocol::nvme::opcode::nvm::{COMPARE, READ, WRITE};
use mdev_protocol::nvme::register::CC;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{Data, DmaReply, RegionWrite, Request};
use mdev_tests::stage::await_that;

use super::house::{IN_FILE, IN_MEMORY, PAIRS};
use super::intruder::{BAR0, ENTRIES, Intruder, PAGE, transfer};
use super::line::{LENT_AT, LOST, Line, REPLY, lend, lend_in, load, must_work, page};
use super::trial::Trial;

/// Messages that a device may send without an answer.
const MOST: usize = 64;
/// Longer than the device waits for an answer.
const LATE: Duration = Duration::from_secs(12);
/// Until the device has asked something.
const MOMENT: Duration = Duration::from_millis(5);

#[test]
fn client_that_never_answers_loses_its_commands_and_is_not_asked_for_ever() {
    let mut trial = Trial::begin("adaptive");
    trial.case("no answer for three queues", |intruder, _| {
        let mut line = lend(intruder);
        // The device knows how the client answers.
        must_work(intruder, &mut line, "at the beginning");
        intruder.create_pairs(3);
        let each = ENTRIES - 1;
        for (ring, opcode, nsid) in [(0, WRITE, IN_MEMORY), (1, READ, IN_MEMORY), (2, READ, IN_FILE)] {
            load(intruder, ring, opcode, nsid, each);
        }
        let (began, mut ended, mut asked) = (Instant::now(), Vec::new(), Vec::new());
        while ended.len() < 3 * each as usize {
            asked.extend(std::iter::from_fn(|| line.asked()));
            ended.extend((0..3).flat_map(|ring| intruder.reap(ring)));
            assert!(began.elapsed() < LATE, "only {} commands have ended", ended.len());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(ended.iter().all(|ended| ended.status().plain() == LOST));
        assert!(asked.len() <= MOST, "{} messages without an answer", asked.len());
        // It thinks better of it.
        asked.iter().for_each(|asked| line.say(&asked.filled(1)));
        must_work(intruder, &mut line, "when all is answered");
    });
    trial.end();
}

#[test]
fn nothing_that_a_client_asks_for_waits_for_its_answers() {
    let mut trial = Trial::begin("adaptive");
    for opcode in [WRITE, COMPARE] {
        trial.case(&format!("no answer, and an abort of opcode {opcode}"), |intruder, _| {
            let mut line = lend(intruder);
            let began = Instant::now();
            let cid = intruder.submit(0, page(opcode));
            let asked = line.await_asked();
            let abort = Command { cdw10: u32::from(cid) << 16 | 1, ..Command::new(ABORT, 0, 0) };
            assert_eq!(intruder.admin(abort).dw0, 0, "it is aborted");
            let ended = intruder.await_io(0, 1);
            assert_eq!((ended[0].cid, ended[0].status().plain()), (cid, Status::ABORT_REQUESTED));
            assert!(began.elapsed() < REPLY);
            line.say(&asked.filled(1));
            must_work(intruder, &mut line, "after an abort");
        });
    }
    for (opcode, nsid) in [(READ, IN_MEMORY), (WRITE, IN_FILE)] {
        let what = |what| format!("no answer to opcode {opcode}, and {what}");
        trial.case(&what("an unmap"), |intruder, _| {
            let mut line = lend(intruder);
            load(intruder, 0, opcode, nsid, ENTRIES - 1);
            let asked = line.await_asked();
            line.unmap();
            let ended = intruder.await_io(0, ENTRIES as usize - 1);
            assert!(ended.iter().all(|ended| !ended.status().is_success()));
            line.say(&asked.truth());
        });
        trial.case(&what("a reset"), |intruder, _| {
            let mut line = lend(intruder);
            load(intruder, 0, opcode, nsid, ENTRIES - 1);
            std::thread::sleep(MOMENT);
            line.call(&Request::DeviceReset);
        });
        trial.case(&what("CC.EN cleared"), |intruder, _| {
            let mut line = lend(intruder);
            load(intruder, 0, opcode, nsid, ENTRIES - 1);
            std::thread::sleep(MOMENT);
            let data = Data::new(&[0; 4]).expect("it fits");
            line.call(&Request::RegionWrite(RegionWrite { offset: CC.into(), region: BAR0, data }));
        });
        trial.case(&what("the queues deleted"), |intruder, _| {
            let mut line = lend(intruder);
            load(intruder, 0, opcode, nsid, ENTRIES - 1);
            std::thread::sleep(MOMENT);
            let began = Instant::now();
            assert!(intruder.delete(DELETE_SQ, 1).is_success());
            assert!(intruder.delete(DELETE_CQ, 1).is_success());
            assert!(began.elapsed() < REPLY, "{:?}", began.elapsed());
            // It has not been for nothing.
            line.await_asked();
        });
    }
    trial.end();
}

#[test]
fn queues_whose_client_does_not_answer_are_a_fatal_status() {
    let mut trial = Trial::begin("adaptive");
    trial.case("queues without an answer", |intruder, _| {
        let mut line = lend(intruder);
        assert!(intruder.create_completion(2, ENTRIES, LENT_AT).is_success());
        assert!(intruder.create_submission(2, ENTRIES, LENT_AT + PAGE, 2).is_success());
        let began = Instant::now();
        intruder.bell(2, false, 5);
        await_that("CSTS.CFS", || line.is_fatal());
        assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
    });
    let admin = |intruder: &mut Intruder| {
        let line = lend(intruder);
        intruder.enable_with(16, [LENT_AT, LENT_AT + PAGE]);
        intruder.bell(0, false, 3);
        line
    };
    trial.case("an admin queue without an answer, and a reset", |intruder, _| {
        let mut line = admin(intruder);
        line.await_asked();
        line.call(&Request::DeviceReset);
    });
    trial.case("an admin queue whose entries are refused", |intruder, _| {
        let mut line = admin(intruder);
        let asked = line.await_asked();
        line.say(&asked.reply(&DmaReply::Failed(14)));
        await_that("CSTS.CFS", || line.is_fatal());
    });
    trial.case("an admin queue of nonsense", |intruder, _| {
        let mut line = admin(intruder);
        // Its commands end, and their completions are fetched by somebody who refuses them.
        let refuses_writes = |line: &mut Line| {
            while let Some(asked) = line.asked() {
                let failed = DmaReply::Failed(14);
                line.say(&if asked.reads() { asked.filled(0xff) } else { asked.reply(&failed) });
            }
        };
        await_that("CSTS.CFS", || {
            refuses_writes(&mut line);
            line.is_fatal()
        });
    });
    trial.end();
}

/// One megabyte from there or to there, in one block of data.
fn megabyte(opcode: u8) -> Command {
    let command = transfer(opcode, SglDescriptor::new(SGL_DATA_BLOCK, LENT_AT, 1 << 20).pointer(), 2048);
    Command { cdw0: command.cdw0 | 1 << 14, ..command }
}

#[test]
fn client_that_reads_nothing_holds_nobody() {
    let mut trial = Trial::begin("adaptive");
    trial.case("more than the socket holds, and read at last", |intruder, _| {
        let mut line = lend(intruder);
        must_work(intruder, &mut line, "at the beginning");
        for _ in 0..2 {
            intruder.submit(0, megabyte(READ));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(intruder.reap(0).is_empty());
        let mut ended = Vec::new();
        await_that("the end of both", || {
            while let Some(asked) = line.asked() {
                line.say(&asked.truth());
            }
            ended.extend(intruder.reap(0));
            ended.len() == 2
        });
        assert!(ended.iter().all(|ended| ended.status().is_success()));
    });
    trial.hit("more than the socket holds, and gone", |house| {
        for _ in 0..5 {
            let mut intruder = Intruder::at_work(&house.target(), 1);
            let mut line = lend(&mut intruder);
            must_work(&mut intruder, &mut line, "at the beginning");
            for _ in 0..4 {
                intruder.submit(0, megabyte(READ));
            }
            std::thread::sleep(MOMENT);
        }
    });
    trial.end();
}

/// A block of single bytes.
fn bytes_one_by_one(intruder: &Intruder) -> Command {
    let list = intruder.lists.slice().expect("a part");
    // Of 512 descriptors one is that of the list, and so the last block has two bytes.
    for number in 0..511u32 {
        let bytes = 1 + number / 510;
        let byte = SglDescriptor::new(SGL_DATA_BLOCK, LENT_AT + u64::from(number) * 8, bytes);
        list.write(number as usize * 16, byte).expect("room");
    }
    let first = SglDescriptor::new(SGL_LAST_SEGMENT, intruder.lists.at.0, 511 * 16);
    let command = transfer(WRITE, first.pointer(), 1);
    Command { cdw0: command.cdw0 | 1 << 14, ..command }
}

/// As many commands as there can be, each of them of as many messages as can be, and not one answer.
fn ask_for_too_much(intruder: &mut Intruder) {
    let mut line = lend(intruder);
    must_work(intruder, &mut line, "at the beginning");
    intruder.create_pairs(PAIRS.into());
    let command = bytes_one_by_one(intruder);
    for ring in 0..usize::from(PAIRS) {
        for _ in 0..ENTRIES - 1 {
            intruder.rings[ring].push(&command);
        }
    }
    (0..usize::from(PAIRS)).for_each(|ring| intruder.ring(ring));
    // Those that wait for the client are not of all queues. The others fail: there is no room for what they ask.
    let most = (ENTRIES as usize - 1) * usize::from(PAIRS);
    let mut ended = reap_all(intruder);
    await_that("most of the commands fail", || {
        ended.extend(reap_all(intruder));
        ended.len() > most / 2
    });
    line.unmap();
    await_that("the end of all", || {
        ended.extend(reap_all(intruder));
        ended.len() == most
    });
    assert!(ended.iter().all(|ended| ended.status().plain() == LOST));
}

fn reap_all(intruder: &mut Intruder) -> Vec<Completion> {
    (0..usize::from(PAIRS)).flat_map(|ring| intruder.reap(ring)).collect()
}

/// Megabytes on all queues, each of them from pieces of a page.
fn ask_for_pages(intruder: &mut Intruder) {
    let mut line = lend_in(intruder, PAGE);
    must_work(intruder, &mut line, "at the beginning");
    intruder.create_pairs(PAIRS.into());
    for opcode in [READ, WRITE] {
        for ring in 0..usize::from(PAIRS) {
            for _ in 0..2 {
                intruder.submit(ring, megabyte(opcode));
            }
        }
        let mut ended = Vec::new();
        await_that("the end of all", || {
            while let Some(asked) = line.asked() {
                line.say(&asked.truth());
            }
            ended.extend(reap_all(intruder));
            ended.len() == 2 * usize::from(PAIRS)
        });
        assert!(ended.iter().all(|ended| ended.status().is_success()));
    }
}

#[test]
fn as_many_pieces_as_there_can_be_hold_nobody() {
    let mut trial = Trial::begin("adaptive");
    for (what, attack) in [
        ("lists of single bytes without an answer", ask_for_too_much as fn(&mut Intruder)),
        ("a thousand maps of one page", ask_for_pages),
    ] {
        trial.accustom(what, attack);
        trial.case(what, |intruder, _| attack(intruder));
    }
    trial.end();
}
