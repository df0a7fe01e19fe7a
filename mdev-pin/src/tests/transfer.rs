//! Memory with a peer: transfers that it answers, refuses, answers late or never, while the bytes come and go.

use std::task::{Wake, Waker};

use mdev_dma::{RemoteExtent, RemoteMemory, Reply};

use super::*;
use crate::{AccessError, Move, Rw, Transfer, TransferState};

const BOTH: Perm = Perm::READ.union(Perm::WRITE);
const EIO: i32 = 5;

/// A peer that answers when the test says so.
#[derive(Default)]
struct Peer {
    asked: Mutex<Vec<(u64, Move, Reply)>>,
    /// It answers before the call returns.
    at_once: bool,
}

impl RemoteMemory for Peer {
    fn read(&self, address: u64, len: usize, reply: Reply) {
        if self.at_once {
            return reply.done(vec![address as u8; len]);
        }
        self.asked.lock().unwrap().push((address, Move::Read(len as u64), reply));
    }

    fn write(&self, address: u64, bytes: Vec<u8>, reply: Reply) {
        self.asked.lock().unwrap().push((address, Move::Write(bytes), reply));
    }
}

impl Peer {
    fn take(&self) -> (u64, Move, Reply) {
        self.asked.lock().unwrap().remove(0)
    }
}

fn area_of(peer: &Arc<Peer>, iova: u64, len: u64, address: u64) -> Area {
    let extent = RemoteExtent { memory: peer.clone(), address };
    Area { range: range(iova, len), extent: extent.into(), perm: BOTH, log: None }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn now(transfer: &mut Transfer) -> TransferState {
    transfer.poll(None)
}

#[test]
fn answers_end_transfers_and_wake_whoever_waits() {
    let s = space();
    let peer = Arc::new(Peer::default());
    s.ioas.map(area_of(&peer, 0x1000, 0x100, 0x7000)).unwrap();
    let mut read = s.access.transfer(Iova(0x1010), Move::Read(4)).unwrap();
    let mut write = s.access.transfer(Iova(0x10ff), Move::Write(vec![9])).unwrap();
    let woken = Arc::new(Woken::default());
    assert_eq!(read.poll(Some(&Waker::from(woken.clone()))), TransferState::Pending);
    let (address, what, reply) = peer.take();
    assert_eq!((address, what), (0x7010, Move::Read(4)));
    reply.done(vec![1, 2, 3, 4]);
    assert_eq!((woken.times(), now(&mut read)), (1, TransferState::Done(vec![1, 2, 3, 4])));
    assert_eq!(now(&mut read), TransferState::Done(vec![]), "the bytes are given out once");
    let (address, what, reply) = peer.take();
    assert_eq!((address, what), (0x70ff, Move::Write(vec![9])));
    assert_eq!(now(&mut write), TransferState::Pending);
    reply.done(vec![]);
    assert_eq!(now(&mut write), TransferState::Done(vec![]));

    for (answer, errno) in
        [(None, EIO), (Some(Ok(vec![1])), EIO), (Some(Ok(vec![0; 9])), EIO), (Some(Err(14)), 14)]
    {
        let mut read = s.access.transfer(Iova(0x1000), Move::Read(2)).unwrap();
        let reply = peer.take().2;
        match answer {
            Some(Ok(bytes)) => reply.done(bytes),
            Some(Err(errno)) => reply.failed(errno),
            None => drop(reply),
        }
        assert_eq!(now(&mut read), TransferState::Failed(errno));
    }
    assert_eq!((s.access.pins(), s.ioas.account().pinned()), (0, 0));
}

#[test]
fn answer_before_the_call_returns_is_kept() {
    let s = space();
    let peer = Arc::new(Peer { at_once: true, ..Peer::default() });
    s.ioas.map(area_of(&peer, 0, 0x100, 5)).unwrap();
    let mut read = s.access.transfer(Iova(2), Move::Read(3)).unwrap();
    assert_eq!(now(&mut read), TransferState::Done(vec![7; 3]));
}

#[test]
fn transfers_that_cannot_be_begun_say_why_and_send_nothing() {
    let s = pinning_space(Arc::new(IgnoreUnmap));
    let peer = Arc::new(Peer::default());
    s.ioas.map(area_of(&peer, 0, PAGE, 0)).unwrap();
    s.ioas.map(Area { perm: Perm::READ, ..area_of(&peer, PAGE, PAGE, 0x8000) }).unwrap();
    s.ioas.map(area(&memory(1), 2 * PAGE, PAGE, 0)).unwrap();
    let begin = |iova, what| s.access.transfer(Iova(iova), what).map(drop).map_err(|error| error.errno());
    assert_eq!(begin(0, Move::Read(0)), Err(22));
    assert_eq!(begin(u64::MAX, Move::Read(2)), Err(75));
    assert_eq!(begin(PAGE, Move::Write(vec![1])), Err(1));
    assert_eq!(begin(PAGE - 1, Move::Read(2)), Err(22), "two areas");
    assert_eq!(begin(2 * PAGE, Move::Read(2)), Err(22), "host memory");
    assert_eq!(begin(3 * PAGE, Move::Read(2)), Err(2));
    assert!(peer.asked.lock().unwrap().is_empty());
    assert_eq!(begin(PAGE, Move::Read(1)), Ok(()));
    // The other ways to memory do not lead here.
    let errno = |result: Result<(), AccessError>| result.unwrap_err().errno();
    assert_eq!(errno(s.access.rw(Iova(0), Rw::Read(&mut [0]))), 22);
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ).map(drop)), 22);
    assert_eq!(
        s.access.lane().enter().slice(Iova(0), 8, BOTH).map(|s| s.len()),
        Err(ResolveError::Elsewhere)
    );
    s.access.detach(LONG).unwrap();
    assert_eq!(begin(0, Move::Read(1)), Err(2));
}

