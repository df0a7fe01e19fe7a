//! Memory that a client lends without a descriptor, and then lies about, answers for twice, too late, in any order, or in the middle of
//! which it leaves.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm::{COMPARE, READ, WRITE};
use mdev_protocol::vfio_user::{
    Command as Message, Data, DmaLayout, DmaReadDone, DmaReply, DmaWriteDone, Header, Request,
};
use mdev_tests::random::Random;
use mdev_tests::stage::await_that;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes;

use super::house::{IN_FILE, IN_MEMORY};
use super::intruder::{ENTRIES, Intruder};
use super::line::{
    Asked, LENT_AT, LOST, Line, TRUE, ends, lend, load, must_work, page, page_of, read, stored, written,
};
use super::maps::memfd;
use super::trial::Trial;

/// What is said instead of the truth.
type Lie = fn(&Asked) -> Vec<u8>;

/// The answer that only a client of the other layout gives.
fn narrow(asked: &Asked) -> Vec<u8> {
    let data = Data::new(&vec![TRUE; asked.count as usize]).expect("it fits");
    let done = DmaReadDone { address: asked.address, data, layout: DmaLayout::Narrow };
    asked.reply(&DmaReply::DmaRead(done))
}

const LIES: [(&str, Lie); 15] = [
    ("an error", |asked| asked.reply(&DmaReply::Failed(14))),
    ("an error that is none", |asked| asked.reply(&DmaReply::Failed(0))),
    ("an error that is no errno", |asked| asked.reply(&DmaReply::Failed(u32::MAX))),
    ("an error, and the data all the same", |asked| {
        asked.raw(asked.header.failure(5), &asked.truth()[Header::LEN..])
    }),
    ("another address", |asked| asked.reply(&read(asked.address ^ 4096, asked.count, TRUE))),
    ("too little", |asked| asked.reply(&read(asked.address, asked.count - 1, TRUE))),
    ("too much", |asked| asked.reply(&read(asked.address, asked.count + 1, TRUE))),
    ("a whole megabyte", |asked| asked.reply(&read(asked.address, 1 << 20, TRUE))),
    ("nothing", |asked| asked.raw(asked.header.reply(0), &[])),
    ("half an address", |asked| asked.raw(asked.header.reply(0), &[0; 4])),
    ("a count of what does not come", |asked| counted(asked, 4096, 0)),
    ("all that there can be", |asked| counted(asked, u64::MAX, 4096)),
    ("a count of nothing", |asked| counted(asked, 0, 4096)),
    ("a count of 4 GiB", |asked| counted(asked, 1 << 32, 4096)),
    ("the answer to something else", |asked| {
        let header = Header { command: Message::DmaWrite.id(), ..asked.header };
        written(asked.address, asked.count).to_bytes(&header)
    }),
];

/// An answer with a count that is not that of its bytes.
fn counted(asked: &Asked, count: u64, bytes: usize) -> Vec<u8> {
    let (address, count) = (asked.address.to_ne_bytes(), count.to_ne_bytes());
    asked.raw(asked.header.reply(0), &[address.as_slice(), &count, &vec![1; bytes]].concat())
}

#[test]
fn lies_about_what_is_read_fail_their_command_and_nothing_else() {
    for mode in ["adaptive", "busy"] {
        let mut trial = Trial::begin(mode);
        for (what, lie) in LIES {
            trial.case(what, |intruder, _| {
                let mut line = lend(intruder);
                // While nobody knows the client's layout, and when the device does.
                for _ in 0..2 {
                    for (opcode, nsid) in [(WRITE, IN_MEMORY), (COMPARE, IN_FILE)] {
                        intruder.submit(0, Command { nsid, ..page(opcode) });
                        let asked = line.await_asked();
                        assert!(asked.reads() && asked.address == LENT_AT);
                        line.say(&lie(&asked));
                        assert_eq!(ends(intruder, &mut line).plain(), LOST, "{what}");
                    }
                    must_work(intruder, &mut line, what);
                }
            });
        }
        trial.end();
    }
}

