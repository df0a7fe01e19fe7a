use std::sync::mpsc::{Receiver, channel};

use mdev_dma::{Answer, RemoteMemory};
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vfio_user::{DmaReadDone, ToClient};
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;

/// A client with memory from address 0 on.
struct Peer {
    memory: Vec<u8>,
    layout: DmaLayout,
    /// Decodes as the client's end of a socket does.
    socket: (std::os::unix::net::UnixStream, Connection<ToClient>),
}

impl Peer {
    fn new(memory: Vec<u8>, layout: DmaLayout) -> Peer {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        Peer { memory, layout, socket: (ours, Connection::new(theirs)) }
    }

    /// What it answers to a message, as it arrives at the server.
    fn answer(&mut self, message: &[u8]) -> (Header, DmaReply) {
        use std::io::Write;
        let (mut ours, theirs) = (&self.socket.0, &mut self.socket.1);
        ours.write_all(message).unwrap();
        let Received::Message(frame) = theirs.receive().unwrap() else { panic!("no whole message") };
        let ToClient::Request(request) = frame.message else { panic!("no command") };
        let (layout, qemu) = (self.layout, self.layout == DmaLayout::Narrow);
        let reply = match request {
            DmaRequest::DmaRead(DmaRead { address, count }) => {
                let at = address as usize;
                let data = Data::new(&self.memory[at..at + count as usize]).unwrap();
                DmaReply::DmaRead(DmaReadDone { address, data, layout })
            }
            DmaRequest::DmaWrite(DmaWrite { address, data, layout: sent }) => {
                // A client reads what it finds where it looks for it.
                let body = &message[Header::LEN..];
                let from = if qemu { 12 } else { 16 };
                let at = address as usize;
                self.memory[at..at + data.len()].copy_from_slice(&body[from..from + data.len()]);
                assert!(qemu || sent == DmaLayout::Specified, "nobody else gets QEMU's layout");
                let count = data.len() as u64;
                DmaReply::DmaWrite(if qemu {
                    DmaWriteDone::Silent
                } else {
                    DmaWriteDone::Told { address, count }
                })
            }
        };
        let bytes = reply.to_bytes(&frame.header);
        let header = Header::read_from_bytes(&bytes[..Header::LEN]).unwrap();
        (header, through_the_wire(&bytes))
    }
}

