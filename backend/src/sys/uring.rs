//! UNSAFETY: an operation on an io_uring gives the kernel addresses that it uses until the operation has ended, whatever this
//! process does meanwhile. No safe wrapper of it exists.
//!
//! # What it is
//!
//! A [`Ring`] owns all that the kernel uses: pins on guest memory, the list of their pieces, buffers, files. Each operation
//! has a slot of a table that never moves, from [`Ring::push`] until its end is found; so no safe code frees memory under
//! the kernel. A ring that is dropped waits for its operations for a bounded time, and leaks what still is in flight then:
//! the windows stay mapped, and an unmap of that memory waits, or revokes.
//!
//! # What may block
//!
//! [`Ring::enter`] starts operations and waits for none: what cannot be done at once is done by threads of the kernel. Small
//! transfers of files in memory are copies that it makes itself. Only dropping a ring waits, for at most [`LAST`].
//!
//! # What it does not implement
//!
//! Links, drains and timeouts between operations; registered buffers, whose pages would stay in memory for good.

mod memory;
mod order;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};
use rustix::io::Errno;

use super::EventFd;

pub(crate) use memory::Memory;
pub(crate) use order::Order;

/// How long a ring that is dropped waits for what is in flight.
const LAST: Duration = Duration::from_secs(1);
/// And in which pieces.
const SLICE: Timespec = Timespec::new().nsec(50_000_000);
/// What cancellations are called; slots have smaller numbers.
const CANCELLATION: u64 = u64::MAX;

/// An operation that has ended.
pub(crate) struct Ended<T> {
    /// What was to be done.
    pub(crate) order: Order,
    /// What it used.
    pub(crate) memory: Memory,
    /// What the pusher wanted to have back.
    pub(crate) owner: T,
    /// What the kernel says: bytes, where any are moved.
    pub(crate) result: Result<usize, Errno>,
}

struct Slot<T> {
    order: Order,
    memory: Memory,
    owner: T,
}

/// An io_uring. It belongs to the thread that enters it first.
pub(crate) struct Ring<T> {
    ring: IoUring,
    /// Registered with the ring, which holds them open itself as long as it needs them.
    files: Arc<[OwnedFd]>,
    /// They are in memory: small transfers are made by this thread.
    quick: bool,
    /// Of a fixed size, in one place: the kernel is given addresses in it.
    slots: Box<[Option<Slot<T>>]>,
    free: Vec<u32>,
    /// Slots that the kernel knows nothing of yet.
    queued: VecDeque<u32>,
    /// Slots whose operations this thread has carried out, and what came of it.
    done: VecDeque<(u32, i32)>,
    /// The kernel has not been told of everything that is in its queue.
    stalled: bool,
    /// Ends are found by entering, not by interrupting the thread.
    deferred: bool,
    enabled: bool,
    told: bool,
}

impl<T> Ring<T> {
    /// A ring of at most `count` operations at a time on these files, which signals `bell` while it is armed. `quick` files
    /// are in memory, so that small transfers are over before the kernel could give them to another thread.
    ///
    /// # Errors
    /// What the kernel refuses; the text says what to do.
    pub(crate) fn new(count: usize, files: Arc<[OwnedFd]>, quick: bool, bell: &EventFd) -> io::Result<Self> {
        let entries = u32::try_from(count).map_err(io::Error::other)?;
        match deferred(entries) {
            Ok(ring) => Self::on(ring, true, files, quick, bell),
            Err(_) => Self::on(plain(entries)?, false, files, quick, bell),
        }
    }

    fn on(
        ring: IoUring,
        deferred: bool,
        files: Arc<[OwnedFd]>,
        quick: bool,
        bell: &EventFd,
    ) -> io::Result<Self> {
        let entries = ring.params().sq_entries();
        let count = entries as usize;
        let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let submitter = ring.submitter();
        submitter.register_files(&numbers).map_err(|error| refused(&error, "the files"))?;
        submitter
            .register_eventfd(bell.as_fd().as_raw_fd())
            .map_err(|error| refused(&error, "the event counter"))?;
        let mut ring = Ring {
            ring,
            files,
            quick,
            slots: (0..count).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            queued: VecDeque::with_capacity(count),
            done: VecDeque::new(),
            stalled: false,
            deferred,
            enabled: false,
            told: false,
        };
        ring.disarm();
        Ok(ring)
    }

