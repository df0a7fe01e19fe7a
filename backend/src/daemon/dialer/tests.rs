use std::os::unix::net::UnixListener;

use super::*;

const CONN: u64 = 7;

fn dialer(path: &Path) -> (Dialer, Instant) {
    (Dialer::new(path).unwrap(), Instant::now())
}

/// How long it waits from `now`.
fn pause(dialer: &Dialer, now: Instant) -> Duration {
    dialer.due(now).unwrap().saturating_duration_since(now)
}

#[test]
fn front_end_that_is_not_there_is_called_on_with_growing_pauses_that_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut dialer, mut now) = dialer(&folder.path().join("front.sock"));
    assert_eq!(pause(&dialer, now), Duration::ZERO);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(dialer.dial("net", now).is_none());
        pauses.push(pause(&dialer, now).as_millis());
        now += pause(&dialer, now);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
}

#[test]
fn socket_that_nobody_listens_on_is_waited_for_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    drop(UnixListener::bind(&path).unwrap());
    let (mut dialer, now) = dialer(&path);
    assert!(dialer.dial("net", now).is_none());
    assert!(path.exists(), "it is the front-end's");

    std::fs::remove_file(&path).unwrap();
    let front_end = UnixListener::bind(&path).unwrap();
    assert!(dialer.dial("net", now).is_some());
    front_end.accept().unwrap();
}

#[test]
fn front_end_whose_backlog_is_full_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    let _front_end = UnixListener::bind(&path).unwrap();
    let (mut dialer, now) = dialer(&path);
    let mut waiting = Vec::new();
    while let Some(socket) = dialer.dial("net", now) {
        waiting.push(socket);
        assert!(waiting.len() < 100_000, "the backlog ends somewhere");
    }
    assert!(dialer.due(now) > Some(now));
}

#[test]
fn ended_connection_is_followed_by_another_soon_if_it_lasted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    let _front_end = UnixListener::bind(&path).unwrap();
    let (mut dialer, mut now) = dialer(&path);
    for expected in [100, 200, 400] {
        assert!(dialer.dial("net", now).is_some());
        dialer.connected(CONN, now);
        assert_eq!(dialer.due(now), None);
        dialer.ended(CONN + 1, now);
        assert_eq!(dialer.due(now), None, "somebody else's connection");
        dialer.ended(CONN, now);
        assert_eq!(pause(&dialer, now), Duration::from_millis(expected), "it hangs up at once");
        now += pause(&dialer, now);
    }
    assert!(dialer.dial("net", now).is_some());
    dialer.connected(CONN, now);
    now += WORTHWHILE;
    dialer.ended(CONN, now);
    assert_eq!(pause(&dialer, now), FIRST_PAUSE);
}

#[test]
fn path_that_no_socket_can_have_is_an_error() {
    let long = Path::new("/tmp").join("x".repeat(108));
    assert!(matches!(Dialer::new(&long), Err(EndpointError::TooLong(_))));
}
