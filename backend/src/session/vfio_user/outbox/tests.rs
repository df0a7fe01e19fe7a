use std::sync::atomic::AtomicBool;

use super::*;

/// A transfer that is wanted as long as somebody says so, and how often that was asked.
fn ask(outbox: &Outbox, wanted: &Arc<AtomicBool>, looked: &Arc<AtomicUsize>) {
    let (wanted, looked) = (wanted.clone(), looked.clone());
    let is_wanted = move || {
        looked.fetch_add(1, Ordering::Relaxed);
        wanted.load(Ordering::Relaxed)
    };
    outbox.read(0, 1, Reply::while_wanted(drop, is_wanted));
}

#[test]
fn transfers_for_which_there_is_no_room_fail_at_little_cost() {
    let outbox = Outbox::new().unwrap();
    let (wanted, looked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 * MOST_ASKED {
        ask(&outbox, &wanted, &looked);
    }
    assert_eq!(outbox.lock().len(), MOST_ASKED);
    let each = looked.load(Ordering::Relaxed) / MOST_ASKED;
    assert!(each <= 32, "each was paid for with {each} looks");
}

#[test]
fn what_was_given_up_behind_what_is_wanted_makes_room() {
    let outbox = Outbox::new().unwrap();
    let looked = Arc::default();
    let (wanted, other) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    ask(&outbox, &wanted, &looked);
    for _ in 1..MOST_ASKED {
        ask(&outbox, &other, &looked);
    }
    other.store(false, Ordering::Relaxed);
    ask(&outbox, &wanted, &looked);
    assert_eq!(outbox.lock().len(), 2, "as soon as there is no room");
    for _ in 2..MOST_ASKED {
        ask(&outbox, &other, &looked);
    }
    other.store(true, Ordering::Relaxed);
    // There was no room for one, and then what has it is given up.
    ask(&outbox, &wanted, &looked);
    other.store(false, Ordering::Relaxed);
    for _ in 0..LOOK {
        ask(&outbox, &wanted, &looked);
    }
    assert_eq!(outbox.lock().len(), 3, "and later before long");
}
