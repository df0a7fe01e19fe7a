use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::vhost_user::{
    BackendMessage, FrontendMessage, FrontendReply, Header, MessageError, ProtocolFeatures, VringFd,
    VringState, golden,
};

type Back = Connection<FrontendMessage>;

/// A connected pair: a plain socket for what a peer may do, a connection under test.
fn pair() -> (UnixStream, Back) {
    let (peer, socket) = UnixStream::pair().unwrap();
    (peer, Connection::new(socket))
}

fn raw_send(peer: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(fds)));
    }
    let io = [std::io::IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(peer, &io, &mut control, rustix::net::SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

fn message(received: Received<FrontendMessage>) -> Frame<FrontendMessage> {
    match received {
        Received::Message(frame) => frame,
        other => panic!("expected a message, got {other:?}"),
    }
}

fn rejection(received: Received<FrontendMessage>) -> MessageError {
    match received {
        Received::Rejected { error, .. } => error,
        other => panic!("expected a rejection, got {other:?}"),
    }
}

fn kick(index: u8) -> FrontendMessage {
    FrontendMessage::SetVringKick(VringFd { index, has_fd: true })
}

fn num(index: u32) -> FrontendMessage {
    FrontendMessage::SetVringNum(VringState { index, num: 256 })
}

/// True if every duplicate of the pipe's writing end is closed.
fn all_closed(reader: &mut File) -> bool {
    reader.read(&mut [0; 1]).unwrap() == 0
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    (File::from(reader), writer)
}

#[test]
fn descriptors_stay_with_their_message_when_messages_queue_up() {
    let (peer, mut connection) = pair();
    let (a, b) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
    raw_send(&peer, &num(0).to_bytes(false), &[]);
    raw_send(&peer, &kick(0).to_bytes(false), &[a.as_fd()]);
    raw_send(&peer, &num(1).to_bytes(false), &[]);
    raw_send(&peer, &kick(1).to_bytes(false), &[b.as_fd()]);
    for (expected, file) in [(num(0), None), (kick(0), Some(&a)), (num(1), None), (kick(1), Some(&b))] {
        let frame = message(connection.receive().unwrap());
        assert_eq!(frame.message, expected);
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        let got: Vec<_> = frame.fds.iter().map(|fd| inode(fd.as_fd())).collect();
        assert_eq!(got, file.iter().map(|file| inode(file.as_fd())).collect::<Vec<_>>());
    }
    assert!(matches!(connection.receive(), Ok(Received::WouldBlock)));
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Received::Closed)));
}

