//! How a worker learns of ends.

use std::time::{Duration, Instant};

use super::*;
use crate::sys::{Interest, Kicks, Poll};

/// Sleeps as workers do, until the bell rings anew. The kernel may wake a thread for purposes of its own.
fn sleep(poll: &Poll) {
    let (mut ready, start) = (Vec::new(), Instant::now());
    while ready.is_empty() {
        poll.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "a wake-up was lost");
    }
}

fn rings_for_each_end(image: &Image, rounds: u64, at_once: u64) {
    let guest = Guest::new();
    let (_file, mut port) = image.open();
    let poll = Poll::new().unwrap();
    poll.add(&**port.bell(), 1, Interest::READ | Interest::EDGE).unwrap();
    let mut found = Vec::new();
    for round in 0..rounds {
        for tag in 0..at_once {
            let operation = if (round + tag) % 3 == 0 { Operation::WRITE } else { Operation::Read };
            port.submit(guest.request(tag, operation, tag * 4096, tag * 4096, 4096));
        }
        port.begin();
        found.clear();
        while found.len() < at_once as usize {
            if !port.arm() {
                sleep(&poll);
            }
            port.disarm();
            port.take(&mut found);
        }
        assert!(found.iter().all(|completion| completion.result == Ok(4096)));
    }
}

#[test]
fn no_end_is_slept_through_on_a_disk() {
    rings_for_each_end(&Image::on_disk(&sectors(256)).direct(), 2000, 3);
}

#[test]
fn no_end_is_slept_through_in_the_page_cache() {
    rings_for_each_end(&Image::on_disk(&sectors(256)), 3000, 3);
}

#[test]
fn a_bell_that_is_not_armed_is_silent() {
    let (guest, image) = (Guest::new(), Image::on_disk(&sectors(256)).direct());
    let (_file, mut port) = image.open();
    let mut found = Vec::new();
    for _ in 0..10 {
        port.submit(guest.request(1, Operation::Read, 0, 0, 4096));
        port.begin();
        while found.is_empty() {
            port.take(&mut found);
        }
        found.clear();
    }
    assert_eq!(port.bell().drain(), Kicks::None);
}

#[test]
fn a_port_made_elsewhere_belongs_to_the_thread_that_uses_it() {
    let (guest, image) = (Guest::new(), Image::on_disk(&sectors(8)).direct());
    let (_file, mut port) = image.open();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(end(&mut port, guest.request(1, Operation::Read, 0, 0, 4096)), Ok(4096));
        });
    });
    assert_eq!(guest.read(0, 4096), sectors(8));
}
