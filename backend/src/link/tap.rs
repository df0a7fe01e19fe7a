//! The `tap` link: an Ethernet interface of the host, which the guest's frames leave and enter by.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};
use rustix::io::Errno;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::watch::Watch;
use super::{DATAGRAMS, ETHERNET_HEADER, Frame, LinkName, MAX_FRAME, OFFLOADS, Room, touch};
use crate::limit::LogLimit;
use crate::sys::tap::{Arrival, Step, TapFile};

// `TUN_F_*` (linux/if_tun.h): what a reader of the interface understands.
const READS_CSUM: u32 = 0x01;
const READS_TSO4: u32 = 0x02;
const READS_TSO6: u32 = 0x04;
const READS_ECN: u32 = 0x08;
const READS_USO: u32 = 0x20 | 0x40;

/// Ethernet carries no shorter frame.
const SHORTEST: usize = 60;

/// Bytes of a VLAN tag, which the MTU leaves out.
const VLAN_TAG: usize = 4;

static TROUBLE: LogLimit = LogLimit::new(4, std::time::Duration::from_secs(10));

/// Why there is no such tap.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TapError {
    /// The kernel has no tap interfaces, or shows us none.
    #[error(
        "tap {name}: cannot open /dev/net/tun ({why}): load the module tun, or give the container the device"
    )]
    NoTun {
        /// The interface.
        name: LinkName,
        /// What open(2) answered.
        why: Errno,
    },
    /// We may not.
    #[error(
        "tap {name}: not permitted: making an interface needs CAP_NET_ADMIN; or let somebody make it for this user \
         beforehand: ip tuntap add dev {name} mode tap user USER vnet_hdr{}",
        if *.multi_queue { " multi_queue" } else { "" }
    )]
    Forbidden {
        /// The interface.
        name: LinkName,
        /// It needs several queues.
        multi_queue: bool,
    },
    /// Somebody else has it.
    #[error("tap {0} is in use by another process: end that one, or choose another name")]
    InUse(LinkName),
    /// The name is that of something else.
    #[error(
        "tap {name}: an interface of this name is there and is no tap{}: choose another name, or make it anew",
        if *.multi_queue { " of several queues (ip tuntap add ... multi_queue)" } else { "" }
    )]
    Unfit {
        /// The interface.
        name: LinkName,
        /// It needs several queues.
        multi_queue: bool,
    },
    /// Anything else.
    #[error("tap {name}: cannot {what}: {why}")]
    System {
        /// The interface.
        name: LinkName,
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        why: Errno,
    },
}

/// Why a frame did not get across.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The interface's queue is full.
    Full,
    /// It is down, or gone.
    Down,
    /// It had more bytes than there was room for.
    TooLong,
    /// The kernel does not take it.
    Refused,
    /// Some of the guest's memory is gone, which its window knows now.
    Memory,
}

/// A tap interface, with a queue for each queue pair of a device.
pub(crate) struct Tap {
    name: LinkName,
    queues: Vec<Arc<TapQueue>>,
    watch: Watch,
    /// Offloads this kernel has beyond those it always had: datagrams to be cut.
    cuts_datagrams: bool,
    /// What the reader is said to understand: `TUN_F_*`.
    reads: AtomicU32,
}

impl Tap {
    /// The interface `name` with so many queues; it is made if there is none.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn open(name: LinkName, queues: u16) -> Result<Self, TapError> {
        let many = queues > 1;
        let first = match TapFile::open(name.as_str(), many) {
            // One that was made for several queues serves one as well, if it is asked for like that.
            Err((Step::Attach, Errno::INVAL)) if !many => TapFile::open(name.as_str(), true)
                .map_err(|(_, why)| refused(name, many, Step::Attach, why))?,
            first => first.map_err(|(step, why)| refused(name, many, step, why))?,
        };
        let mut files = vec![first];
        for _ in 1..queues {
            let file = TapFile::open(name.as_str(), many);
            files.push(file.map_err(|(step, why)| refused(name, many, step, why))?);
        }
        let system = |what| move |why| TapError::System { name, what, why };
        let watch = Watch::new(name.as_str()).map_err(system("watch it by netlink"))?;
        let queues: Vec<_> = files.into_iter().map(|file| Arc::new(TapQueue { file })).collect();
        let tap = Self { name, queues, watch, cuts_datagrams: false, reads: AtomicU32::new(0) };
        let cuts_datagrams = tap.set_reads(READS_CSUM | READS_USO).is_ok();
        tap.set_reads(0).map_err(system("turn its offloads off"))?;
        Ok(Self { cuts_datagrams, ..tap })
    }

    /// A pair's queue.
    pub(crate) fn queue(&self, pair: u16) -> Option<Arc<TapQueue>> {
        self.queues.get(usize::from(pair)).cloned()
    }

    /// The offloads it has: `VIRTIO_NET_F_*`.
    pub(crate) fn features(&self) -> u64 {
        if self.cuts_datagrams { OFFLOADS } else { OFFLOADS & !DATAGRAMS }
    }

    /// The driver has acknowledged these features: the kernel leaves to it what it understands, and nothing else.
    pub(crate) fn agree(&self, features: u64) {
        let reads = reads(features);
        if self.reads.swap(reads, Ordering::Relaxed) != reads
            && let Err(why) = self.set_reads(reads)
        {
            self.say("set its offloads", why);
        }
    }

    /// Whether a pair's queue gets frames. An interface of one queue keeps them for later.
    pub(crate) fn attach(&self, pair: u16, attached: bool) {
        if self.queues.len() > 1
            && let Some(queue) = self.queues.get(usize::from(pair))
        {
            match queue.file.set_attached(attached) {
                // It is so already.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(why) => self.say("attach or detach a queue", why),
            }
        }
    }

    /// Whether frames can pass.
    pub(crate) fn is_up(&self) -> bool {
        self.watch.is_up()
    }

    /// What a frame has at most that nobody left to be segmented.
    pub(crate) fn longest(&self) -> usize {
        match self.watch.mtu() as usize {
            0 => MAX_FRAME,
            mtu => mtu.saturating_add(ETHERNET_HEADER + VLAN_TAG).min(MAX_FRAME),
        }
    }

    /// Tells the host's network that this station is here now (RARP, RFC 903, as QEMU does after a migration). Of no
    /// consequence where the interface is down.
    pub(crate) fn announce(&self, mac: [u8; 6]) {
        let mut bytes = vec![0; NetHeader::LEN];
        bytes.extend([0xff; 6]);
        bytes.extend(mac);
        // RARP; Ethernet, IPv4, their lengths, "request reverse".
        bytes.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        for _ in 0..2 {
            bytes.extend(mac);
            bytes.extend([0; 4]);
        }
        bytes.resize(NetHeader::LEN + SHORTEST, 0);
        if let Some(queue) = self.queues.first() {
            let _ = rustix::io::write(queue, &bytes);
        }
    }

    /// Readable when the interface may have changed.
    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Looks at the interface. Whether it went up or down.
    pub(crate) fn look(&self) -> bool {
        let exists = || self.queues.iter().all(|queue| queue.file.exists());
        let changed = self.watch.look(exists);
        if changed && let Some(left_out) = TROUBLE.permit() {
            log::info!(
                "tap {}: the link is {}{left_out}",
                self.name,
                if self.is_up() { "up" } else { "down" }
            );
        }
        changed
    }

    fn set_reads(&self, reads: u32) -> Result<(), Errno> {
        self.queues.first().map_or(Ok(()), |queue| queue.file.set_offload(reads))
    }

    fn say(&self, what: &str, why: Errno) {
        if let Some(left_out) = TROUBLE.permit() {
            log::warn!("tap {}: cannot {what}: {why}{left_out}", self.name);
        }
    }
}