#[test]
fn lies_about_what_is_written_fail_their_command_and_nothing_else() {
    let lies: [(&str, Lie); 8] = [
        ("an error", |asked| asked.reply(&DmaReply::Failed(28))),
        ("another address", |asked| asked.reply(&written(asked.address + 1, asked.count))),
        ("less", |asked| asked.reply(&written(asked.address, asked.count - 1))),
        ("nothing of it", |asked| asked.reply(&written(asked.address, 0))),
        ("more", |asked| asked.reply(&written(asked.address, u64::MAX))),
        ("half an answer", |asked| asked.raw(asked.header.reply(0), &[0; 8])),
        ("all that was written", |asked| asked.raw(asked.header.reply(0), &asked.data)),
        ("the answer to a read", |asked| {
            let header = Header { command: Message::DmaRead.id(), ..asked.header };
            read(asked.address, asked.count, TRUE).to_bytes(&header)
        }),
    ];
    let mut trial = Trial::begin("adaptive");
    for (what, lie) in lies {
        trial.case(what, |intruder, _| {
            let mut line = lend(intruder);
            for _ in 0..2 {
                for nsid in [IN_MEMORY, IN_FILE] {
                    intruder.submit(0, Command { nsid, ..page(READ) });
                    let asked = line.await_asked();
                    assert!(!asked.reads() && asked.address == LENT_AT);
                    line.say(&lie(&asked));
                    assert_eq!(ends(intruder, &mut line).plain(), LOST, "{what}");
                }
                must_work(intruder, &mut line, what);
            }
        });
    }
    trial.end();
}

#[test]
fn lies_about_the_layout_fail_their_command() {
    let mut trial = Trial::begin("adaptive");
    trial.case("data in the layout of another client", |intruder, _| {
        let mut line = lend(intruder);
        must_work(intruder, &mut line, "at the beginning");
        intruder.submit(0, page(WRITE));
        let asked = line.await_asked();
        line.say(&narrow(&asked));
        assert_eq!(ends(intruder, &mut line).plain(), LOST);
        must_work(intruder, &mut line, "in its own layout");
    });
    trial.case("the other way round", |intruder, _| {
        let mut line = lend(intruder);
        for lies in [false, true] {
            intruder.submit(0, page(WRITE));
            let asked = line.await_asked();
            line.say(&if lies { asked.truth() } else { narrow(&asked) });
            assert_eq!(ends(intruder, &mut line).is_success(), !lies);
        }
    });
    // What can be both is asked for again, one byte of it.
    let lies: [(&str, Lie); 5] = [
        ("an error", |asked| asked.reply(&DmaReply::Failed(14))),
        ("another byte", |asked| asked.reply(&read(asked.address + 1, 1, TRUE))),
        ("two bytes", |asked| asked.reply(&read(asked.address, 2, TRUE))),
        ("no byte", |asked| asked.reply(&read(asked.address, 0, TRUE))),
        ("nothing", |asked| asked.raw(asked.header.reply(0), &[])),
    ];
    trial.case("data that can be of both", |intruder, _| {
        for (what, lie) in lies {
            let mut line = lend(intruder);
            intruder.submit(0, page(WRITE));
            let asked = line.await_asked();
            let mut data = vec![TRUE; asked.count as usize];
            data[..4].fill(0);
            data[4092..].fill(0);
            let data = Data::new(&data).expect("it fits");
            let done = DmaReadDone { address: asked.address, data, layout: DmaLayout::Specified };
            line.say(&asked.reply(&DmaReply::DmaRead(done)));
            let asked = line.await_asked();
            assert_eq!(asked.count, 1, "{what}");
            line.say(&lie(&asked));
            assert_eq!(ends(intruder, &mut line).plain(), LOST, "{what}");
            line.unmap();
        }
    });
    trial.case("a client that is of one layout, and of the other", |intruder, _| {
        let mut line = lend(intruder);
        intruder.submit(0, page(READ));
        // To a header alone the same comes in the other layout; now the client is of the first.
        let asked = line.await_asked();
        line.say(&asked.reply(&DmaReply::DmaWrite(DmaWriteDone::Silent)));
        let again = line.await_asked();
        assert!(!again.reads() && again.address == asked.address);
        line.say(&again.reply(&written(again.address, again.count)));
        let _ = ends(intruder, &mut line);
    });
    trial.end();
}

