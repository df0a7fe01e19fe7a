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
