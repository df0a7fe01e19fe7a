//! One request, and the operations of the kernel it takes.

use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::Operation;
use super::{CACHED, MAIN, Shared};
use crate::sys::uring::{Memory, Order};

/// How often an operation that was interrupted is begun again.
const ATTEMPTS: u8 = 100;

const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZEROES: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// A request between its operations.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tag: u64,
    operation: Operation,
    /// The way to discard, or to make zeros; without one they are written.
    how: Option<FallocateFlags>,
    /// The first byte of what is left.
    offset: u64,
    /// Bytes that are left.
    left: u64,
    /// Bytes of the request.
    len: u64,
    /// It was wanted to end.
    pub(super) cancelled: bool,
    /// All is done, but not durable yet.
    done: bool,
    /// Direct I/O does not take it.
    cached: bool,
    attempts: u8,
}

/// How a request goes on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// With another operation.
    Again,
    /// Not at all.
    End(Result<u64, Errno>),
}

impl Job {
    /// A request that has not begun. `None` if the file system can do nothing for it, and that is right.
    pub(super) fn new(file: &Shared, tag: u64, operation: Operation, offset: u64, len: u64) -> Option<Job> {
        let how = match operation {
            Operation::Discard => Some(file.holes()?),
            Operation::WriteZeroes { unmap: true, .. } => file.holes().or(file.zeroes()),
            Operation::WriteZeroes { unmap: false, .. } => file.zeroes(),
            Operation::Read
            | Operation::Compare
            | Operation::Verify
            | Operation::Write { .. }
            | Operation::Flush => None,
        };
        let (left, cancelled, done, cached) = (len, false, false, false);
        Some(Job { tag, operation, how, offset, left, len, cancelled, done, cached, attempts: 0 })
    }

    /// The next operation, and the memory for it.
    ///
    /// # Errors
    /// No memory for a buffer.
    pub(super) fn order(&mut self, file: &Shared, memory: &mut Memory) -> Result<Order, Errno> {
        let (offset, len) = (self.offset, self.left);
        match (self.operation, self.how) {
            (Operation::Read, _) => Ok(Order::Read { file: self.route(file, memory, false)?, offset }),
            // Not into guest memory.
            (Operation::Compare | Operation::Verify, _) => {
                let file = self.route(file, memory, false)?;
                memory.go_by_buffer(false)?;
                Ok(Order::Read { file, offset })
            }
            (Operation::Write { durable }, _) => {
                Ok(Order::Write { file: self.route(file, memory, true)?, offset, durable })
            }
            (Operation::Flush, _) => Ok(Order::Sync { file: MAIN }),
            (Operation::WriteZeroes { .. }, _) if self.done => Ok(Order::Sync { file: MAIN }),
            (Operation::Discard | Operation::WriteZeroes { .. }, Some(how)) => {
                Ok(Order::Allocate { file: MAIN, how, offset, len })
            }
            (Operation::Discard | Operation::WriteZeroes { .. }, None) => {
                *memory = Memory::zeros(len);
                let durable = matches!(self.operation, Operation::WriteZeroes { durable: true, .. });
                Ok(Order::Write { file: self.route(file, memory, true)?, offset, durable })
            }
        }
    }

    /// The file that takes what is left, and the way of its bytes.
    fn route(&self, file: &Shared, memory: &mut Memory, to_write: bool) -> Result<u32, Errno> {
        memory.go_straight();
        if !file.shape.direct {
            return Ok(MAIN);
        }
        let low = u64::from(file.shape.block).saturating_sub(1);
        if self.cached || (self.offset | memory.left() as u64) & low != 0 {
            return Ok(CACHED);
        }
        if !memory.is_aligned(file.shape.memory as usize) {
            memory.go_by_buffer(to_write)?;
        }
        Ok(MAIN)
    }

    /// What follows the end of an operation.
    pub(super) fn ended(
        &mut self,
        file: &Shared,
        order: Order,
        memory: &mut Memory,
        result: Result<usize, Errno>,
    ) -> Step {
        match result {
            Err(Errno::CANCELED | Errno::INTR) if self.cancelled => Step::End(Err(Errno::CANCELED)),
            Err(Errno::INTR | Errno::AGAIN) if self.attempts < ATTEMPTS => {
                self.attempts = self.attempts.saturating_add(1);
                Step::Again
            }
            Err(errno) => self.failed(file, order, errno),
            Ok(count) => match order {
                Order::Read { .. } if self.operation == Operation::Compare => {
                    if memory.is_same(count) {
                        self.moved(memory, count, false)
                    } else {
                        Step::End(Err(Errno::ILSEQ))
                    }
                }
                Order::Read { .. } => self.moved(memory, count, true),
                Order::Write { .. } => self.moved(memory, count, false),
                Order::Allocate { .. }
                    if matches!(self.operation, Operation::WriteZeroes { durable: true, .. }) =>
                {
                    self.done = true;
                    if self.cancelled { Step::End(Err(Errno::CANCELED)) } else { Step::Again }
                }
                Order::Sync { .. } | Order::Allocate { .. } => Step::End(Ok(self.len)),
            },
        }
    }

    fn failed(&mut self, file: &Shared, order: Order, errno: Errno) -> Step {
        match order {
            // An alignment that nobody told of: the page cache has none.
            Order::Read { file: number, .. } | Order::Write { file: number, .. }
                if errno == Errno::INVAL && file.shape.direct && number == MAIN =>
            {
                self.cached = true;
            }
            // The file system knows no such thing, or, on a device, not for such bytes.
            Order::Allocate { how, .. }
                if matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) =>
            {
                if errno != Errno::INVAL {
                    file.cannot(how);
                }
                if self.operation == Operation::Discard {
                    return Step::End(Ok(self.len));
                }
                self.how = if how == HOLE { file.zeroes() } else { None };
            }
            _ => return Step::End(Err(errno)),
        }
        if self.cancelled { Step::End(Err(Errno::CANCELED)) } else { Step::Again }
    }

    fn moved(&mut self, memory: &mut Memory, count: usize, was_read: bool) -> Step {
        // Beyond the end of a file that has become shorter.
        if count == 0 {
            return Step::End(Err(Errno::IO));
        }
        memory.moved(count, was_read);
        let count = (count as u64).min(self.left);
        self.offset = self.offset.saturating_add(count);
        self.left = self.left.saturating_sub(count);
        if memory.poisoned() {
            Step::End(Err(Errno::FAULT))
        } else if self.left == 0 {
            Step::End(Ok(self.len))
        } else if self.cancelled {
            Step::End(Err(Errno::CANCELED))
        } else {
            Step::Again
        }
    }
}

impl Shared {
    /// How holes are made, if they can be.
    fn holes(&self) -> Option<FallocateFlags> {
        (!self.no_holes.load(Ordering::Relaxed)).then_some(HOLE)
    }

    /// How zeros are made without writing them, if they can be.
    fn zeroes(&self) -> Option<FallocateFlags> {
        (!self.no_zeroes.load(Ordering::Relaxed)).then_some(ZEROES)
    }

    /// Remembers that the file system does not know this.
    fn cannot(&self, how: FallocateFlags) {
        let (flag, what) = match how == HOLE {
            true => (&self.no_holes, "holes, so discards do nothing"),
            false => (&self.no_zeroes, "ranges of zeros, so they are written"),
        };
        if !flag.swap(true, Ordering::Relaxed) {
            log::info!("the file system of {:?} has no {what}", self.path);
        }
    }
}