#[test]
fn second_answers_and_answers_to_nothing_are_left_out() {
    let mut trial = Trial::begin("adaptive");
    trial.case("answers that come twice", |intruder, _| {
        let mut line = lend(intruder);
        for (opcode, second) in [(WRITE, TRUE), (READ, TRUE), (WRITE, 1), (COMPARE, 1)] {
            intruder.submit(0, page(opcode));
            let asked = line.await_asked();
            line.say(&[asked.truth(), asked.filled(second).repeat(50)].concat());
            assert!(ends(intruder, &mut line).is_success());
            assert!(intruder.reap(0).is_empty(), "it ends once");
        }
        assert_eq!(stored(intruder, 0), TRUE, "the first answer counts");
    });
    let mut random = Random::seeded("lenders");
    trial.case("2000 answers to nothing, and while one is waited for", |intruder, _| {
        let mut line = lend(intruder);
        for waits in [false, true] {
            let asked = waits.then(|| {
                intruder.submit(0, page(WRITE));
                line.await_asked()
            });
            for _ in 0..1000 {
                let command = *random.of(&[Message::DmaRead, Message::DmaWrite]);
                let mut body = vec![0; random.below(64) as usize];
                random.fill(&mut body);
                let mut header = Header::command(random.number() as u16, command.id(), body.len(), false);
                if asked.as_ref().is_some_and(|asked| asked.header.id == header.id) {
                    header.id ^= 1 << 15;
                }
                line.say(
                    &[Header { size: header.size, ..header.reply(body.len()) }.as_bytes(), &body].concat(),
                );
            }
            if let Some(asked) = asked {
                assert!(intruder.reap(0).is_empty(), "nothing has been answered");
                line.say(&asked.truth());
                assert!(ends(intruder, &mut line).is_success());
            }
        }
        must_work(intruder, &mut line, "after all that");
    });
    trial.case("messages that are no answers", |intruder, _| {
        let mut line = lend(intruder);
        intruder.submit(0, page(WRITE));
        let asked = line.await_asked();
        for number in 0..1000 {
            // Of no direction, the device's own question, and what every client may ask.
            let info = [16u32, 0, 0, 0].map(u32::to_ne_bytes).concat();
            line.say(&match number % 3 {
                0 => asked.raw(Header { flags: 2 + number % 14, ..asked.header.reply(0) }, &[0; 16]),
                1 => asked.raw(asked.header, &[0; 16]),
                _ => asked.raw(Header::command(asked.header.id, 4, 0, false), &info),
            });
            // Their replies are left out.
            while line.asked().is_some() {}
        }
        assert!(intruder.reap(0).is_empty(), "nothing has been answered");
        line.say(&asked.truth());
        assert!(ends(intruder, &mut line).is_success());
        must_work(intruder, &mut line, "after all that");
    });
    trial.end();
}