/// `TUN_F_*` for what a driver has acknowledged. The kernel takes nothing without the checksum.
fn reads(features: u64) -> u32 {
    let has = |feature| features & feature != 0;
    let mut reads = 0;
    if has(VIRTIO_NET_F_GUEST_CSUM) {
        reads |= READS_CSUM;
        if has(VIRTIO_NET_F_GUEST_TSO4) {
            reads |= READS_TSO4;
        }
        if has(VIRTIO_NET_F_GUEST_TSO6) {
            reads |= READS_TSO6;
        }
        if has(VIRTIO_NET_F_GUEST_ECN) && reads & (READS_TSO4 | READS_TSO6) != 0 {
            reads |= READS_ECN;
        }
        // It knows no difference between the two.
        if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
            reads |= READS_USO;
        }
    }
    reads
}

fn refused(name: LinkName, multi_queue: bool, step: Step, why: Errno) -> TapError {
    match (step, why) {
        (Step::Open, Errno::PERM | Errno::ACCESS) => TapError::Forbidden { name, multi_queue },
        (Step::Open, Errno::NOENT | Errno::NODEV | Errno::NXIO) => TapError::NoTun { name, why },
        (Step::Open, why) => TapError::System { name, what: "open /dev/net/tun", why },
        (Step::Attach, Errno::PERM) => TapError::Forbidden { name, multi_queue },
        (Step::Attach, Errno::BUSY) => TapError::InUse(name),
        (Step::Attach, Errno::INVAL | Errno::EXIST) => TapError::Unfit { name, multi_queue },
        (Step::Attach, why) => TapError::System { name, what: "make or join the interface", why },
        (Step::Header, why) => TapError::System { name, what: "set the header of its frames", why },
    }
}

/// One queue of a tap interface.
pub(crate) struct TapQueue {
    file: TapFile,
}

impl TapQueue {
    /// Sends a frame. Its header has been checked; what it asks for is done by whoever comes last.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn send(&self, header: &NetHeader, frame: &Frame<'_, '_>) -> Result<(), Lost> {
        let mut bytes = [0; NetHeader::LEN];
        bytes.copy_from_slice(header.as_bytes());
        self.file
            .write(&bytes, frame.pieces())
            .map_err(|why| lost(why, || touch(frame.pieces().iter().copied())))
    }

    /// Receives a frame into `room` from byte `offset` on: its header and bytes. `None` when there is none.
    ///
    /// # Errors
    /// Why the next one was lost.
    pub(crate) fn receive(
        &self,
        room: &Room<'_, '_>,
        offset: usize,
    ) -> Result<Option<(NetHeader, usize)>, Lost> {
        let mut header = [0; NetHeader::LEN];
        match self.file.read(&mut header, room.from(offset)) {
            Ok(None) => Ok(None),
            Ok(Some(Arrival::Frame(len))) => Ok(Some((zerocopy::transmute!(header), len))),
            Ok(Some(Arrival::TooLong)) => Err(Lost::TooLong),
            Err(why) => Err(lost(why, || touch(room.from(offset)))),
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn lost(why: Errno, touch: impl FnOnce()) -> Lost {
    match why {
        Errno::FAULT => {
            touch();
            Lost::Memory
        }
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => Lost::Full,
        // A queue that is detached, or whose interface is gone, is in a bad state.
        Errno::IO | Errno::BADFD | Errno::NETDOWN => Lost::Down,
        _ => Lost::Refused,
    }
}

#[cfg(test)]
mod tests;