    /// Takes over an operation, which begins when the ring is entered.
    ///
    /// # Errors
    /// `owner`, if all slots are taken, or zeros are to be read into.
    pub(crate) fn push(&mut self, order: Order, memory: Memory, owner: T) -> Result<(), T> {
        if matches!(order, Order::Read { .. }) && memory.is_zeros() {
            return Err(owner);
        }
        let Some(at) = self.free.pop() else { return Err(owner) };
        let Some(slot) = self.slots.get_mut(at as usize) else { return Err(owner) };
        *slot = Some(Slot { order, memory, owner });
        self.queued.push_back(at);
        Ok(())
    }

    /// Whether there is no operation.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether there are operations that have not begun.
    #[inline]
    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Takes back an operation that has not begun.
    pub(crate) fn withdraw(&mut self) -> Option<T> {
        let at = self.queued.pop_front()?;
        self.vacate(at).map(|slot| slot.owner)
    }

    /// Takes back one operation that has not begun, of an owner that `is_it`.
    pub(crate) fn withdraw_one(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let of_it = |at: &u32| {
            let slot = self.slots.get(*at as usize).and_then(Option::as_ref);
            slot.is_some_and(|slot| is_it(&slot.owner))
        };
        let place = self.queued.iter().position(of_it)?;
        let at = self.queued.remove(place)?;
        self.vacate(at).map(|slot| slot.owner)
    }