/// Says how many of its transfers had ended when it was told.
#[derive(Default)]
struct Device {
    transfers: Mutex<Vec<Transfer>>,
    ended_when_told: Mutex<Vec<usize>>,
}

impl AccessOps for Device {
    fn on_unmap(&self, _range: IovaRange) {
        let mut transfers = self.transfers.lock().unwrap();
        let ended = transfers
            .iter_mut()
            .filter_map(|transfer| (now(transfer) != TransferState::Pending).then_some(()));
        let ended = ended.count();
        self.ended_when_told.lock().unwrap().push(ended);
    }
}

#[test]
fn bytes_that_leave_cancel_their_transfers_before_the_device_is_told_and_nobody_waits_for_the_peer() {
    let device = Arc::new(Device::default());
    let s = space_with(device.clone());
    let peer = Arc::new(Peer::default());
    for at in 0..4 {
        s.ioas.map(area_of(&peer, at * PAGE, PAGE, at * PAGE)).unwrap();
    }
    let woken = Arc::new(Woken::default());
    let begin = |at: u64| {
        let mut transfer = s.access.transfer(Iova(at * PAGE), Move::Read(1)).unwrap();
        assert_eq!(transfer.poll(Some(&Waker::from(woken.clone()))), TransferState::Pending);
        device.transfers.lock().unwrap().push(transfer);
    };
    (0..4).for_each(begin);
    s.ioas.unmap(range(0, PAGE), LONG).unwrap();
    assert_eq!((device.ended_when_told.lock().unwrap().as_slice(), woken.times()), ([1].as_slice(), 1));
    let stay = area_of(&peer, 2 * PAGE, 2 * PAGE, 2 * PAGE);
    s.ioas.replace_table(vec![stay], LONG).unwrap();
    assert_eq!((device.ended_when_told.lock().unwrap().as_slice(), woken.times()), ([1, 2].as_slice(), 2));
    // What stays is answered as if nothing had happened; what has gone is not heard.
    let replies: Vec<_> = (0..4).map(|_| peer.take().2).collect();
    let mut replies = replies.into_iter();
    replies.by_ref().take(3).for_each(|reply| reply.done(vec![5]));
    let states: Vec<_> = device.transfers.lock().unwrap().iter_mut().map(now).collect();
    use TransferState::{Cancelled, Done, Pending};
    assert_eq!(states, [Cancelled, Cancelled, Done(vec![5]), Pending]);
    s.access.close(LONG).unwrap();
    assert_eq!(now(&mut device.transfers.lock().unwrap()[3]), Cancelled);
    replies.for_each(|reply| reply.done(vec![5]));
    assert_eq!(now(&mut device.transfers.lock().unwrap()[3]), Cancelled, "the late answer is dropped");
    assert_eq!(woken.times(), 4);
}

#[test]
fn transfer_that_is_dropped_is_not_heard_and_an_access_may_go_before_it() {
    let s = space();
    let peer = Arc::new(Peer::default());
    s.ioas.map(area_of(&peer, 0, PAGE, 0)).unwrap();
    let transfer = s.access.transfer(Iova(0), Move::Read(1)).unwrap();
    let (_, _, reply) = peer.take();
    assert!(reply.is_wanted());
    drop(transfer);
    assert!(!reply.is_wanted(), "it need not be sent any more");
    reply.done(vec![1]);
    let mut last = s.access.transfer(Iova(0), Move::Read(1)).unwrap();
    drop(s);
    assert_eq!(now(&mut last), TransferState::Cancelled);
    peer.take().2.done(vec![1]);
    assert_eq!(Arc::strong_count(&peer), 1, "nothing of it is kept");
}
