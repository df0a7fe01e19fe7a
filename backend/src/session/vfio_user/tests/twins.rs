//! Clients that do on their second socket what they should not.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{
    Client, Command as Message, Data, DmaLayout, DmaReadDone, DmaReply, Header, Request, ToClient, Version,
};
use zerocopy::{FromBytes, IntoBytes};

use super::host::Host;
use super::remote::{REMOTE, capabilities, command, map};
use super::{ANSWER, Server, soon};
use crate::worker::Mode;

/// A client that has agreed on a second socket, and the socket.
fn twins(server: &Server) -> (Client, UnixStream) {
    let socket = UnixStream::connect(server.path()).unwrap();
    let mut first = Connection::<ToClient>::new(socket.try_clone().unwrap());
    let version = Request::Version(Version { major: 0, minor: 0, capabilities: capabilities(true) });
    first.send(&version.to_bytes(0, false), &[]).unwrap();
    let mut end: Option<OwnedFd> = None;
    assert!(soon(|| {
        if let Received::Message(frame) = first.receive().unwrap() {
            end = frame.fds.into_iter().next();
        }
        end.is_some()
    }));
    let second = UnixStream::from(end.unwrap());
    second.set_read_timeout(Some(ANSWER)).unwrap();
    (Client::new(socket, ANSWER), second)
}

fn header(second: &mut UnixStream) -> Header {
    let mut header = [0; Header::LEN];
    second.read_exact(&mut header).unwrap();
    Header::read_from_bytes(&header).unwrap()
}

#[test]
fn malformed_command_on_the_second_socket_is_refused_and_answers_nothing() {
    let server = Server::start(Mode::Adaptive);
    let (client, mut second) = twins(&server);
    let mut host = Host::new(client);
    host.client.dma_map(map(REMOTE, 4096), None).unwrap();
    host.submit(command(nvm::WRITE, 4096, [REMOTE, 0]));
    let asked = header(&mut second);
    assert_eq!(asked.command, Message::DmaRead.id());
    second.read_exact(&mut [0; 16]).unwrap();
    // One that is too short, and one that only the device gives: both with the number of what the device has asked.
    for command in [Message::DeviceGetInfo, Message::DmaRead] {
        second.write_all(Header::command(asked.id, command.id(), 0, false).as_bytes()).unwrap();
        let refused = header(&mut second);
        assert!(refused.is_failure() && refused.command == command.id());
    }
    let data = Data::new(&[7; 4096]).unwrap();
    let done = DmaReadDone { address: REMOTE, data, layout: DmaLayout::Specified };
    second.write_all(&DmaReply::DmaRead(done).to_bytes(&asked)).unwrap();
    assert!(soon(|| {
        server.held.finish_all();
        host.has_completion()
    }));
    assert_eq!(host.reap_unserved().status(), Status::SUCCESS);
    assert_eq!(server.held.bytes()[..4096], [7; 4096]);
}