    /// What the pushers want to have back, of all operations.
    pub(crate) fn owners_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().flatten().map(|slot| &mut slot.owner)
    }

    /// Begins what was pushed: one system call, as a rule; one for each transfer of quick files.
    pub(crate) fn enter(&mut self) {
        self.stalled = true;
        if !self.enable() {
            return;
        }
        while self.fill() {
            match self.ring.submit() {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has no memory for it, or wants ends to be taken first: the next look tries again.
                Ok(_) => return,
                Err(error) => return self.say(&error),
            }
        }
        self.stalled = false;
    }

    /// Puts what was pushed into the kernel's queue, as far as there is room. Whether there is anything in it.
    fn fill(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(at) = self.queued.front().copied() {
            let Some(slot) = self.slots.get(at as usize).and_then(Option::as_ref) else { break };
            if self.quick
                && let Some(result) = order::carry_out(slot.order, &slot.memory, &self.files)
            {
                self.queued.pop_front();
                self.done.push_back((at, result));
                continue;
            }
            let entry = order::entry(slot.order, &slot.memory).user_data(at.into());
            // SAFETY: what the entry points to is in the slot, which neither moves nor is changed until the end of the
            // operation is found: `reap` is the only one to empty a slot that is not queued. The list of pieces lies in
            // it, or in an allocation it owns; their bytes are mapped by its pins, in its buffer, or static. To guest
            // memory no Rust reference points, and to the buffer none while it is in the slot. Drop leaks what has
            // not ended.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            self.queued.pop_front();
        }
        queue.sync();
        !queue.is_empty()
    }

    /// Lets ends that have come be found. No system call if none has.
    #[inline]
    pub(crate) fn look(&mut self) {
        if self.stalled {
            self.enter();
        }
        let queue = self.ring.submission();
        if queue.taskrun() || queue.cq_overflow() {
            drop(queue);
            self.run();
        }
    }

    /// An operation that has ended.
    #[inline]
    pub(crate) fn reap(&mut self) -> Option<Ended<T>> {
        loop {
            let (at, result) = match self.done.pop_front() {
                Some((at, result)) => (at.into(), result),
                None => self.ring.completion().next().map(|end| (end.user_data(), end.result()))?,
            };
            let Ok(at) = u32::try_from(at) else { continue };
            let Some(Slot { order, memory, owner }) = self.vacate(at) else { continue };
            let result =
                usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()));
            return Some(Ended { order, memory, owner, result });
        }
    }

    /// Ends what can be ended. The ends come as others do.
    pub(crate) fn cancel(&mut self) {
        self.enter();
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(CANCELLATION);
        // SAFETY: a cancellation points to nothing.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            self.enter();
        }
    }

    /// Ends one operation, if it can be ended: the first of an owner that `is_it`. Its end comes as others do.
    pub(crate) fn cancel_one(&mut self, mut is_it: impl FnMut(&mut T) -> bool) {
        let mut slots = self.slots.iter_mut();
        let Some(at) = slots.position(|slot| slot.as_mut().is_some_and(|slot| is_it(&mut slot.owner))) else {
            return;
        };
        self.enter();
        let entry = opcode::AsyncCancel::new(at as u64).build().user_data(CANCELLATION);
        // SAFETY: a cancellation points to nothing.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            self.enter();
        }
    }

    /// Each end signals the bell from now on. True if there are ends already.
    pub(crate) fn arm(&mut self) -> bool {
        self.enter();
        self.ring.completion().enable_eventfd();
        // Who ends an operation tells of it and then looks whether the bell is wanted; we do it the other way round, so
        // that one of us sees the other.
        fence(Ordering::SeqCst);
        if !self.is_idle() {
            self.run();
        }
        !self.done.is_empty() || !self.ring.completion().is_empty()
    }

    /// Ends signal nothing.
    pub(crate) fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    fn vacate(&mut self, at: u32) -> Option<Slot<T>> {
        let slot = self.slots.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(slot)
    }

    /// Lets the kernel put down what has ended.
    fn run(&mut self) {
        if !self.deferred && !self.ring.submission().cq_overflow() {
            return;
        }
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is given, and nothing is submitted.
        if let Err(error) = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None) } {
            self.say(&error);
        }
    }

    /// Makes the ring ours. It is told apart from making it, because a port may be made by another thread than its user.
    fn enable(&mut self) -> bool {
        if !self.enabled {
            match self.ring.submitter().register_enable_rings() {
                Ok(()) => self.enabled = true,
                Err(error) => self.say(&error),
            }
        }
        self.enabled
    }

    fn say(&mut self, error: &io::Error) {
        let usual = [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOMEM];
        if !self.told && !error.raw_os_error().is_some_and(|errno| usual.contains(&errno)) {
            self.told = true;
            log::error!("io_uring_enter: {error}; requests to this file wait until it works again");
        }
    }

    /// Waits until nothing is in flight, or the time is over.
    fn wait_for_all(&mut self) {
        let deadline = Instant::now().checked_add(LAST);
        while !self.is_idle() && deadline.is_some_and(|deadline| Instant::now() < deadline) {
            let waited = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&SLICE));
            let usual = [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ENOMEM];
            let errno = waited.err().and_then(|error| error.raw_os_error());
            while self.reap().is_some() {}
            if errno.is_some_and(|errno| !usual.contains(&errno)) {
                break;
            }
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while self.withdraw().is_some() {}
        if !self.is_idle() {
            self.cancel();
            self.wait_for_all();
        }
        if self.is_idle() {
            // The kernel would close them a little later: somebody may want to lock the file now.
            let _ = self.ring.submitter().unregister_files();
            return;
        }
        let left = self.slots.iter().flatten().count();
        log::error!(
            "{left} requests to a file do not end; their guest memory is kept until this process ends"
        );
        mem::forget(mem::take(&mut self.slots));
    }
}

/// A ring that interrupts nobody, of which one thread alone finds the ends when it asks. Not every kernel has it.
fn deferred(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_submit_all().setup_single_issuer().setup_defer_taskrun();
    builder.setup_taskrun_flag().build(entries)
}

/// A ring as all kernels have it that can cancel everything.
fn plain(entries: u32) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().setup_submit_all().build(entries);
    ring.map_err(|error| refused(&error, "a ring"))
}

/// The same error, with what to do about it.
fn refused(error: &io::Error, what: &str) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "file stores need io_uring: set sysctl kernel.io_uring_disabled=0, and let the seccomp profile of the container \
             allow io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => "raise the limit of locked memory (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
        _ => "file stores need io_uring of Linux 5.19 or later",
    };
    io::Error::new(error.kind(), format!("io_uring refuses {what}: {error}; {advice}"))
}

#[cfg(test)]
mod tests;
