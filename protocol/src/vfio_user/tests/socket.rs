//! What the framing has to bear for the sake of this protocol.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::frame::{Connection, FdError, MAX_PENDING_BYTES, Received, SendError};

fn pair() -> (Connection<ToClient>, Connection<ToServer>) {
    let (front, back) = UnixStream::pair().unwrap();
    (Connection::new(front), Connection::new(back))
}

fn wire(count: u32) -> Request {
    let data = IrqData::Eventfd { count };
    Request::DeviceSetIrqs(SetIrqs::new(2, 0, IrqAction::Trigger, data).unwrap())
}

#[test]
fn sixteen_descriptors_come_with_one_message_and_more_are_neither_sent_nor_taken() {
    let (mut client, mut server) = pair();
    let file = File::open("/dev/null").unwrap();
    client.send(&wire(16).to_bytes(0, false), &[file.as_fd(); 16]).unwrap();
    let Ok(Received::Message(frame)) = server.receive() else { panic!() };
    assert_eq!((frame.message, frame.fds.len()), (ToServer::Request(wire(16)), 16));
    let error = client.send(&wire(17).to_bytes(0, false), &[file.as_fd(); 17]).unwrap_err();
    assert!(matches!(error, SendError::TooManyFds(17)), "{error}");
    assert!(matches!(server.receive(), Ok(Received::WouldBlock)));
}

#[test]
fn seventeen_descriptors_are_closed_and_only_their_message_is_refused() {
    let (front, back) = UnixStream::pair().unwrap();
    let mut server = Connection::<ToServer>::new(back);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(17))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [writer.as_fd(); 17];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [wire(16).to_bytes(0, false), Request::DeviceReset.to_bytes(1, false)];
    for (bytes, control) in bytes.iter().zip([&mut control, &mut Default::default()]) {
        let io = [std::io::IoSlice::new(bytes)];
        rustix::net::sendmsg(&front, &io, control, rustix::net::SendFlags::empty()).unwrap();
    }
    drop(writer);
    let Ok(Received::Rejected { header, error }) = server.receive() else { panic!() };
    assert_eq!((header.command, error), (8, MessageError::Fds(FdError::TooMany)));
    let Ok(Received::Message(frame)) = server.receive() else { panic!() };
    assert_eq!(frame.message, ToServer::Request(Request::DeviceReset));
    assert_eq!(File::from(reader).read(&mut [0]).unwrap(), 0, "all are closed");
}

#[test]
fn longest_message_waits_alone_for_a_peer_that_does_not_read() {
    let (mut client, mut server) = pair();
    let data = Data::zeroed(MAX_DATA).unwrap();
    let reply = Reply::RegionRead(RegionReadDone { offset: 0, region: 0, data });
    let bytes = reply.to_bytes(&golden::asked(Command::RegionRead));
    // The first is begun at once; the second finds the socket full, and others before it.
    server.send(&bytes, &[]).unwrap();
    assert!(server.pending_output() > MAX_PENDING_BYTES);
    assert!(matches!(server.send(&bytes, &[]), Err(SendError::Full { .. })));
    loop {
        match client.receive().unwrap() {
            Received::Message(frame) => {
                assert_eq!(frame.message, ToClient::Reply(reply));
                break;
            }
            Received::WouldBlock => drop(server.flush().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.pending_output(), 0);
}

#[test]
fn long_message_that_finds_the_socket_full_is_taken_when_nothing_else_waits() {
    let (mut client, mut server) = pair();
    let mut sent = 0;
    while server.pending_output() == 0 {
        server.send(&Reply::DeviceReset.to_bytes(&golden::asked(Command::DeviceReset)), &[]).unwrap();
        sent += 1;
    }
    // One message is read, so that the one that waits goes out, and the socket is full again.
    assert!(matches!(client.receive(), Ok(Received::Message(_))));
    while !server.flush().unwrap() {
        assert!(matches!(client.receive(), Ok(Received::Message(_))));
    }
    let data = Data::zeroed(MAX_DATA).unwrap();
    let long = Reply::RegionRead(RegionReadDone { offset: 0, region: 0, data });
    server.send(&long.to_bytes(&golden::asked(Command::RegionRead)), &[]).unwrap();
    let mut seen = 0;
    loop {
        match client.receive().unwrap() {
            Received::Message(frame) if frame.message == ToClient::Reply(long.clone()) => break,
            Received::Message(_) => seen += 1,
            Received::WouldBlock => drop(server.flush().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert!(seen < sent && server.pending_output() == 0);
}

#[test]
fn room_of_a_long_message_is_given_back() {
    let mut decoder = Decoder::<ToServer>::new();
    let long = RegionWrite { offset: 0, region: 0, data: Data::zeroed(MAX_DATA).unwrap() };
    let bytes = Request::RegionWrite(long).to_bytes(0, false);
    decoder.feed(&bytes[..bytes.len() - 1], Fds::new()).unwrap();
    assert!(decoder.held().0 >= bytes.len());
    assert!(matches!(decoder.feed(&bytes[bytes.len() - 1..], Fds::new()), Ok((1, Some(_)))));
    assert!(decoder.held().0 <= 64 * 1024);
}
