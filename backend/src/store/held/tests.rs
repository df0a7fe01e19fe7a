//! The held store on real pinned memory: single cases, and random operations against a naive model.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::tests::Guest;
use crate::sys::Kicks;

const GUEST: u64 = 4096;
const STORE: usize = 1024;
const LATE: Duration = Duration::from_secs(3600);

fn store() -> (Held, Port) {
    let held = Held::new((0..STORE).map(|at| at as u8).collect());
    let port = held.open(Arc::new(EventFd::new().unwrap()));
    (held, port)
}

fn taken(port: &mut Port) -> Vec<Completion> {
    let mut out = Vec::new();
    port.take(&mut out);
    out
}

fn only(held: &Held) -> Pending {
    let pending = held.pending();
    assert_eq!(pending.len(), 1);
    pending[0]
}

#[test]
fn a_request_whose_memory_is_lost_fails_and_so_does_no_other() {
    let (guest, other, (held, mut port)) = (Guest::new(), Guest::new(), store());
    port.submit(guest.request(1, Operation::Read, 0, 0, 64));
    port.submit(guest.request(2, Operation::WRITE, 0, 64, 64));
    port.submit(other.request(3, Operation::Read, 0, 0, 64));
    rustix::fs::ftruncate(guest.memory.regions()[0].extent.file.as_fd(), 0).unwrap();
    held.finish_all();
    let results: Vec<_> = taken(&mut port).iter().map(|completion| completion.result).collect();
    assert_eq!(results, [Err(Errno::FAULT), Err(Errno::FAULT), Ok(64)]);
    assert_eq!((guest.ioas.pins(), other.ioas.pins()), (0, 0));
}

#[test]
fn a_read_is_seen_in_guest_memory_when_it_is_finished_and_not_before() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    guest.write(100, &[0xff; 3]);
    port.submit(guest.request(7, Operation::Read, 10, 100, 3));
    assert_eq!(taken(&mut port), []);
    assert_eq!((guest.read(100, 3), guest.ioas.pins()), (vec![0xff; 3], 1));
    let pending = only(&held);
    assert_eq!((pending.tag, pending.operation, pending.offset, pending.len), (7, Operation::Read, 10, 3));
    assert!(held.finish(pending.id) && !held.finish(pending.id));
    assert_eq!((guest.read(99, 5), guest.ioas.pins()), (vec![0, 10, 11, 12, 0], 0));
    assert_ne!(port.bell().drain(), Kicks::None, "its worker is woken");
    assert_eq!(taken(&mut port), [Completion { tag: 7, result: Ok(3) }]);
    assert_eq!(taken(&mut port), []);
}

#[test]
fn a_write_takes_what_the_guest_has_there_when_it_is_finished() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    port.submit(Request {
        len: 3,
        memory: guest.pins(&[(0, 2), (50, 1)]),
        ..guest.request(1, Operation::WRITE, 4, 0, 1)
    });
    guest.write(0, &[1, 2]);
    guest.write(50, &[3]);
    held.finish(only(&held).id);
    assert_eq!(held.bytes()[3..8], [3, 1, 2, 3, 7]);
    assert_eq!(taken(&mut port), [Completion { tag: 1, result: Ok(3) }]);
}

#[test]
fn a_request_that_fails_moves_nothing_and_lets_go() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    port.submit(guest.request(1, Operation::Read, 1, 0, 8));
    assert!(held.fail(only(&held).id, Errno::IO));
    assert_eq!((guest.read(0, 8), guest.ioas.pins()), (vec![0; 8], 0));
    assert_eq!(taken(&mut port), [Completion { tag: 1, result: Err(Errno::IO) }]);
}

#[test]
fn a_request_beyond_the_end_fails_when_it_is_finished() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    for (offset, len) in [(STORE as u64 - 7, 8), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        port.submit(guest.request(0, Operation::WRITE, offset, 0, len));
    }
    assert_eq!(held.finish_all(), 3);
    assert!(taken(&mut port).iter().all(|completion| completion.result == Err(Errno::INVAL)));
    assert_eq!(guest.ioas.pins(), 0);
}