/// A reply as the server's end of a socket decodes it.
fn through_the_wire(bytes: &[u8]) -> DmaReply {
    use mdev_protocol::vfio_user::ToServer;
    use std::io::Write;
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut server = Connection::<ToServer>::new(theirs);
    ours.write_all(bytes).unwrap();
    match server.receive().unwrap() {
        Received::Message(frame) => match frame.message {
            ToServer::Reply(reply) => reply,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn wire() -> Wire {
    Wire::new(Outbox::new().unwrap())
}

fn reply() -> (Reply, Receiver<Answer>) {
    let (end, ended) = channel();
    (Reply::new(move |answer| drop(end.send(answer))), ended)
}

fn read(wire: &Wire, address: u64, len: usize) -> Receiver<Answer> {
    let (reply, ended) = reply();
    wire.outbox().read(address, len, reply);
    ended
}

fn write(wire: &Wire, address: u64, bytes: Vec<u8>) -> Receiver<Answer> {
    let (reply, ended) = reply();
    wire.outbox().write(address, bytes, reply);
    ended
}

/// The header of the reply to a message.
fn header_of(message: &[u8]) -> Header {
    Header::read_from_bytes(&message[..Header::LEN]).unwrap().reply(0)
}

fn done(address: u64, bytes: &[u8]) -> DmaReply {
    let data = Data::new(bytes).unwrap();
    DmaReply::DmaRead(DmaReadDone { address, data, layout: DmaLayout::Specified })
}

#[test]
fn transfer_longer_than_a_message_is_cut_and_ends_with_its_last_piece_whatever_the_order() {
    let mut wire = wire();
    wire.limit(1000);
    wire.layout = Some(DmaLayout::Specified);
    let mut peer = Peer::new((0..10_000u32).map(|at| at as u8 | 1).collect(), DmaLayout::Specified);
    let ended = read(&wire, 100, 2500);
    let messages: Vec<_> = std::iter::from_fn(|| wire.next_message()).collect();
    assert_eq!(messages.len(), 3);
    for message in messages.iter().rev() {
        assert!(ended.try_recv().is_err(), "not before the last");
        let (header, reply) = peer.answer(message);
        wire.answered(&header, reply).unwrap();
    }
    assert_eq!(ended.try_recv().unwrap(), Ok(peer.memory[100..2600].to_vec()));
    assert!(wire.begun.is_empty() && wire.sent.is_empty());
}

#[test]
fn client_that_never_answers_gets_a_bounded_number_of_messages_and_late_answers_are_dropped() {
    let mut wire = wire();
    wire.layout = Some(DmaLayout::Specified);
    let wanted = Arc::new(std::sync::atomic::AtomicBool::new(true));
    for address in 0..200u64 {
        let seen = wanted.clone();
        let is_wanted = move || seen.load(std::sync::atomic::Ordering::Relaxed);
        wire.outbox().read(address, 4, Reply::while_wanted(drop, is_wanted));
    }
    let first: Vec<_> = std::iter::from_fn(|| wire.next_message()).collect();
    assert_eq!(first.len(), MOST_SENT);
    wanted.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(wire.next_message(), None);
    let ended = read(&wire, 7, 4);
    assert_eq!(wire.outbox().lock().len(), 1, "what was given up has left the queue");
    assert!(wire.begun.is_empty(), "and holds no memory");
    assert_eq!(wire.next_message(), None);
    wire.answered(&header_of(&first[0]), done(0, &[1; 4])).unwrap();
    let message = wire.next_message().unwrap();
    wire.answered(&header_of(&message), done(7, &[2; 4])).unwrap();
    assert_eq!(ended.try_recv().unwrap(), Ok(vec![2; 4]));
}

/// What a client answers to the message that this reply header belongs to.
type Lie = fn(&Header) -> (Header, DmaReply);

#[test]
fn answers_that_lie_fail_their_transfer_and_no_other() {
    let lies: [Lie; 6] = [
        |header| (*header, done(0x1001, &[1; 8])),
        |header| (*header, done(0x1000, &[1; 7])),
        |header| (*header, done(0x1000, &[1; 9])),
        |header| (*header, DmaReply::Failed(14)),
        |header| (*header, DmaReply::Failed(0)),
        |header| {
            (Header { command: Command::DmaWrite.id(), ..*header }, DmaReply::DmaWrite(DmaWriteDone::Silent))
        },
    ];
    let errors = [Errno::PROTO, Errno::PROTO, Errno::PROTO, Errno::FAULT, Errno::IO, Errno::PROTO];
    for (lie, errno) in lies.iter().zip(errors) {
        let mut wire = wire();
        wire.layout = Some(DmaLayout::Specified);
        let (lied, other) = (read(&wire, 0x1000, 8), read(&wire, 0x2000, 8));
        let (one, two) = (wire.next_message().unwrap(), wire.next_message().unwrap());
        let (header, reply) = lie(&header_of(&one));
        let _ = wire.answered(&header, reply);
        assert_eq!(lied.try_recv().unwrap(), Err(errno.raw_os_error()));
        assert!(other.try_recv().is_err());
        wire.answered(&header_of(&two), done(0x2000, &[3; 8])).unwrap();
        assert_eq!(other.try_recv().unwrap(), Ok(vec![3; 8]));
    }
}

#[test]
fn answers_that_nobody_asked_for_are_stray() {
    let mut wire = wire();
    let message = {
        let _ended = read(&wire, 0, 4);
        wire.next_message().unwrap()
    };
    let strange = Header { id: 999, ..header_of(&message) };
    assert_eq!(wire.answered(&strange, done(0, &[0; 4])), Err(Stray::Unasked));
    wire.answered(&header_of(&message), done(0, &[0; 4])).unwrap();
    assert_eq!(wire.answered(&header_of(&message), done(0, &[0; 4])), Err(Stray::Unasked), "twice");
    assert_eq!(wire.garbled(&strange), Err(Stray::Unasked));
    let ended = read(&wire, 0, 4);
    let message = wire.next_message().unwrap();
    wire.garbled(&header_of(&message)).unwrap();
    assert_eq!(ended.try_recv().unwrap(), Err(Errno::PROTO.raw_os_error()));
}

#[test]
fn end_of_the_client_fails_all_that_waits() {
    let mut wire = wire();
    let (one, two) = (read(&wire, 0, 4), write(&wire, 0, vec![1]));
    wire.next_message().unwrap();
    wire.close();
    assert_eq!(one.try_recv().unwrap(), Err(Errno::IO.raw_os_error()));
    assert_eq!(two.try_recv().unwrap(), Err(Errno::IO.raw_os_error()));
}

proptest! {
    /// Whatever layout a client has, it is found out, and all ends as if its memory were here. Transfers do not overlap, since
    /// they have no order.
    #[test]
    fn transfers_are_those_of_a_naive_memory(
        narrow in any::<bool>(),
        limit in 1u32..100,
        sparse in any::<bool>(),
        steps in proptest::collection::vec((any::<bool>(), 1usize..200, any::<u8>(), any::<prop::sample::Index>()), 1..40),
    ) {
        let layout = if narrow { DmaLayout::Narrow } else { DmaLayout::Specified };
        // Zeros in front and behind are what both layouts have in common.
        let byte = |at: usize| if sparse && at % 50 != 17 { 0 } else { at as u8 };
        let mut model: Vec<u8> = (0..8000).map(byte).collect();
        let mut peer = Peer::new(model.clone(), layout);
        let mut wire = wire();
        wire.limit(limit);
        let mut waiting = Vec::new();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for (number, (writes, len, value, order)) in steps.into_iter().enumerate() {
            let at = number * 200;
            if writes {
                let bytes: Vec<u8> = (0..len).map(|index| if index < 6 { 0 } else { value }).collect();
                model[at..at + len].copy_from_slice(&bytes);
                waiting.push((write(&wire, at as u64, bytes), Vec::new()));
            } else {
                waiting.push((read(&wire, at as u64, len), model[at..at + len].to_vec()));
            }
            sent.extend(wire.next_message());
            if !sent.is_empty() {
                let message = sent.swap_remove(order.index(sent.len()));
                let (header, reply) = peer.answer(&message);
                prop_assert_eq!(wire.answered(&header, reply), Ok(()));
            }
        }
        loop {
            sent.extend(std::iter::from_fn(|| wire.next_message()));
            let Some(message) = sent.pop() else { break };
            let (header, reply) = peer.answer(&message);
            prop_assert_eq!(wire.answered(&header, reply), Ok(()));
        }
        for (ended, expected) in waiting {
            prop_assert_eq!(ended.try_recv().unwrap(), Ok(expected));
        }
        prop_assert_eq!(peer.memory, model);
        prop_assert!(wire.begun.is_empty() && wire.sent.is_empty());
    }
}
