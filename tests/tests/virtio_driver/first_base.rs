//! A relay that corrects where the driver says that its packed rings begin.
//!
//! `virtio-driver` 0.6 sends 0, and begins with wrap counters of 1: indices and counters stand in one number, and a ring of that base has
//! been gone round once. Nobody but the sender can tell.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const SET_VRING_BASE: u32 = 10;
/// Request, flags, size of what follows.
const HEADER: usize = 12;
/// Both indices 0, both wrap counters 1.
const FIRST: u32 = 0x8000_8000;

/// Listen beside the socket of the device for one driver, and return where.
pub fn relay(device: &Path) -> PathBuf {
    let path = device.with_extension("relay");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut back = UnixStream::connect(device).expect("the device listens");
    std::thread::spawn(move || {
        let (mut front, _) = listener.accept().expect("a driver");
        let (front_, back_) = (front.try_clone().expect("a socket"), back.try_clone().expect("a socket"));
        std::thread::spawn(move || {
            while message(&front_, &back_).is_some() {}
            let _ = back_.shutdown(Shutdown::Both);
        });
        let _ = std::io::copy(&mut back, &mut front);
        let _ = front.shutdown(Shutdown::Both);
    });
    path
}

/// Hand a message on, with its descriptors; `None` at the end.
fn message(mut front: &UnixStream, back: &UnixStream) -> Option<()> {
    let mut bytes = vec![0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(front, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| if let RecvAncillaryMessage::ScmRights(fds) = part { Some(fds) } else { None })
        .flatten()
        .collect();
    front.read_exact(&mut bytes[received.bytes..]).ok().filter(|()| received.bytes > 0)?;
    let word =
        |bytes: &[u8], at: usize| bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    let (request, size) = (word(&bytes, 0), word(&bytes, 8) as usize);
    bytes.resize(HEADER + size, 0);
    front.read_exact(&mut bytes[HEADER..]).ok()?;
    if request == SET_VRING_BASE && word(&bytes, HEADER + 4) == 0 {
        bytes[HEADER + 4..].copy_from_slice(&FIRST.to_le_bytes());
    }
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let sent = sendmsg(back, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).ok()?;
    (sent == bytes.len()).then_some(())
}