#[test]
fn cancel_ends_what_touches_the_range() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    for (tag, offset) in [(0, 0), (1, 8), (2, 16), (3, 24)] {
        port.submit(guest.request(tag, Operation::Read, offset, 0, 8));
    }
    assert_eq!(held.cancel(15..17), 2);
    let tags: Vec<u64> = held.pending().iter().map(|pending| pending.tag).collect();
    assert_eq!(tags, [0, 3]);
    assert!(taken(&mut port).iter().all(|completion| completion.result == Err(Errno::CANCELED)));
}

#[test]
fn a_delay_by_others_ends_with_the_last_of_them_and_may_end_more() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    for tag in 0..4 {
        port.submit(guest.request(tag, Operation::Read, 0, 0, 8));
    }
    let ids: Vec<u64> = held.pending().iter().map(|pending| pending.id).collect();
    assert!(held.delay(ids[0], Delay::Others(2)) && held.delay(ids[1], Delay::Others(1)));
    assert_eq!(taken(&mut port), []);
    held.fail(ids[3], Errno::IO);
    let tags: Vec<u64> = taken(&mut port).iter().map(|completion| completion.tag).collect();
    assert_eq!(tags, [3, 1, 0]);
    assert!(held.delay(ids[2], Delay::Others(0)) && !held.delay(ids[0], Delay::ByHand));
    assert_eq!(taken(&mut port), [Completion { tag: 2, result: Ok(8) }]);
}

#[test]
fn a_delay_by_time_ends_when_its_worker_looks_after_it() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    port.submit(guest.request(1, Operation::Read, 0, 0, 8));
    let late = Instant::now() + LATE;
    assert_eq!(port.next_deadline(), None);
    held.delay(only(&held).id, Delay::Until(late));
    assert_ne!(port.bell().drain(), Kicks::None, "its worker learns of the deadline");
    assert_eq!((port.next_deadline(), taken(&mut port)), (Some(late), vec![]));
    let mut other = held.open(Arc::new(EventFd::new().unwrap()));
    assert_eq!(other.next_deadline(), None);
    held.delay(only(&held).id, Delay::Until(Instant::now()));
    assert_eq!(taken(&mut other), [], "it is no business of another worker");
    assert_eq!(taken(&mut port), [Completion { tag: 1, result: Ok(8) }]);
    assert_eq!(port.next_deadline(), None);
}

#[test]
fn a_port_that_is_dropped_lets_go_of_its_own_requests_only() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    let mut other = held.open(Arc::new(EventFd::new().unwrap()));
    port.submit(guest.request(1, Operation::Read, 0, 0, 8));
    other.submit(guest.request(2, Operation::Read, 0, 0, 8));
    drop(port);
    assert_eq!((only(&held).tag, guest.ioas.pins()), (2, 1));
    held.finish_all();
    assert_eq!(taken(&mut other).len(), 1);
}

#[test]
fn a_port_cancels_its_own_requests_only() {
    let (guest, (held, mut port)) = (Guest::new(), store());
    let mut other = held.open(Arc::new(EventFd::new().unwrap()));
    port.submit(guest.request(1, Operation::Read, 0, 0, 8));
    other.submit(guest.request(2, Operation::Read, 0, 0, 8));
    port.cancel();
    assert_eq!((only(&held).tag, guest.ioas.pins()), (2, 1));
    assert_eq!(taken(&mut port), [Completion { tag: 1, result: Err(Errno::CANCELED) }]);
    assert_eq!(taken(&mut other), []);
}

