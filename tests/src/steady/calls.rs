//! UNSAFETY: seccomp(2) and the requests to its listener have no safe wrapper.
//!
//! Every system call of a thread, counted: a filter lets the kernel ask before each of them, and another thread counts and
//! lets it go on. What the thread does without the kernel, such as asking the time, is not seen.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (linux/seccomp.h).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// Not asked yet; refused; else a descriptor.
const NONE: i32 = -1;
const REFUSED: i32 = -2;

/// The counter of one thread.
pub struct Watch {
    listener: AtomicI32,
    count: AtomicU64,
}

impl Watch {
    /// From here on the calling thread is watched, to its end. How many calls there were so far; `None` where the kernel refuses.
    pub fn begin(&self) -> Option<u64> {
        self.listener.store(listen().unwrap_or(REFUSED), Ordering::Release);
        self.count()
    }

    /// How many system calls the thread has made.
    pub fn count(&self) -> Option<u64> {
        (self.listener.load(Ordering::Relaxed) >= 0).then(|| self.count.load(Ordering::Acquire))
    }

    /// Counts until the thread is gone.
    fn answer(&self, listener: &OwnedFd) {
        let fd = listener.as_raw_fd();
        loop {
            let mut asked = [PollFd::new(listener, PollFlags::IN)];
            let ready = poll(&mut asked, None).is_ok() && asked[0].revents().contains(PollFlags::IN);
            if !ready {
                return;
            }
            // SAFETY: zeros are a request that says nothing, which is what the kernel wants to be given.
            let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one such request.
            if unsafe { libc::ioctl(fd, RECEIVE, &raw mut request) } != 0 {
                continue; // the thread was killed meanwhile
            }
            self.count.fetch_add(1, Ordering::Release);
            let mut answer = libc::seccomp_notif_resp {
                id: request.id,
                val: 0,
                error: 0,
                flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            };
            // SAFETY: the kernel reads one such answer.
            unsafe { libc::ioctl(fd, SEND, &raw mut answer) };
        }
    }
}

/// Runs `what` on a thread of its own, which may have itself watched.
///
/// # Panics
/// When that thread does.
pub fn watched<T: Send>(what: impl FnOnce(&Watch) -> T + Send) -> T {
    let watch = Watch { listener: AtomicI32::new(NONE), count: AtomicU64::new(0) };
    thread::scope(|scope| {
        let thread = scope.spawn(|| what(&watch));
        while watch.listener.load(Ordering::Acquire) == NONE && !thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let fd = watch.listener.load(Ordering::Acquire);
        if fd >= 0 {
            // SAFETY: the kernel has just made it, and nobody else closes it.
            watch.answer(&unsafe { OwnedFd::from_raw_fd(fd) });
        }
        thread.join().expect("the thread that is watched")
    })
}

/// A filter for the calling thread that asks a listener before every system call.
fn listen() -> Option<RawFd> {
    let mut ask = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_USER_NOTIF,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut ask };
    // SAFETY: numbers only. A filter may be set by who gives up new privileges.
    let given_up = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until it has.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    RawFd::try_from(fd).ok().filter(|fd| given_up == 0 && *fd >= 0)
}