#[test]
fn descriptors_that_come_with_an_answer_are_closed() {
    let mut trial = Trial::begin("adaptive");
    trial.case("answers with descriptors", |intruder, _| {
        let mut line = lend(intruder);
        let file = memfd(4096);
        for count in [1, 8] {
            intruder.submit(0, page(WRITE));
            let truth = line.await_asked().truth();
            let fds = vec![file.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let socket = intruder.client.as_fd();
            let sent = sendmsg(socket, &[IoSlice::new(&truth)], &mut control, SendFlags::NOSIGNAL);
            line.say(&truth[sent.expect("room")..]);
            assert_eq!(ends(intruder, &mut line).plain(), LOST);
        }
        must_work(intruder, &mut line, "without descriptors");
    });
    trial.end();
}

/// All that is asked until nothing more comes.
fn gather(line: &mut Line, count: usize) -> Vec<Asked> {
    let mut asked = Vec::new();
    await_that("the commands of the device", || {
        asked.extend(std::iter::from_fn(|| line.asked()));
        asked.len() == count
    });
    asked
}

#[test]
fn answers_in_any_order_arrive_where_they_belong() {
    let mut trial = Trial::begin("adaptive");
    let mut random = Random::seeded("answers in any order");
    for round in 0..4u8 {
        trial.case(&format!("answers in any order, round {round}"), |intruder, _| {
            let mut line = lend(intruder);
            must_work(intruder, &mut line, "at the beginning");
            let count = ENTRIES - 1;
            load(intruder, 0, WRITE, IN_MEMORY, count);
            let mut asked = gather(&mut line, count as usize);
            let byte = |page: u64| (page as u8).wrapping_add(round * 64) | 1;
            while !asked.is_empty() {
                let one = asked.swap_remove(random.below(asked.len() as u64) as usize);
                line.say(&one.filled(byte((one.address - LENT_AT) / 4096)));
            }
            assert!(intruder.await_io(0, count as usize).iter().all(|ended| ended.status().is_success()));
            for number in 0..count {
                assert_eq!(stored(intruder, number), byte(number.into()), "page {number}");
            }
        });
    }
    trial.end();
}

#[test]
fn answers_after_an_unmap_or_a_reset_are_left_out() {
    let mut trial = Trial::begin("adaptive");
    let count = ENTRIES / 2;
    for known in [false, true] {
        trial.case(&format!("answers after an unmap, layout known: {known}"), |intruder, _| {
            let mut line = lend(intruder);
            if known {
                must_work(intruder, &mut line, "at the beginning");
            }
            load(intruder, 0, WRITE, IN_MEMORY, count);
            let late = gather(&mut line, if known { count as usize } else { 1 });
            line.unmap();
            let ended = intruder.await_io(0, count as usize);
            assert!(ended.iter().all(|ended| !ended.status().is_success()));
            // The same addresses again: what was asked for the first of them is not for these.
            let mut line = lend(intruder);
            intruder.submit(0, page_of(WRITE, 1));
            for late in &late {
                line.say(&late.filled(1));
            }
            assert!(ends(intruder, &mut line).is_success());
            assert_eq!(stored(intruder, 1), TRUE);
            must_work(intruder, &mut line, "when all is answered");
        });
        trial.case(&format!("answers after a reset, layout known: {known}"), |intruder, _| {
            let mut line = lend(intruder);
            if known {
                must_work(intruder, &mut line, "at the beginning");
            }
            load(intruder, 0, WRITE, IN_MEMORY, count);
            let late = gather(&mut line, if known { count as usize } else { 1 });
            line.call(&Request::DeviceReset);
            for late in &late {
                line.say(&late.filled(1));
            }
            intruder.must_recover("a reset");
            intruder.submit(0, page_of(WRITE, 1));
            assert!(ends(intruder, &mut line).is_success());
            assert_eq!(stored(intruder, 1), TRUE);
        });
    }
    trial.end();
}

#[test]
fn client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("30 clients that leave", |house| {
        for round in 0..30 {
            let mut intruder = Intruder::at_work(&house.target(), 1);
            let mut line = lend(&mut intruder);
            let (opcode, nsid) = [(WRITE, IN_FILE), (READ, IN_FILE), (READ, IN_MEMORY)][round % 3];
            load(&mut intruder, 0, opcode, nsid, ENTRIES - 1);
            for _ in 0..round % 4 {
                let truth = line.await_asked().truth();
                // The last of them in the middle of a message, or of its header.
                let end = [truth.len(), truth.len() - 1, truth.len(), Header::LEN - 3][round % 4];
                line.say(&truth[..end]);
                if end < truth.len() {
                    break;
                }
            }
        }
    });
    trial.end();
}
