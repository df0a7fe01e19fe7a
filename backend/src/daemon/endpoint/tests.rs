use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn accepts(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Listening(listener) => listener.accept().unwrap().is_some(),
        Endpoint::Connected(_) | Endpoint::Dialing(_) | Endpoint::Kernel(_) => false,
    }
}

#[test]
fn a_new_socket_listens_and_its_file_goes_with_it() {
    let folder = folder();
    let path = folder.path().join("net.sock");
    let endpoint = Endpoint::bind(&path, None).unwrap();
    assert!(!accepts(&endpoint));
    let _client = UnixStream::connect(&path).unwrap();
    assert!(accepts(&endpoint));
    drop(endpoint);
    assert!(!path.exists());
}

#[test]
fn permissions_are_exactly_those_asked_for() {
    let folder = folder();
    for mode in [0o600, 0o660, 0o777, 0] {
        let path = folder.path().join(format!("{mode:o}"));
        let _endpoint = Endpoint::bind(&path, Some(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = folder();
    let path = folder.path().join("net.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let endpoint = Endpoint::bind(&path, None).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    assert!(accepts(&endpoint));
}

#[test]
fn a_live_socket_is_left_alone() {
    let folder = folder();
    let path = folder.path().join("net.sock");
    let live = UnixListener::bind(&path).unwrap();
    assert!(matches!(Endpoint::bind(&path, None), Err(EndpointError::Live(_))));
    assert!(path.exists());
    let _client = UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = folder();
    let path = folder.path().join("precious");
    fs::write(&path, "data").unwrap();
    assert!(matches!(Endpoint::bind(&path, None), Err(EndpointError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_socket_that_somebody_else_put_in_our_place_stays() {
    let folder = folder();
    let path = folder.path().join("net.sock");
    let endpoint = Endpoint::bind(&path, None).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(endpoint);
    assert!(path.exists());
}

#[test]
fn a_path_that_cannot_be_is_an_error_with_the_path_in_it() {
    let folder = folder();
    let long = folder.path().join("x".repeat(108));
    assert!(matches!(Endpoint::bind(&long, None), Err(EndpointError::TooLong(_))));
    let nowhere = folder.path().join("no/such/folder");
    let error = Endpoint::bind(&nowhere, None).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}

#[test]
fn an_inherited_socket_is_told_apart_by_what_it_is() {
    let folder = folder();
    let path = folder.path().join("net.sock");
    let listening = UnixListener::bind(&path).unwrap();
    assert!(matches!(Endpoint::from_fd(listening.into()), Ok(Endpoint::Listening(_))));
    assert!(path.exists(), "the file is its maker's");
    let (connected, _peer) = UnixStream::pair().unwrap();
    assert!(matches!(Endpoint::from_fd(connected.into()), Ok(Endpoint::Connected(_))));

    let unconnected = new_socket().unwrap();
    assert!(Endpoint::from_fd(unconnected).is_err());
    assert!(Endpoint::from_fd(UnixDatagram::unbound().unwrap().into()).is_err());
    assert!(Endpoint::from_fd(fs::File::open("/dev/null").unwrap().into()).is_err());
    assert!(matches!(Endpoint::inherited(1 << 20), Err(EndpointError::Inherited { .. })));
}

#[test]
fn of_daemons_that_start_in_one_instant_on_a_stale_socket_one_gets_it() {
    for _ in 0..50 {
        let folder = folder();
        let path = folder.path().join("net.sock");
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(4);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let bind = || {
                start.wait();
                Endpoint::bind(&path, None)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (listening, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(listening.len(), 1);
        assert!(others.iter().all(|other| matches!(other, Err(EndpointError::Live(_)))), "{others:?}");
        let _client = UnixStream::connect(&path).unwrap();
        assert!(accepts(listening[0].as_ref().unwrap()));
    }
}
