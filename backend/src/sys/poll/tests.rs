use super::*;
use crate::sys::EventFd;

const NOW: Option<Duration> = Some(Duration::ZERO);

fn ready(poll: &Poll) -> Vec<Ready> {
    let mut ready = Vec::new();
    poll.wait(NOW, &mut ready).unwrap();
    ready
}

fn keys(poll: &Poll) -> Vec<u64> {
    ready(poll).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn a_level_is_told_until_it_is_gone_and_an_edge_once() {
    let poll = Poll::new().unwrap();
    let (level, edge) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    poll.add(&level, 1, Interest::READ).unwrap();
    poll.add(&edge, 2, Interest::READ | Interest::EDGE).unwrap();
    level.signal();
    edge.signal();
    assert_eq!(keys(&poll), [1, 2]);
    assert_eq!(keys(&poll), [1]);
    edge.signal();
    let mut both = keys(&poll);
    both.sort_unstable();
    assert_eq!(both, [1, 2], "an edge comes with every signal, also without a read in between");
    poll.remove(&level);
    assert!(keys(&poll).is_empty());
}

#[test]
fn a_peer_that_left_hangs_up_whatever_is_asked_for() {
    let poll = Poll::new().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    poll.add(&ours, 7, Interest::empty()).unwrap();
    assert!(keys(&poll).is_empty());
    drop(theirs);
    assert!(matches!(ready(&poll).as_slice(), [(7, Readiness { hung_up: true, .. })]));
}