#[test]
fn requests_submitted_and_ended_by_two_threads_end_once_each() {
    const COUNT: u64 = 2000;
    let (guest, (held, mut port)) = (Guest::new(), store());
    let mut tags = Vec::new();
    std::thread::scope(|scope| {
        let ender = scope.spawn(|| {
            let mut ended = 0;
            while ended < COUNT {
                for pending in held.pending() {
                    ended += u64::from(if pending.tag % 3 == 0 {
                        held.fail(pending.id, Errno::IO)
                    } else {
                        held.finish(pending.id)
                    });
                }
                std::thread::yield_now();
            }
        });
        for tag in 0..COUNT {
            port.submit(guest.request(tag, Operation::WRITE, tag % 512, 0, 64));
            tags.extend(taken(&mut port).iter().map(|completion| completion.tag));
        }
        ender.join().unwrap();
    });
    tags.extend(taken(&mut port).iter().map(|completion| completion.tag));
    tags.sort_unstable();
    assert_eq!(tags, (0..COUNT).collect::<Vec<_>>());
    assert_eq!(guest.ioas.pins(), 0);
}

/// What is done in the property test. Requests are chosen by their place among those that are pending.
#[derive(Clone, Debug)]
enum Step {
    Submit { port: usize, write: bool, offset: u64, at: u64, len: u32 },
    Finish(usize),
    Fail(usize),
    Others(usize, u64),
    Due(usize),
    Late(usize),
    ByHand(usize),
    FinishAll,
    Cancel(u64, u64),
    Take(usize),
    Scribble(u64, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let submit = (0..2usize, any::<bool>(), 0..STORE as u64 + 8, 0..GUEST - 64, 1..64u32)
        .prop_map(|(port, write, offset, at, len)| Step::Submit { port, write, offset, at, len });
    let step = prop_oneof![
        6 => submit,
        3 => (0..8usize).prop_map(Step::Finish),
        1 => (0..8usize).prop_map(Step::Fail),
        2 => (0..8usize, 0..4u64).prop_map(|(which, count)| Step::Others(which, count)),
        1 => (0..8usize).prop_map(Step::Due),
        1 => (0..8usize).prop_map(Step::Late),
        1 => (0..8usize).prop_map(Step::ByHand),
        1 => Just(Step::FinishAll),
        1 => (0..STORE as u64, 0..64u64).prop_map(|(first, len)| Step::Cancel(first, first + len)),
        3 => (0..2usize).prop_map(Step::Take),
        2 => (0..GUEST, any::<u8>()).prop_map(|(at, byte)| Step::Scribble(at, byte)),
    ];
    proptest::collection::vec(step, 0..80)
}

/// A store as one would write it down: two arrays, a list, and two queues.
struct Model {
    store: Vec<u8>,
    guest: Vec<u8>,
    pending: Vec<Asked>,
    done: [VecDeque<Completion>; 2],
    ended: u64,
    tags: u64,
}

#[derive(Clone)]
struct Asked {
    tag: u64,
    port: usize,
    write: bool,
    offset: usize,
    at: usize,
    len: usize,
    /// Ends when so many have ended.
    others: Option<u64>,
    due: bool,
}

impl Model {
    fn end(&mut self, asked: Asked, error: Option<Errno>) {
        let Asked { tag, port, write, offset, at, len, .. } = asked;
        let result = match error {
            Some(errno) => Err(errno),
            None if offset + len > STORE => Err(Errno::INVAL),
            None => {
                for byte in 0..len {
                    if write {
                        self.store[offset + byte] = self.guest[at + byte];
                    } else {
                        self.guest[at + byte] = self.store[offset + byte];
                    }
                }
                Ok(len as u64)
            }
        };
        self.done[port].push_back(Completion { tag, result });
        self.ended += 1;
    }

    fn end_overtaken(&mut self) {
        let over = |asked: &Asked, ended| asked.others.is_some_and(|count| count <= ended);
        while let Some(which) = self.pending.iter().position(|asked| over(asked, self.ended)) {
            let asked = self.pending.remove(which);
            self.end(asked, None);
        }
    }

    fn end_one(&mut self, which: usize, error: Option<Errno>) {
        let asked = self.pending.remove(which);
        self.end(asked, error);
        self.end_overtaken();
    }

