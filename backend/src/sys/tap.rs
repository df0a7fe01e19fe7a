//! UNSAFETY: a tap interface is set up with ioctl(2), and its frames move with readv(2) and writev(2) between the kernel
//! and guest memory. No safe wrapper takes such addresses.
//!
//! Neither side ever sees a frame of ours in between: the kernel copies from the guest's pages and into them. A page that
//! is lost makes the call fail with `EFAULT`; no signal comes of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mdev_dma::GuestSlice;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Setter, ioctl, opcode};
use smallvec::SmallVec;

/// Bytes of the header before each frame, `struct virtio_net_hdr_v1`.
pub(crate) const HEADER: usize = 12;

const GROUP: u8 = b'T';
const TUNSETIFF: u32 = opcode::write::<libc::c_int>(GROUP, 202);
const TUNSETOFFLOAD: u32 = opcode::write::<libc::c_uint>(GROUP, 208);
const TUNGETIFF: u32 = opcode::read::<libc::c_uint>(GROUP, 210);
const TUNSETVNETHDRSZ: u32 = opcode::write::<libc::c_int>(GROUP, 216);
const TUNSETQUEUE: u32 = opcode::write::<libc::c_int>(GROUP, 217);
const TUNSETVNETLE: u32 = opcode::write::<libc::c_int>(GROUP, 220);

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Pieces a frame may be in, its header and the byte behind it included; more is refused (the kernel takes 1024).
const MAX_PARTS: usize = 512;

/// `struct ifreq` as TUNSETIFF and its kin use it.
#[repr(C)]
#[derive(Copy, Clone)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// One queue of a tap interface, non-blocking.
#[derive(Debug)]
pub(crate) struct TapFile {
    fd: OwnedFd,
}

/// What was asked of the kernel when it refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To open /dev/net/tun.
    Open,
    /// To be given the interface.
    Attach,
    /// To put our header before its frames.
    Header,
}

/// A frame that was asked for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Its bytes, header excluded.
    Frame(usize),
    /// It had more bytes than there was room, and is gone.
    TooLong,
}