#[test]
fn received_descriptors_are_closed_on_exec() {
    let (peer, mut connection) = pair();
    raw_send(&peer, &kick(0).to_bytes(false), &[peer.as_fd()]);
    let frame = message(connection.receive().unwrap());
    let flags = rustix::io::fcntl_getfd(&frame.fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn byte_by_byte_gives_the_same_message() {
    let (mut peer, mut connection) = pair();
    let bytes = num(7).to_bytes(true);
    for byte in &bytes[..bytes.len() - 1] {
        peer.write_all(&[*byte]).unwrap();
        assert!(matches!(connection.receive(), Ok(Received::WouldBlock)));
    }
    peer.write_all(&bytes[bytes.len() - 1..]).unwrap();
    assert_eq!(message(connection.receive().unwrap()).message, num(7));
}

#[test]
fn late_descriptors_are_closed_and_only_their_message_is_rejected() {
    let (peer, mut connection) = pair();
    let (mut reader, writer) = pipe();
    let bytes = kick(0).to_bytes(true);
    for cut in [4, Header::LEN, Header::LEN + 3] {
        raw_send(&peer, &bytes[..cut], &[]);
        assert!(matches!(connection.receive(), Ok(Received::WouldBlock)));
        raw_send(&peer, &bytes[cut..], &[writer.as_fd()]);
        raw_send(&peer, &num(0).to_bytes(false), &[]);
        assert_eq!(rejection(connection.receive().unwrap()), MessageError::Fds(FdError::Late));
        assert_eq!(message(connection.receive().unwrap()).message, num(0));
    }
    drop(writer);
    assert!(all_closed(&mut reader));
}

#[test]
fn more_descriptors_than_any_message_has_are_closed() {
    for count in [9, 10, 32] {
        let (peer, mut connection) = pair();
        let (mut reader, writer) = pipe();
        raw_send(&peer, &kick(0).to_bytes(true), &vec![writer.as_fd(); count]);
        drop(writer);
        assert_eq!(rejection(connection.receive().unwrap()), MessageError::Fds(FdError::TooMany));
        assert!(all_closed(&mut reader), "{count} descriptors");
        raw_send(&peer, &num(0).to_bytes(false), &[]);
        assert_eq!(message(connection.receive().unwrap()).message, num(0));
    }
}

#[test]
fn surplus_and_ignored_descriptors_are_closed() {
    let (peer, mut connection) = pair();
    let (mut reader, writer) = pipe();
    raw_send(&peer, &num(0).to_bytes(true), &[writer.as_fd()]);
    raw_send(&peer, &FrontendMessage::RemMemReg(Default::default()).to_bytes(true), &[writer.as_fd()]);
    drop(writer);
    let error = rejection(connection.receive().unwrap());
    assert_eq!(error, MessageError::SurplusFds { name: "SET_VRING_NUM", got: 1, max: 0 });
    assert!(message(connection.receive().unwrap()).fds.is_empty());
    assert!(all_closed(&mut reader));
}

#[test]
fn descriptors_of_a_message_cut_short_are_closed_with_the_connection() {
    let (peer, mut connection) = pair();
    let (mut reader, writer) = pipe();
    raw_send(&peer, &kick(0).to_bytes(true)[..13], &[writer.as_fd()]);
    drop((peer, writer));
    assert!(matches!(connection.receive(), Err(ReceiveError::Truncated)));
    drop(connection);
    assert!(all_closed(&mut reader));
}

#[test]
fn insane_header_ends_the_connection_for_good_and_closes_its_descriptors() {
    let (peer, mut connection) = pair();
    let (mut reader, writer) = pipe();
    let error = MessageError::TooLong { request: 1, size: u32::MAX, max: 2056 };
    raw_send(&peer, &golden::bytes("01000000 01000000 ffffffff"), &[writer.as_fd()]);
    raw_send(&peer, &num(0).to_bytes(false), &[]);
    drop(writer);
    for _ in 0..2 {
        match connection.receive() {
            Err(ReceiveError::Stream(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
    }
    assert!(all_closed(&mut reader));
}

#[test]
fn peer_that_closes_without_reading_is_gone_not_an_error() {
    let (peer, mut connection) = pair();
    connection.send(&FrontendReply::GetQueueNum(2).to_bytes(), &[]).unwrap();
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Received::Closed)));
    let error = connection.send(&FrontendReply::GetQueueNum(2).to_bytes(), &[]).unwrap_err();
    assert!(matches!(error, SendError::Io(_)), "{error}");
}

#[test]
fn output_waits_in_order_for_a_peer_that_stops_reading_and_is_bounded() {
    let (peer, mut connection) = pair();
    let file = File::open("/dev/null").unwrap();
    let reply = |n: u64| FrontendReply::SetDeviceStateFd(n).to_bytes();
    let fds_of = |n: u64| if n.is_multiple_of(2) { vec![] } else { vec![file.as_fd()] };
    let mut accepted = 0;
    let full = loop {
        match connection.send(&reply(accepted), &fds_of(accepted)) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SendError::Full { .. }), "{full}");
    let pending = connection.pending_output();
    assert!(pending > 0 && pending <= MAX_PENDING_BYTES);
    assert!(!connection.flush().unwrap());

    let mut front = Connection::<FrontendReply>::new(peer);
    let mut seen = 0;
    while seen < accepted {
        match front.receive().unwrap() {
            Received::Message(frame) => {
                assert_eq!(frame.message, FrontendReply::SetDeviceStateFd(seen));
                assert_eq!(frame.fds.len() as u64, seen % 2);
                seen += 1;
            }
            Received::WouldBlock => {
                connection.flush().unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(connection.pending_output(), 0);
    assert!(connection.flush().unwrap());
}

#[test]
fn more_descriptors_than_a_message_carries_are_not_sent() {
    let (_peer, mut connection) = pair();
    let fd = connection.as_fd().try_clone_to_owned().unwrap();
    let error = connection.send(&[0; 12], &[fd.as_fd(); 9]).unwrap_err();
    assert!(matches!(error, SendError::TooManyFds(9)), "{error}");
}

#[test]
fn both_ends_of_the_back_end_channel_understand_each_other() {
    let (front, back) = UnixStream::pair().unwrap();
    let mut front = Connection::<BackendMessage>::new(front);
    let mut back = Connection::<crate::vhost_user::BackendReply>::new(back);
    back.send(&BackendMessage::ConfigChangeMsg.to_bytes(true), &[]).unwrap();
    let Ok(Received::Message(asked)) = front.receive() else { panic!("no request") };
    assert_eq!((asked.message, asked.header.needs_reply()), (BackendMessage::ConfigChangeMsg, true));
    let reply = crate::vhost_user::BackendReply::ack(&asked.header, 0);
    front.send(&reply.to_bytes(), &[]).unwrap();
    let Ok(Received::Message(answer)) = back.receive() else { panic!("no reply") };
    assert_eq!(answer.message, reply);
}

/// All golden requests of the front-end as one stream, with where each begins and how many descriptors it has.
fn stream() -> (Vec<u8>, Vec<(usize, usize)>, Vec<FrontendMessage>) {
    let mut bytes = Vec::new();
    let mut starts = Vec::new();
    let mut messages = Vec::new();
    for (message, hex) in golden::frontend_messages() {
        let fds = match &message {
            FrontendMessage::SetMemTable(table) => table.regions().len(),
            FrontendMessage::SetVringCall(vring) => usize::from(vring.has_fd),
            other => *other.request().row().fds.range().end(),
        };
        starts.push((bytes.len(), fds));
        bytes.extend(golden::bytes(hex));
        messages.push(message);
    }
    (bytes, starts, messages)
}

proptest! {
    #[test]
    fn any_cut_of_the_stream_gives_the_same_messages(cuts in proptest::collection::btree_set(1usize..1000, 0..200)) {
        let (bytes, starts, messages) = stream();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
        // Descriptors come with the first byte of a piece, so pieces begin where they belong.
        cuts.extend(starts.iter().map(|(at, _)| *at));
        cuts.push(bytes.len());
        cuts.sort_unstable();
        cuts.dedup();
        let null = File::open("/dev/null").unwrap();
        let mut decoder = Decoder::<FrontendMessage>::new();
        let mut seen = Vec::new();
        for piece in cuts.windows(2) {
            let fds = starts.iter().find(|(at, _)| *at == piece[0]).map_or(0, |(_, fds)| *fds);
            let mut fds: Fds = (0..fds).map(|_| null.try_clone().unwrap().into()).collect();
            let mut rest = &bytes[piece[0]..piece[1]];
            while !rest.is_empty() {
                let (taken, decoded) = decoder.feed(rest, std::mem::take(&mut fds)).unwrap();
                rest = &rest[taken..];
                match decoded {
                    Some(Decoded::Message(frame)) => seen.push(frame.message),
                    Some(Decoded::Rejected { error, .. }) => prop_assert!(false, "{}", error),
                    None => {}
                }
            }
        }
        prop_assert!(!decoder.mid_message());
        prop_assert_eq!(seen, messages);
    }

    #[test]
    fn space_never_reaches_past_the_end_of_a_message(len in 0u32..=2056, pieces in proptest::collection::vec(1usize..700, 1..20)) {
        let mut decoder = Decoder::<FrontendMessage>::new();
        let header = [77, 1, len].map(u32::to_le_bytes).concat();
        prop_assert!(decoder.space().unwrap().len() <= Header::LEN);
        decoder.feed(&header, Fds::new()).unwrap();
        let mut left = len as usize;
        for piece in pieces {
            if left == 0 {
                break;
            }
            let space = decoder.space().unwrap().len();
            prop_assert_eq!(space, left);
            let read = piece.min(space);
            let done = decoder.advance(read, Fds::new(), false).unwrap();
            left -= read;
            prop_assert_eq!(done.is_some(), left == 0);
        }
    }
}

#[test]
fn protocol_features_keep_bits_nobody_knows() {
    let all = FrontendReply::GetProtocolFeatures(ProtocolFeatures::from_bits_retain(u64::MAX));
    let (peer, socket) = UnixStream::pair().unwrap();
    raw_send(&peer, &all.to_bytes(), &[]);
    let Ok(Received::Message(frame)) = Connection::<FrontendReply>::new(socket).receive() else { panic!() };
    assert_eq!(frame.message, all);
}
