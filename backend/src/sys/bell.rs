//! UNSAFETY: adding to an eventfd that a peer shares without ever waiting for that peer. A write(2) waits when the
//! counter is full and the peer has cleared `O_NONBLOCK`, which it can do at any instant. The kernel adds to an
//! eventfd without waiting on behalf of asynchronous I/O (`IOCB_FLAG_RESFD`), and those system calls have no safe
//! wrapper.
//!
//! The I/O is a poll of the eventfd itself. It is always ready for something (a counter that is not zero can be read,
//! one that is not full can be written, a full one is in error), so it completes at once.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Completions the kernel keeps for us; they mean nothing and are thrown away when it has this many.
const KEPT: usize = 64;
/// `IOCB_CMD_POLL` (linux/aio_abi.h).
const COMMAND_POLL: u16 = 5;
/// `IOCB_FLAG_RESFD`: completion adds one to an eventfd.
const FLAG_RESFD: u32 = 1;

/// `struct iocb`, little-endian layout.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Copy, Clone, Default)]
struct Completion {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A context for asynchronous I/O (io_setup(2)), one for each thread that signals peers.
struct Bell {
    context: libc::c_ulong,
}

thread_local! {
    static BELL: RefCell<Option<Result<Bell, Errno>>> = const { RefCell::new(None) };
}

/// Adds one to the counter of an eventfd and wakes who waits for it, without ever waiting itself.
///
/// # Errors
/// What io_setup(2) answered this thread: the kernel has no asynchronous I/O, or no more of it. Nothing was added.
pub(super) fn ring(eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
    BELL.with_borrow_mut(|bell| match bell.get_or_insert_with(Bell::new) {
        Ok(bell) => bell.ring(eventfd),
        Err(errno) => Err(*errno),
    })
}

impl Bell {
    fn new() -> Result<Bell, Errno> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one context number to a variable that lives.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, KEPT, &raw mut context) };
        if done < 0 { Err(errno()) } else { Ok(Bell { context }) }
    }

    fn ring(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
        match self.submit(eventfd) {
            Err(Errno::AGAIN) => {
                self.forget_completions();
                self.submit(eventfd)
            }
            outcome => outcome,
        }
    }

    fn submit(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
        let fd = eventfd.as_raw_fd() as u32;
        let mut request = Request {
            opcode: COMMAND_POLL,
            fd,
            buf: (libc::POLLIN | libc::POLLOUT) as u64,
            flags: FLAG_RESFD,
            resfd: fd,
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: one request, valid during the call; a poll touches no memory of ours afterwards.
        let done = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_mut_ptr()) };
        if done < 0 { Err(errno()) } else { Ok(()) }
    }

    fn forget_completions(&mut self) {
        let mut completions = [Completion::default(); KEPT];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most `KEPT` completions to an array of as many, and waits for none.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                KEPT,
                completions.as_mut_ptr(),
                &raw const at_once,
            )
        };
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: the context is this value's own, and nothing uses it after this.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