impl TapFile {
    /// A queue of the interface `name` (at most 15 bytes), which is made if there is none: then it goes with its last queue.
    ///
    /// # Errors
    /// Which step failed, and how.
    pub(crate) fn open(name: &str, multi_queue: bool) -> Result<Self, (Step, Errno)> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| (Step::Open, errno))?;
        let tap = Self { fd };
        let mut wanted = [0; 16];
        // The last byte stays zero.
        wanted.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let queues = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
        let request = InterfaceRequest {
            name: wanted,
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues,
            rest: [0; 22],
        };
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`; the setter hands over a copy of its own, of its size.
        unsafe { ioctl(&tap.fd, Setter::<TUNSETIFF, _>::new(request)) }
            .map_err(|errno| (Step::Attach, errno))?;
        tap.set_word::<TUNSETVNETHDRSZ>(HEADER as libc::c_int).map_err(|errno| (Step::Header, errno))?;
        tap.set_word::<TUNSETVNETLE>(1).map_err(|errno| (Step::Header, errno))?;
        Ok(tap)
    }

    /// Says what the reader of the interface understands: `TUN_F_*`. Holds for all its queues.
    ///
    /// # Errors
    /// `EINVAL` for flags that this kernel does not know.
    pub(crate) fn set_offload(&self, flags: u32) -> Result<(), Errno> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { ioctl(&self.fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags as usize)) }
    }

    /// Whether the kernel puts frames into this queue. Only for interfaces of several queues; one that is where it should be
    /// already is refused.
    ///
    /// # Errors
    /// What TUNSETQUEUE answers.
    pub(crate) fn set_attached(&self, attached: bool) -> Result<(), Errno> {
        let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        let request = InterfaceRequest { name: [0; 16], flags, rest: [0; 22] };
        // SAFETY: TUNSETQUEUE reads a `struct ifreq`.
        unsafe { ioctl(&self.fd, Setter::<TUNSETQUEUE, _>::new(request)) }
    }

    /// Whether the interface still is there, in whatever network namespace.
    pub(crate) fn exists(&self) -> bool {
        // SAFETY: TUNGETIFF writes a `struct ifreq`, and every bit pattern is one.
        unsafe { ioctl(&self.fd, Getter::<TUNGETIFF, InterfaceRequest>::new()) }.is_ok()
    }

    /// Hands a frame to the kernel: its header, then its pieces.
    ///
    /// # Errors
    /// What writev(2) answers: `EFAULT` for memory that was lost, `EINVAL` for a header the kernel does not like, `EIO` for an
    /// interface that is down, `EAGAIN` for a queue that is full.
    pub(crate) fn write(&self, header: &[u8; HEADER], frame: &[GuestSlice<'_>]) -> Result<(), Errno> {
        let mut parts: SmallVec<[libc::iovec; MAX_PARTS]> = SmallVec::new();
        parts.push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: HEADER });
        for piece in frame {
            push(&mut parts, piece)?;
        }
        let count = parts.len() as libc::c_int;
        // SAFETY: `parts` are `count` pieces: a header that lives and is only read, and guest memory, which its slices keep
        // mapped for the length of this call and to which no Rust reference points.
        let done = unsafe { libc::writev(raw(&self.fd), parts.as_ptr(), count) };
        if done < 0 { Err(errno()) } else { Ok(()) }
    }

    /// Takes a frame from the kernel into `room`, its header apart. `None` if there is none.
    ///
    /// # Errors
    /// What readv(2) answers; `EFAULT` for memory that was lost. The frame is gone then.
    pub(crate) fn read<'g>(
        &self,
        header: &mut [u8; HEADER],
        room: impl Iterator<Item = GuestSlice<'g>>,
    ) -> Result<Option<Arrival>, Errno> {
        let mut parts: SmallVec<[libc::iovec; MAX_PARTS]> = SmallVec::new();
        parts.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER });
        let mut bytes = 0usize;
        for piece in room {
            push(&mut parts, &piece)?;
            bytes = bytes.saturating_add(piece.len());
        }
        // The kernel does not say that it left something out, but that it needed this byte.
        let mut beyond = 0u8;
        parts.push(libc::iovec { iov_base: (&raw mut beyond).cast(), iov_len: 1 });
        let count = parts.len() as libc::c_int;
        // SAFETY: `parts` are `count` pieces to write to: a header and a byte that live and are borrowed by nobody else, and
        // guest memory, which its slices keep mapped for the length of this call and to which no Rust reference points.
        let done = unsafe { libc::readv(raw(&self.fd), parts.as_ptr(), count) };
        match usize::try_from(done).map(|done| done.checked_sub(HEADER)) {
            Ok(Some(len)) if len > bytes => Ok(Some(Arrival::TooLong)),
            Ok(Some(len)) => Ok(Some(Arrival::Frame(len))),
            Ok(None) => Ok(None),
            Err(_) => match errno() {
                Errno::AGAIN | Errno::INTR => Ok(None),
                errno => Err(errno),
            },
        }
    }

    fn set_word<const CODE: u32>(&self, value: libc::c_int) -> Result<(), Errno> {
        // SAFETY: the two codes this is called with read an `int`.
        unsafe { ioctl(&self.fd, Setter::<CODE, _>::new(value)) }
    }
}

impl AsFd for TapFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn push(parts: &mut SmallVec<[libc::iovec; MAX_PARTS]>, piece: &GuestSlice<'_>) -> Result<(), Errno> {
    let (address, iov_len) = piece.as_io_vec_parts();
    if parts.len() >= MAX_PARTS {
        return Err(Errno::MSGSIZE);
    }
    parts.push(libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len });
    Ok(())
}

fn raw(fd: &OwnedFd) -> libc::c_int {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
