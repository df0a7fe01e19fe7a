use super::*;

#[test]
fn drain_takes_what_was_signalled_and_then_finds_nothing() {
    let event = EventFd::new().unwrap();
    assert_eq!(event.drain(), Kicks::None);
    event.signal();
    event.signal();
    assert_eq!(event.drain(), Kicks::Some(2));
    assert_eq!(event.drain(), Kicks::None);
}

#[test]
fn a_pipe_is_refused_and_a_blocking_eventfd_is_not() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(EventFd::from_fd(reader).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let blocking = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(EventFd::from_fd(blocking).unwrap().drain(), Kicks::Some(3));
}

#[test]
fn drain_never_waits_when_the_peer_makes_the_file_blocking_again() {
    let event = EventFd::new().unwrap();
    rustix::fs::fcntl_setfl(&event, OFlags::empty()).unwrap();
    assert_eq!(event.drain(), Kicks::None);
}

#[test]
fn a_full_counter_stays_signalled() {
    let event = EventFd::new().unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    event.signal();
    assert_eq!(event.drain(), Kicks::Some(u64::MAX - 1));
}

#[test]
fn a_pipe_whose_writer_left_is_broken() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(writer);
    assert_eq!(EventFd::unchecked(reader).unwrap().drain(), Kicks::Broken);
}

/// A peer's counter and our end of it.
fn shared() -> (OwnedFd, EventFd) {
    let peer = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let ours = EventFd::from_fd(peer.try_clone().unwrap()).unwrap();
    (peer, ours)
}

#[test]
fn signals_to_a_peer_are_counted_more_than_the_kernel_keeps() {
    let (_peer, ours) = shared();
    (0..1000).for_each(|_| ours.signal());
    assert_eq!(ours.drain(), Kicks::Some(1000));
}

#[test]
fn signal_never_waits_for_a_peer_whose_blocking_counter_is_full() {
    let (peer, ours) = shared();
    rustix::fs::fcntl_setfl(&peer, OFlags::empty()).unwrap();
    rustix::io::write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    (0..200).for_each(|_| ours.signal());
    assert!(matches!(ours.drain(), Kicks::Some(count) if count >= u64::MAX - 1));
    // And where the kernel has no asynchronous I/O, a look decides.
    rustix::io::write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert!(!ours.has_room());
    ours.drain();
    assert!(ours.has_room());
}

#[test]
fn a_signal_to_a_peer_wakes_who_waits_for_it() {
    let (peer, ours) = shared();
    // Ours made the file non-blocking, for both.
    rustix::fs::fcntl_setfl(&peer, OFlags::empty()).unwrap();
    let waiter = std::thread::spawn(move || {
        let mut count = [0; 8];
        rustix::io::read(&peer, &mut count).unwrap();
        u64::from_ne_bytes(count)
    });
    ours.signal();
    assert_eq!(waiter.join().unwrap(), 1);
}
