//! Parking: who is woken, by what, and who is not.

use std::{
    task::{Wake, Waker},
    thread,
    time::Instant,
};

use super::*;
use crate::{Lane, ParkState, Parked};

/// Counts how often it was rung.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A lane that waits, and its bell.
struct Queue {
    lane: Lane,
    bell: Arc<Bell>,
}

impl Queue {
    fn of(access: &Access) -> Self {
        Queue { lane: access.lane(), bell: Arc::default() }
    }

    fn look(&mut self, iova: u64) -> Result<(), ResolveError> {
        self.lane.enter().slice(Iova(iova), 8, Perm::READ).map(drop)
    }

    /// Parks for what a look at `iova` does not find.
    fn park(&mut self, iova: u64) -> Parked {
        self.look(iova).unwrap_err();
        self.lane.park(Instant::now() + LONG, &Waker::from(self.bell.clone())).unwrap()
    }

    fn rung(&self) -> usize {
        self.bell.0.load(Ordering::SeqCst)
    }
}

#[test]
fn mapping_wakes_who_waits_for_it_once_and_nobody_else() {
    let s = space();
    let file = memory(4);
    let (mut near, mut far) = (Queue::of(&s.access), Queue::of(&s.access));
    let (parked, other) = (near.park(PAGE), far.park(0x10_0000));
    s.ioas.map(area(&file, 2 * PAGE, PAGE, 0)).unwrap();
    assert_eq!((parked.state(), near.rung()), (ParkState::Waiting, 0), "another address");
    s.ioas.map(area(&file, PAGE, PAGE, PAGE)).unwrap();
    assert_eq!((parked.state(), near.rung()), (ParkState::Woken, 1));
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!((near.rung(), other.state(), far.rung()), (1, ParkState::Waiting, 0));
    assert_eq!(near.look(PAGE), Ok(()));
    assert!(near.lane.park(Instant::now(), Waker::noop()).is_none(), "nothing is missing");
}

#[test]
fn the_missing_byte_of_a_range_is_waited_for_not_its_first() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let mut queue = Queue::of(&s.access);
    let parked = queue.park(PAGE - 4);
    s.ioas.map(area(&file, PAGE, PAGE, PAGE)).unwrap();
    assert_eq!(parked.state(), ParkState::Woken);
    let spans = queue.lane.enter().sg(Iova(PAGE - 4), 8, Perm::READ, &mut SgList::new());
    assert_eq!(spans, Ok(()));
}

#[test]
fn place_in_a_file_is_waited_for_at_any_address() {
    let s = space();
    let (file, other) = (memory(4), memory(4));
    let mut queue = Queue::of(&s.access);
    let at = FileExtent { file: file.clone(), offset: PAGE };
    assert_eq!(
        queue.lane.enter().extent(&at, 64, Perm::READ).map(|s| s.len()),
        Err(ResolveError::Hole),
        "no area maps it"
    );
    let parked = queue.lane.park(Instant::now() + LONG, &Waker::from(queue.bell.clone())).unwrap();
    s.ioas.map(area(&other, 0, 4 * PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 0x10_0000, PAGE, 0)).unwrap();
    assert_eq!(parked.state(), ParkState::Waiting, "another file, and another page of it");
    s.ioas.map(area(&file, 0x20_0000, 3 * PAGE, PAGE)).unwrap();
    assert_eq!((parked.state(), queue.rung()), (ParkState::Woken, 1));
}

#[test]
fn replaced_table_wakes_who_finds_his_memory_in_it() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let (mut queue, mut stays) = (Queue::of(&s.access), Queue::of(&s.access));
    let (parked, other) = (queue.park(PAGE), stays.park(0x10_0000));
    s.ioas.replace_table(vec![area(&file, 0, 4 * PAGE, 0)], LONG).unwrap();
    assert_eq!((parked.state(), other.state()), (ParkState::Woken, ParkState::Waiting));
    assert_eq!((queue.rung(), stays.rung()), (1, 0));
}

#[test]
fn gated_area_is_waited_for_until_it_is_mapped_anew() {
    let pin = Arc::new(Mutex::new(None));
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    *pin.lock().unwrap() = Some(s.access.lane().enter().pin(Iova(0), 8, Perm::READ).unwrap());
    assert_eq!(s.ioas.unmap(range(0, PAGE), SOON).unwrap_err().errno(), 35);
    let mut queue = Queue::of(&s.access);
    assert_eq!(queue.look(0), Err(ResolveError::Gated));
    let parked = queue.park(0);
    drop(pin.lock().unwrap().take());
    s.ioas.unmap(range(0, PAGE), LONG).unwrap();
    assert_eq!(parked.state(), ParkState::Waiting, "gone is no better than gated");
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!((parked.state(), queue.rung()), (ParkState::Woken, 1));
}

