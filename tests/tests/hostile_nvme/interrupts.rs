//! Interrupts.

use std::os::fd::{AsFd, BorrowedFd};

use mdev_protocol::vfio_user::{IrqAction, IrqData, SetIrqs};
use mdevd::sys::EventFd;
use rustix::io::Errno;

use super::framing::{Raw, errno};
use super::house::PAIRS;
use super::intruder::{Intruder, creation, refused, transfer};
use super::maps::memfd;
use super::trial::Trial;

const INTX: u32 = 0;
const MSIX: u32 = 2;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn interrupts_that_are_not_there_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("rubbish", |house| {
        let mut raw = Raw::agreed(&house.target());
        // argsz, flags, index, start, count
        for (what, set) in [
            ("no action", [20, 1, MSIX, 0, 1]),
            ("two actions", [20, 1 | 8 | 16, MSIX, 0, 1]),
            ("no data", [20, 32, MSIX, 0, 1]),
            ("two kinds of data", [20, 1 | 2 | 32, MSIX, 0, 1]),
            ("unknown flags", [20, 1 | 32 | 64, MSIX, 0, 1]),
            ("an argsz of nothing", [0, 1 | 32, MSIX, 0, 0]),
            ("a kind that is not there", [20, 1 | 32, 5, 0, 0]),
            ("the last kind", [20, 1 | 32, u32::MAX, 0, 0]),
            ("one vector too many", [20, 4 | 32, MSIX, 0, u32::from(PAIRS) + 2]),
            ("a vector behind the last", [20, 4 | 32, MSIX, u32::from(PAIRS) + 1, 1]),
            ("vectors that wrap", [20, 4 | 32, MSIX, u32::MAX, 2]),
            ("all vectors", [20, 4 | 32, MSIX, 0, u32::MAX]),
            ("MSI, which it does not have", [20, 4 | 32, 1, 0, 1]),
            ("no vector, with eventfds", [20, 4 | 32, MSIX, 0, 0]),
            ("two pins", [20, 4 | 32, INTX, 0, 2]),
            ("bytes that are not there", [20, 2 | 32, MSIX, 0, 4]),
        ] {
            assert_eq!(raw.asks(8, &words(&set)), errno(Errno::INVAL), "{what}");
        }
        for (what, set) in [
            ("a trigger by the client", vec![20, 1 | 32, MSIX, 0, 1]),
            ("masked vectors", vec![20, 1 | 8, MSIX, 0, 1]),
            ("a mask by eventfd", vec![20, 4 | 8, INTX, 0, 1]),
        ] {
            let answer = raw.asks(8, &words(&set));
            assert!(answer.is_err(), "{what}: {answer:?}");
        }
        raw.must_work("after rubbish");
    });
    trial.hit("descriptors that are no eventfds, too few or too many", |house| {
        let mut raw = Raw::agreed(&house.target());
        let (pipe, _other) = rustix::pipe::pipe().expect("a pipe");
        let (event, memory) = (EventFd::new().expect("an eventfd"), memfd(4096));
        let wire = |count| words(&[20, 4 | 32, MSIX, 0, count]);
        for wrong in [pipe.as_fd(), memory.as_fd(), raw.0.try_clone().expect("a duplicate").as_fd()] {
            assert_eq!(raw.asks_with(8, &wire(1), &[wrong]), errno(Errno::INVAL));
            assert_eq!(raw.asks_with(8, &wire(2), &[event.as_fd(), wrong]), errno(Errno::INVAL));
        }
        for (count, fds) in [(1, 2), (2, 1), (4, 3), (16, 15), (17, 16)] {
            let fds = vec![event.as_fd(); fds];
            assert_eq!(raw.asks_with(8, &wire(count), &fds), errno(Errno::INVAL), "{count}");
        }
        raw.must_work("after descriptors that are no eventfds");
    });
    trial.end();
}

/// A pair of queues that interrupts with a vector.
fn interrupting(intruder: &mut Intruder, vector: u32) {
    let at = intruder.rings[1].completions.at.0;
    let completion = creation(5, 2, super::intruder::ENTRIES, at, 3 | vector << 16);
    assert!(intruder.admin(completion).status().is_success());
    let at = intruder.rings[1].submissions.at.0;
    assert!(intruder.create_submission(2, super::intruder::ENTRIES, at, 2).is_success());
}

#[test]
fn eventfds_that_are_full_shared_or_nobodys_hold_nobody() {
    let mut trial = Trial::begin("adaptive");
    trial.case("an eventfd that is full", |intruder, _| {
        let event = EventFd::new().expect("an eventfd");
        rustix::io::write(event.as_fd(), &(u64::MAX - 1).to_ne_bytes()).expect("it is empty");
        let fds: Vec<BorrowedFd<'_>> = vec![event.as_fd(); usize::from(PAIRS) + 1];
        intruder.client.wire_irqs(MSIX, 0, &fds).expect("eventfds");
        intruder.client.wire_irqs(INTX, 0, &fds[..1]).expect("an eventfd");
        interrupting(intruder, 3);
        for _ in 0..200 {
            let at = intruder.data.at.0;
            assert!(intruder.io(1, transfer(2, [at, 0], 8)).status().is_success());
        }
        intruder.client.disable_irqs(MSIX).expect("it is let go of");
        intruder.must_work("with a full eventfd");
    });
    trial.case("eventfds that come and go under load", |intruder, _| {
        interrupting(intruder, 1);
        for round in 0..300u32 {
            let event = EventFd::new().expect("an eventfd");
            let at = intruder.data.at.0;
            for _ in 0..8 {
                intruder.rings[1].push(&transfer(2, [at, 0], 8));
            }
            intruder.ring(1);
            intruder.client.wire_irqs(MSIX, round % 17, &[event.as_fd()]).expect("an eventfd");
            intruder.client.wire_irqs(INTX, 0, &[event.as_fd()]).expect("an eventfd");
            if round % 3 == 0 {
                intruder.client.disable_irqs(MSIX).expect("they are let go of");
            }
            assert_eq!(intruder.await_io(1, 8).len(), 8);
        }
    });
    trial.case("the pin, masked and unmasked for ever", |intruder, _| {
        let event = EventFd::new().expect("an eventfd");
        intruder.client.wire_irqs(INTX, 0, &[event.as_fd()]).expect("an eventfd");
        for round in 0..500 {
            let action = if round % 2 == 0 { IrqAction::Mask } else { IrqAction::Unmask };
            let set = SetIrqs::new(INTX, 0, action, IrqData::None { count: 1 }).expect("a pin");
            intruder.client.set_irqs(set, &[]).expect("it can be masked");
        }
        let set = SetIrqs::new(MSIX, 0, IrqAction::Mask, IrqData::None { count: 1 }).expect("a vector");
        assert!(intruder.client.set_irqs(set, &[]).is_err());
        let set = SetIrqs::new(7, 0, IrqAction::Trigger, IrqData::None { count: 0 }).expect("no kind");
        assert_eq!(refused(intruder.client.set_irqs(set, &[])), Errno::INVAL);
        intruder.must_work("with a pin");
    });
    trial.end();
}
