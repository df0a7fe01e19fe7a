//! Clients with a second socket for what the device asks, who use the wrong one of the two, fill it, or close it.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::nvme::opcode::nvm::{READ, WRITE};
use mdev_protocol::vfio_user::{Capabilities, Client, Header, Request, ToClient, TwinSocket, Version};
use mdev_tests::stage::{WATCHDOG, await_that};
use zerocopy::IntoBytes;

use super::framing::Raw;
use super::house::IN_MEMORY;
use super::intruder::{ENTRIES, Intruder};
use super::line::{Line, ends, lend, load, must_work, page};
use super::trial::Trial;

/// A client whose controller works, and its second socket.
fn twins(path: &Path) -> (Intruder, UnixStream) {
    let socket = UnixStream::connect(path).expect("somebody listens");
    let mut first = Connection::<ToClient>::new(socket.try_clone().expect("a duplicate"));
    let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
    let capabilities = Capabilities { twin_socket, ..Capabilities::default() };
    let version = Request::Version(Version { major: 0, minor: 0, capabilities });
    first.send(&version.to_bytes(0, false), &[]).expect("room");
    let mut end: Option<OwnedFd> = None;
    await_that("a second socket", || {
        if let Ok(Received::Message(frame)) = first.receive() {
            end = frame.fds.into_iter().next();
        }
        end.is_some()
    });
    let mut intruder = Intruder::over(Client::new(socket, WATCHDOG));
    intruder.enable();
    intruder.create_pairs(1);
    intruder.must_work("at the beginning");
    (intruder, end.expect("it has come").into())
}

/// The same with memory that is lent without a descriptor: both sockets as lines, that of the device's commands last.
fn lines(path: &Path) -> (Intruder, Line, Line) {
    let (mut intruder, second) = twins(path);
    let main = lend(&mut intruder);
    (intruder, main, Line::on(second))
}

#[test]
fn answers_and_commands_on_the_wrong_socket_are_left_out() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("the truth, on the right one", |house| {
        let (mut intruder, _main, mut second) = lines(&house.target());
        must_work(&mut intruder, &mut second, "on a second socket");
    });
    trial.hit("answers on the main socket", |house| {
        let (mut intruder, mut main, mut second) = lines(&house.target());
        for opcode in [WRITE, READ] {
            intruder.submit(0, page(opcode));
            let asked = second.await_asked();
            main.say(&asked.filled(1).repeat(20));
            main.say(&asked.raw(asked.header.reply(0), &[7; 5]));
            assert!(!main.is_fatal());
            assert!(intruder.reap(0).is_empty(), "nothing has been answered");
            second.say(&asked.truth());
            assert!(ends(&mut intruder, &mut second).is_success());
        }
        must_work(&mut intruder, &mut second, "after all that");
    });
    trial.hit("commands on the second socket", |house| {
        let (mut intruder, _main, mut second) = lines(&house.target());
        intruder.submit(0, page(WRITE));
        let asked = second.await_asked();
        for number in 0..500 {
            // A reset must not be done, nor a question answered, nor one of the wrong length taken for an answer.
            let (command, body) = [(13, vec![]), (4, vec![16; 16]), (4, vec![])][number % 3].clone();
            second.say(&asked.raw(Header::command(asked.header.id, command, 0, false), &body));
            while second.asked().is_some() {}
        }
        assert!(intruder.reap(0).is_empty(), "nothing has been answered");
        second.say(&asked.truth());
        assert!(ends(&mut intruder, &mut second).is_success());
        must_work(&mut intruder, &mut second, "after all that");
    });
    trial.end();
}

/// Waits until the device has closed the main socket.
fn must_be_closed(intruder: &Intruder, what: &str) {
    let socket = UnixStream::from(intruder.client.as_fd().try_clone_to_owned().expect("a duplicate"));
    socket.set_read_timeout(Some(WATCHDOG)).expect("a watchdog");
    socket.set_nonblocking(false).expect("sockets can");
    Raw(socket).must_be_closed(what);
}

#[test]
fn second_socket_that_is_of_no_more_use_ends_the_connection_and_nothing_else() {
    let mut trial = Trial::begin("adaptive");
    for shut in [None, Some(Shutdown::Write), Some(Shutdown::Both)] {
        let what = format!("a second socket that is gone: {shut:?}");
        trial.hit(&what, |house| {
            let (mut intruder, second) = twins(&house.target());
            drop(lend(&mut intruder));
            load(&mut intruder, 0, READ, IN_MEMORY, ENTRIES - 1);
            if let Some(shut) = shut {
                second.shutdown(shut).expect("it is open");
                must_be_closed(&intruder, &what);
            } else {
                drop(second);
                must_be_closed(&intruder, &what);
            }
        });
    }
    trial.hit("a second socket in the middle of a message", |house| {
        let (mut intruder, _main, mut second) = lines(&house.target());
        intruder.submit(0, page(WRITE));
        let truth = second.await_asked().truth();
        second.say(&truth[..truth.len() / 2]);
        drop(second);
        must_be_closed(&intruder, "half an answer");
    });
    for size in [0, 15, (1 << 20) + 33, u32::MAX] {
        trial.hit(&format!("a message of {size} bytes on a second socket"), |house| {
            let (intruder, _main, mut second) = lines(&house.target());
            second.say(Header { size, ..Header::command(1, 11, 0, false).reply(0) }.as_bytes());
            must_be_closed(&intruder, "a length that cannot be");
        });
    }
    trial.hit("a second socket whose replies are not read", |house| {
        let (intruder, second) = twins(&house.target());
        // A reset has no body.
        let flood = Header::command(1, 13, 0, false).as_bytes().repeat(1 << 16);
        // As far as it is taken: the device closes it when it holds too much.
        let _ = std::io::Write::write_all(&mut &second, &flood);
        must_be_closed(&intruder, "replies that are not read");
    });
    trial.end();
}
