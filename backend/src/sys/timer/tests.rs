use super::*;
use crate::sys::{Interest, Poll};

fn ready(poll: &Poll, within: Duration) -> usize {
    let mut ready = Vec::new();
    poll.wait(Some(within), &mut ready).unwrap();
    ready.len()
}

#[test]
fn a_timer_rings_once_and_not_when_taken_back() {
    let poll = Poll::new().unwrap();
    let mut timer = Timer::new().unwrap();
    poll.add(&timer, 1, Interest::READ).unwrap();
    timer.set(Some(Instant::now())).unwrap();
    assert_eq!(ready(&poll, Duration::from_secs(10)), 1);
    timer.rang();
    assert_eq!(ready(&poll, Duration::ZERO), 0);
    timer.set(Some(Instant::now() + Duration::from_secs(3600))).unwrap();
    timer.set(None).unwrap();
    assert_eq!(ready(&poll, Duration::ZERO), 0);
}