#[test]
fn detach_and_close_wake_all_of_the_access_and_none_of_another() {
    let s = space();
    let neighbour = Access::new(Arc::new(IgnoreUnmap));
    neighbour.attach(&s.ioas).unwrap();
    let mut queues = [Queue::of(&s.access), Queue::of(&s.access), Queue::of(&neighbour)];
    let parked = queues.each_mut().map(|queue| queue.park(PAGE));
    s.access.close(LONG).unwrap();
    let states = parked.each_ref().map(Parked::state);
    assert_eq!(states, [ParkState::Woken, ParkState::Woken, ParkState::Waiting]);
    assert_eq!(queues[0].look(PAGE), Err(ResolveError::Detached));
    neighbour.detach(LONG).unwrap();
    assert_eq!((parked[2].state(), queues[2].rung()), (ParkState::Woken, 1));
    s.ioas.destroy().unwrap();
}

#[test]
fn replacement_of_the_space_wakes_and_the_next_wait_is_for_the_new_space() {
    let s = space();
    let other = Ioas::new(s.windows.clone());
    let mut queue = Queue::of(&s.access);
    let parked = queue.park(PAGE);
    s.access.replace(&other, LONG).unwrap();
    assert_eq!(parked.state(), ParkState::Woken);
    drop(parked);
    let parked = queue.park(PAGE);
    s.ioas.map(area(&memory(4), 0, 4 * PAGE, 0)).unwrap();
    assert_eq!(parked.state(), ParkState::Waiting, "the old space");
    other.map(area(&memory(4), 0, 4 * PAGE, 0)).unwrap();
    assert_eq!((parked.state(), queue.rung()), (ParkState::Woken, 2));
}

#[test]
fn parked_queue_does_not_keep_its_space() {
    let s = space();
    let mut queue = Queue::of(&s.access);
    let parked = queue.park(PAGE);
    assert_eq!(s.ioas.destroy().unwrap_err().errno(), 16, "the access is attached");
    s.access.detach(LONG).unwrap();
    assert_eq!(parked.state(), ParkState::Woken);
    s.ioas.destroy().unwrap();
    drop(s);
    assert_eq!(queue.look(PAGE), Err(ResolveError::Detached));
}

#[test]
fn detached_queue_is_woken_when_its_access_is_attached_to_its_memory() {
    let s = space();
    s.ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    let access = Access::new(Arc::new(IgnoreUnmap));
    let mut queue = Queue::of(&access);
    let parked = queue.park(0);
    access.attach(&s.ioas).unwrap();
    assert_eq!((parked.state(), queue.look(0)), (ParkState::Woken, Ok(())));
}

#[test]
fn what_changed_between_miss_and_parking_wakes_at_once() {
    let s = space();
    let mut queue = Queue::of(&s.access);
    queue.look(0).unwrap_err();
    s.ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    let parked = queue.lane.park(Instant::now() + LONG, &Waker::from(queue.bell.clone())).unwrap();
    assert_eq!((parked.state(), queue.rung()), (ParkState::Woken, 1));
}

#[test]
fn deadline_ends_a_wait_that_nothing_else_ends() {
    let s = space();
    let mut queue = Queue::of(&s.access);
    queue.look(0).unwrap_err();
    let now = Instant::now();
    let parked = queue.lane.park(now, &Waker::from(queue.bell.clone())).unwrap();
    assert_eq!((parked.state(), parked.until(), queue.rung()), (ParkState::Expired, now, 0));
}

#[test]
fn wait_that_was_given_up_is_not_woken() {
    let s = space();
    let mut queue = Queue::of(&s.access);
    drop(queue.park(0));
    s.ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    assert_eq!(queue.rung(), 0);
}

/// A thread that sleeps while its queue is parked, against one that maps and unmaps: a wake-up that was lost would
/// leave it asleep.
#[test]
fn sleeping_thread_is_woken_for_every_mapping() {
    struct Sleeper(thread::Thread);
    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    const ROUNDS: usize = 2_000;
    let s = space();
    let file = memory(1);
    let seen = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (access, seen) = (&s.access, &seen);
        scope.spawn(move || {
            let waker = Waker::from(Arc::new(Sleeper(thread::current())));
            let mut lane = access.lane();
            for round in 1..=ROUNDS {
                while lane.enter().slice(Iova(0), 8, Perm::READ).is_err() {
                    let parked = lane.park(Instant::now() + LONG, &waker).unwrap();
                    while parked.state() == ParkState::Waiting {
                        thread::park_timeout(parked.until().saturating_duration_since(Instant::now()));
                    }
                    assert_eq!(parked.state(), ParkState::Woken, "slept over mapping {round}");
                }
                seen.store(round, Ordering::SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
            let begun = Instant::now();
            while seen.load(Ordering::SeqCst) < round {
                assert!(begun.elapsed() < 2 * LONG, "asleep in round {round}");
                thread::yield_now();
            }
            s.ioas.unmap(range(0, PAGE), LONG).unwrap();
        }
    });
}