    fn end_each(&mut self, wanted: impl Fn(&Asked) -> bool, error: Option<Errno>) {
        let tags: Vec<u64> =
            self.pending.iter().filter(|asked| wanted(asked)).map(|asked| asked.tag).collect();
        for tag in tags {
            // One that waited for others may have ended with the one before.
            if let Some(which) = self.pending.iter().position(|asked| asked.tag == tag) {
                self.end_one(which, error);
            }
        }
    }

    fn take(&mut self, port: usize) -> Vec<Completion> {
        let (due, rest) = self.pending.drain(..).partition(|asked| asked.due && asked.port == port);
        self.pending = rest;
        let due: Vec<Asked> = due;
        due.into_iter().for_each(|asked| self.end(asked, None));
        self.end_overtaken();
        self.done[port].drain(..).collect()
    }
}

fn plays_as_the_model(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let guest = Guest::new();
    let (held, first) = store();
    let mut ports = [first, held.open(Arc::new(EventFd::new().unwrap()))];
    let mut model = Model {
        store: held.bytes(),
        guest: vec![0; GUEST as usize],
        pending: Vec::new(),
        done: Default::default(),
        ended: 0,
        tags: 0,
    };
    for step in steps {
        let id = |which: usize| held.pending().get(which).map(|pending| pending.id);
        match step {
            Step::Submit { port, write, offset, at, len } => {
                let tag = model.tags;
                model.tags += 1;
                let operation = if write { Operation::WRITE } else { Operation::Read };
                ports[port].submit(guest.request(tag, operation, offset, at, len));
                let (offset, at, len) = (offset as usize, at as usize, len as usize);
                model.pending.push(Asked { tag, port, write, offset, at, len, others: None, due: false });
            }
            Step::Finish(which) => {
                if let Some(id) = id(which) {
                    prop_assert!(held.finish(id));
                    model.end_one(which, None);
                }
            }
            Step::Fail(which) => {
                if let Some(id) = id(which) {
                    prop_assert!(held.fail(id, Errno::IO));
                    model.end_one(which, Some(Errno::IO));
                }
            }
            Step::Others(which, _) | Step::Due(which) | Step::Late(which) | Step::ByHand(which) => {
                if let Some(id) = id(which) {
                    let (others, due, delay) = match step {
                        Step::Others(_, count) => (Some(model.ended + count), false, Delay::Others(count)),
                        Step::Due(_) => (None, true, Delay::Until(Instant::now())),
                        Step::Late(_) => (None, false, Delay::Until(Instant::now() + LATE)),
                        _ => (None, false, Delay::ByHand),
                    };
                    prop_assert!(held.delay(id, delay));
                    let asked = &mut model.pending[which];
                    (asked.others, asked.due) = (others, due);
                }
            }
            Step::FinishAll => {
                held.finish_all();
                model.end_each(|_| true, None);
            }
            Step::Cancel(first, end) => {
                held.cancel(first..end);
                let (first, end) = (first as usize, end as usize);
                let touched = |asked: &Asked| first.max(asked.offset) < end.min(asked.offset + asked.len);
                model.end_each(touched, Some(Errno::CANCELED));
            }
            Step::Take(port) => prop_assert_eq!(taken(&mut ports[port]), model.take(port)),
            Step::Scribble(at, byte) => {
                guest.write(at, &[byte]);
                model.guest[at as usize] = byte;
            }
        }
        let tags = |pending: Vec<Pending>| pending.iter().map(|pending| pending.tag).collect::<Vec<_>>();
        prop_assert_eq!(
            tags(held.pending()),
            model.pending.iter().map(|asked| asked.tag).collect::<Vec<_>>()
        );
        prop_assert_eq!(guest.ioas.pins(), model.pending.len() as u64);
    }
    prop_assert_eq!(guest.read(0, GUEST as usize), model.guest);
    prop_assert_eq!(held.bytes(), model.store);
    drop(ports);
    prop_assert_eq!(guest.ioas.pins(), 0);
    Ok(())
}

proptest! {
    #[test]
    fn a_store_does_what_the_naive_one_does(steps in steps()) {
        plays_as_the_model(steps)?;
    }
}
