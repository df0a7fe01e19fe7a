//! Whether an interface of the host is up, and its MTU, followed by netlink (rtnetlink(7)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, netdevice, recv, send, socket_with};

/// `RTMGRP_LINK`: tell of every interface that changes.
const GROUP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_MTU: u16 = 4;
/// An administrator wants it up, and there is a carrier.
const UP: u32 = 1 | 0x1_0000;
/// `struct nlmsghdr`, `struct ifinfomsg`.
const MESSAGE: usize = 16;
const INFO: usize = 16;

/// One interface, watched.
pub(super) struct Watch {
    socket: OwnedFd,
    index: u32,
    up: AtomicBool,
    mtu: AtomicU32,
}

/// What a message says of the interface.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum News {
    Is { up: bool, mtu: Option<u32> },
    Gone,
}

impl Watch {
    /// Watches the interface that has this name now, whatever it is called later.
    ///
    /// # Errors
    /// No such interface; no netlink.
    pub(super) fn new(name: &str) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // NETLINK_ROUTE is protocol 0.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP_LINK))?;
        let index = netdevice::name_to_index(&socket, name)?;
        let watch = Self { socket, index, up: AtomicBool::new(false), mtu: AtomicU32::new(0) };
        watch.ask()?;
        watch.look(|| true);
        Ok(watch)
    }

    /// Whether frames can pass.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// The largest packet of the interface, without its Ethernet header; 0 if it is not known.
    pub(super) fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Takes note of what has been told. `exists` is asked when the interface has left this network namespace: where it
    /// goes on it cannot be watched, and counts as up. Whether up has become down, or down up.
    pub(super) fn look(&self, exists: impl Fn() -> bool) -> bool {
        let before = self.is_up();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => break,
                Ok((len, _)) => {
                    for news in messages(buffer.get(..len).unwrap_or_default(), self.index) {
                        let (up, mtu) = match news {
                            News::Is { up, mtu } => (up, mtu),
                            News::Gone => (exists(), None),
                        };
                        self.up.store(up, Ordering::Relaxed);
                        self.mtu.store(mtu.unwrap_or(self.mtu()), Ordering::Relaxed);
                    }
                }
                Err(Errno::INTR) => {}
                // Something was lost: it is asked for.
                Err(Errno::NOBUFS) if self.ask().is_ok() => {}
                Err(_) => break,
            }
        }
        before != self.is_up()
    }

    /// Asks for the state of the interface; the answer waits in the socket when this returns.
    fn ask(&self) -> Result<(), Errno> {
        let mut request = Vec::with_capacity(MESSAGE + INFO);
        request.extend(((MESSAGE + INFO) as u32).to_ne_bytes());
        request.extend(RTM_GETLINK.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([0; 4]);
        request.extend(self.index.to_ne_bytes());
        request.extend([0; 8]);
        send(&self.socket, &request, SendFlags::empty()).map(drop)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the messages of a datagram say of interface `index`, in order.
fn messages(mut datagram: &[u8], index: u32) -> impl Iterator<Item = News> + '_ {
    std::iter::from_fn(move || {
        while let Some(len) = word(datagram, 0).and_then(|len| usize::try_from(len).ok()) {
            let message = datagram.get(..len).filter(|message| message.len() >= MESSAGE)?;
            // Messages start at multiples of four bytes.
            datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
            if let Some(news) = news(message, index) {
                return Some(news);
            }
        }
        None
    })
}

fn news(message: &[u8], index: u32) -> Option<News> {
    let kind = half(message, 4)?;
    if word(message, MESSAGE + 4)? != index {
        return None;
    }
    match kind {
        RTM_NEWLINK => {
            let up = word(message, MESSAGE + 8)? & UP == UP;
            Some(News::Is { up, mtu: attribute(message.get(MESSAGE + INFO..)?, IFLA_MTU) })
        }
        RTM_DELLINK => Some(News::Gone),
        _ => None,
    }
}

/// The value of an attribute that is a word.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<u32> {
    loop {
        let len = usize::from(half(attributes, 0)?);
        if half(attributes, 2)? == wanted {
            return word(attributes, 4);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32, flags: u32, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        bytes.extend((32 + attributes.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn of_many_messages_only_those_of_the_interface_count() {
        // An attribute of 5 bytes, padded to 8, before the MTU.
        let mut attributes = [5u16.to_ne_bytes(), 3u16.to_ne_bytes()].concat();
        attributes.extend([b'x', 0, 0, 0]);
        attributes.extend([8u16.to_ne_bytes(), IFLA_MTU.to_ne_bytes()].concat());
        attributes.extend(9000u32.to_ne_bytes());
        let datagram = [
            message(RTM_NEWLINK, 7, UP | 0x40, &attributes),
            message(RTM_NEWLINK, 8, 0, &[]),
            message(RTM_NEWLINK, 7, 1, &[]),
            message(RTM_DELLINK, 7, 1, &[]),
        ]
        .concat();
        let told: Vec<_> = messages(&datagram, 7).collect();
        let no_carrier = News::Is { up: false, mtu: None };
        assert_eq!(told, [News::Is { up: true, mtu: Some(9000) }, no_carrier, News::Gone]);
    }

    #[test]
    fn messages_that_are_cut_short_are_no_messages() {
        let whole = message(RTM_NEWLINK, 7, UP, &[8, 0, 4]);
        for len in 0..whole.len() {
            assert_eq!(messages(&whole[..len], 7).count(), 0, "{len} bytes");
        }
        assert_eq!(messages(&whole, 7).collect::<Vec<_>>(), [News::Is { up: true, mtu: None }]);
    }

    #[test]
    fn loopback_interface_is_found_and_no_other_is() {
        let watch = Watch::new("lo").unwrap();
        assert!(watch.mtu() >= 1280, "the answer has come: {}", watch.mtu());
        assert!(!watch.look(|| true), "nothing has changed");
        assert!(Watch::new("no-such-one").is_err());
    }
}
