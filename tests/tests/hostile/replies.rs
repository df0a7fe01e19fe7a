//! Front-ends that do not read what they asked for.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_protocol::vhost_user::{Config, FrontendMessage as M, Header, ProtocolFeatures};
use mdev_tests::stage::{Guest, GuestOptions, PROTOCOL, Stage};
use mdevd::worker::Mode;

use super::latched::{ATTACKED, Attacks};

/// A connection that has negotiated, and nothing else.
fn connect(stage: &Stage, device: usize) -> (u64, UnixStream) {
    let (conn, mut socket) = stage.connect(device);
    socket.write_all(&M::SetProtocolFeatures(PROTOCOL).to_bytes(false)).expect("room");
    (conn, socket)
}

/// Sends requests that are answered until the socket takes no more, and says how many bytes it took.
pub fn flood(socket: &mut UnixStream, request: &[u8]) -> usize {
    socket.set_nonblocking(true).expect("sockets can");
    let many = request.repeat(64);
    let mut sent = 0;
    let mut idle = 0;
    // The back-end takes requests until its replies find no room: then nothing moves any more.
    while idle < 50 {
        match socket.write(&many[sent % request.len()..]) {
            Ok(bytes) => (sent, idle) = (sent + bytes, 0),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                idle += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
    sent
}

#[test]
fn a_front_end_that_does_not_read_its_replies_holds_nobody() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let config = Config::new(0, 0, vec![0; 12]).expect("as long as the device's");
    let requests =
        [M::GetFeatures.to_bytes(false), M::GetConfig(config).to_bytes(true), M::SetOwner.to_bytes(true)];
    for request in requests {
        let (conn, mut socket) = connect(&attacks.stage, ATTACKED);
        let sent = flood(&mut socket, &request);
        attacks.victim.must_go_on(100);

        // Another one on the same device is served.
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        guest.exchange(50);
        attacks.leave("a guest beside a deaf front-end", guest);

        // Nothing was lost, should it think better of it: one reply for each request that was whole.
        socket.set_nonblocking(false).expect("sockets can");
        let whole = sent / request.len();
        let rest = request.len() - sent % request.len();
        let (mut reader, finish) =
            (socket.try_clone().expect("a duplicate"), request[request.len() - rest..].to_vec());
        let replies = std::thread::spawn(move || {
            let mut reply = [0; Header::LEN];
            let mut count = 0;
            while reader.read_exact(&mut reply).is_ok() {
                let size = u32::from_ne_bytes([reply[8], reply[9], reply[10], reply[11]]);
                reader.read_exact(&mut vec![0; size as usize]).expect("the whole reply");
                count += 1;
            }
            count
        });
        if rest < request.len() {
            socket.write_all(&finish).expect("it is read again");
        }
        socket.shutdown(Shutdown::Write).expect("it is open");
        let expected = whole + usize::from(rest < request.len());
        assert_eq!(replies.join().expect("replies are whole"), expected, "{whole} requests");
        drop(socket);
        assert!(attacks.stage.ending(conn).clean);
    }
    attacks.end();
}

#[test]
fn a_front_end_that_leaves_with_replies_unread_is_gone_with_its_rings() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for shut in [None, Some(Shutdown::Read), Some(Shutdown::Both)] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        guest.exchange(20);
        let copy = guest.front.client().as_fd().try_clone_to_owned().expect("a duplicate");
        let mut socket = UnixStream::from(copy);
        flood(&mut socket, &M::GetFeatures.to_bytes(false));
        attacks.victim.must_go_on(50);
        if let Some(shut) = shut {
            socket.shutdown(shut).expect("it is open");
        }
        drop(socket);
        let conn = guest.conn;
        drop(guest);
        assert_eq!(attacks.stage.ending(conn).pins, 0);
        assert_eq!(attacks.stage.windows().live(), 1);
    }
    attacks.end();
}

#[test]
fn a_front_end_that_does_not_read_the_channel_of_the_back_end_loses_news_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    assert!(guest.front.protocol().contains(ProtocolFeatures::BACKEND_REQ));
    // The same one end again and again: each of ours is closed when the next comes.
    let (_theirs, ours) = UnixStream::pair().expect("sockets");
    for _ in 0..100 {
        guest.front.client().set_backend_req_fd(ours.as_fd()).expect("a connected stream");
    }
    drop((_theirs, ours));
    guest.share();
    guest.start_rings();
    guest.exchange(20);
    attacks.leave("a channel nobody reads", guest);
    attacks.end();
}
