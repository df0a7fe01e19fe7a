use super::*;
use crate::sys::{Interest, Poll};

#[test]
fn a_timer_rings_once_and_not_when_taken_back() {
    let mut poll = Poll::new().unwrap();
    let mut timer = Timer::new().unwrap();
    poll.add(&timer, 1, Interest::READ).unwrap();
    timer.set(Some(Instant::now())).unwrap();
    assert_eq!(poll.wait(Some(Duration::from_secs(10))).unwrap().count(), 1);
    timer.rang();
    assert_eq!(poll.wait(Some(Duration::ZERO)).unwrap().count(), 0);
    timer.set(Some(Instant::now() + Duration::from_secs(3600))).unwrap();
    timer.set(None).unwrap();
    assert_eq!(poll.wait(Some(Duration::ZERO)).unwrap().count(), 0);
}
