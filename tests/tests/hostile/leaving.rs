//! Front-ends that are gone at any instant of their coming, with traffic on.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use mdev_protocol::vhost_user::{FrontendMessage as M, VringAddr, VringFd, VringState};
use mdev_protocol::virtio::feature::{VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_RING_F_EVENT_IDX};
use mdev_tests::random::Random;
use mdev_tests::stage::{FEATURES, Guest, GuestOptions, PROTOCOL, Port, await_that};
use mdevd::driver::{GuestMemory, MemoryOptions, RingFds, RingOptions, SplitQueue};
use mdevd::worker::Mode;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::files::described;
use super::latched::{ATTACKED, Attacks, Door};

const ROUNDS: u32 = 400;
/// Descriptors of the rings that the sequence starts.
pub const SIZE: u16 = 64;

/// Messages at the end of the sequence, the first of which changes nothing and the second of which stops a ring.
const STOPPING: usize = 4;

/// What a front-end says from its first word until traffic flows, each message with its descriptors.
pub fn sequence<'f>(
    memory: &'f GuestMemory,
    port: &Port,
    fds: &'f [RingFds; 2],
) -> Vec<(M, Vec<BorrowedFd<'f>>)> {
    let features = FEATURES | VIRTIO_RING_F_EVENT_IDX | VHOST_USER_F_PROTOCOL_FEATURES;
    let mut messages = vec![
        (M::GetFeatures, vec![]),
        (M::GetProtocolFeatures, vec![]),
        (M::SetProtocolFeatures(PROTOCOL), vec![]),
        (M::GetQueueNum, vec![]),
        (M::GetMaxMemSlots, vec![]),
        (M::SetOwner, vec![]),
        (M::SetFeatures(features), vec![]),
        (M::GetStatus, vec![]),
    ];
    for region in memory.regions() {
        messages.push((M::AddMemReg(described(region)), vec![region.extent.file.as_fd()]));
    }
    for (index, queue) in [(0u8, &port.rx), (1, &port.tx)] {
        let number = u32::from(index);
        let state = |num| VringState { index: number, num };
        let with_fd = VringFd { index, has_fd: true };
        let fds = &fds[usize::from(index)];
        messages.extend([
            (M::SetVringNum(state(SIZE.into())), vec![]),
            (M::SetVringBase(state(0)), vec![]),
            (M::SetVringAddr(address(memory, number, queue)), vec![]),
            (M::SetVringCall(with_fd), vec![fds.call.as_fd()]),
            (M::SetVringErr(with_fd), vec![fds.err.as_fd()]),
            (M::SetVringKick(with_fd), vec![fds.kick.as_fd()]),
            (M::SetVringEnable(state(1)), vec![]),
        ]);
    }
    // From here on `STOPPING`.
    messages.extend([
        (M::SetStatus(15), vec![]),
        (M::GetVringBase(VringState { index: 1, num: 0 }), vec![]),
        (M::SetVringKick(VringFd { index: 1, has_fd: true }), vec![fds[1].kick.as_fd()]),
        (M::RemMemReg(described(&memory.regions()[0])), vec![]),
    ]);
    messages
}

fn address(memory: &GuestMemory, index: u32, queue: &SplitQueue) -> VringAddr {
    let at = queue.addresses();
    let user = |at| memory.user(at).expect("it is in memory").0;
    VringAddr { index, flags: 0, desc: user(at.desc), used: user(at.used), avail: user(at.avail), log: 0 }
}

/// Sends a message with its descriptors; false when the back-end has turned the connection away.
fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
        Ok(sent) => sent == bytes.len(),
        Err(Errno::PIPE | Errno::CONNRESET) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Sends frames and takes what has come, whatever it is and whether or not the device still does its part.
fn speak(port: &mut Port, tx: &RingFds) {
    port.forgive();
    let _ = port.send(u64::MAX);
    let _ = port.receive_anything();
    tx.kick.signal();
}

/// A front-end comes, says a part of the sequence, perhaps stays for a moment, and is gone. Whether it was served: some wait for that,
/// where the device `is_free`.
pub fn vanish(door: &dyn Door, random: &mut Random, is_free: bool) -> bool {
    let mut memory = GuestMemory::new(MemoryOptions { size: 1 << 20, ..Default::default() }).expect("memory");
    let ring = RingOptions { event_idx: true, ..RingOptions::plain(SIZE) };
    let mut port = Port::new(&mut memory, ring).expect("room");
    // There is something to do as soon as the rings run.
    port.send(u64::MAX).expect("an empty ring");
    let fds = [RingFds::new().expect("eventfds"), RingFds::new().expect("eventfds")];
    let messages = sequence(&memory, &port, &fds);
    let (conn, socket) = door.enter();

    let last = random.below(messages.len() as u64 + 1) as usize;
    let mut there = true;
    for (message, fds) in messages.iter().take(last) {
        there = there && send(&socket, &message.to_bytes(random.one_in(2)), fds);
    }
    let runs = there && (messages.len() - STOPPING..messages.len() - STOPPING + 2).contains(&last);
    if is_free && runs && random.one_in(2) {
        await_that("a front-end that has said everything is served", || {
            // What was sent before the transmit ring was enabled may have been discarded.
            speak(&mut port, &fds[1]);
            port.rx.raw().used_index() != 0
        });
    }
    for _ in 0..random.below(4) * random.below(4) {
        speak(&mut port, &fds[1]);
        std::thread::yield_now();
    }
    let served = port.rx.raw().used_index() != 0;
    match (random.below(4), messages.get(last)) {
        // In the middle of a message.
        (0, Some((message, _))) if there => {
            let bytes = message.to_bytes(true);
            let some = 1 + random.below(bytes.len() as u64 - 1) as usize;
            send(&socket, &bytes[..some], &[]);
        }
        (1, _) if there => socket.shutdown(Shutdown::Write).expect("it is open"),
        (2, _) if there => socket.shutdown(Shutdown::Both).expect("it is open"),
        _ => {}
    }
    drop(messages);
    // Memory and descriptors go in any order.
    if random.one_in(2) {
        drop(socket);
        drop((port, memory, fds));
    } else {
        drop((port, memory, fds));
        drop(socket);
    }
    door.left(conn);
    served
}

#[test]
fn front_ends_that_vanish_at_random_instants_leave_nothing_behind() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut random = Random::seeded("front_ends_that_vanish");
    let mut served = 0;
    for round in 0..ROUNDS {
        served += u32::from(vanish(&attacks.stage, &mut random, true));
        if round % 40 == 0 {
            attacks.victim.must_go_on(20);
        }
    }
    assert!(served > 0, "no front-end ever stayed until it was served");

    // The device is none the worse for it.
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.exchange(100);
    attacks.leave("the last one", guest);
    attacks.end();
}
