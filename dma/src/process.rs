//! Memory by an address in another process.
//!
//! The bytes are reached through `/proc/PID/mem`, which is opened once and belongs to the address space that the process
//! has at that moment, not to the process: when that one ends or executes another program, the descriptor reaches
//! nothing any more. (`process_vm_readv` is told a pid, and would reach whatever program runs under it then.)
//!
//! Unlike memory in files this may wait: for whoever serves the page faults of that address space. And the kernel
//! overrides the protection of its pages here, as for a debugger: a write to a private page that its owner may only read
//! changes a copy of it.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::UserAddr;

/// A process whose memory is reached, as it was when this was made.
pub struct Process {
    pid: i32,
    /// Becomes readable when the process ends.
    pidfd: OwnedFd,
    memory: File,
}

/// A place in the address space of a process.
#[derive(Clone)]
pub struct ProcessExtent {
    /// The process; the extent keeps its descriptors open.
    pub process: Arc<Process>,
    /// Address of the first byte there.
    pub address: UserAddr,
}

/// The bytes at an address could not be reached: the process has ended, runs another program, or has nothing mapped
/// there (`EFAULT`).
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory at {0} of the owner is not there: it has unmapped it, ended, or executed another program; map the range \
     anew, by a file if it is to outlive its owner"
)]
pub struct Unreachable(pub UserAddr);

impl Process {
    /// The process of this number.
    ///
    /// # Errors
    ///
    /// \[ESRCH\] if there is none, \[EACCES\] without the right to trace it (ptrace(2)).
    pub fn open(pid: u32) -> io::Result<Arc<Self>> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Process::new(pid.as_raw_nonzero().get(), pidfd)
    }

    /// The process that a descriptor of pidfd_open(2) refers to.
    ///
    /// # Errors
    ///
    /// As [`Process::open`]; \[EBADF\] if it is no such descriptor.
    pub fn from_pidfd(pidfd: OwnedFd) -> io::Result<Arc<Self>> {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = about.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        match pid {
            Some(pid) if pid > 0 => Process::new(pid, pidfd),
            // It has ended, or is of another pid namespace.
            Some(_) => Err(rustix::io::Errno::SRCH.into()),
            None => Err(rustix::io::Errno::BADF.into()),
        }
    }

    fn new(pid: i32, pidfd: OwnedFd) -> io::Result<Arc<Self>> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => rustix::io::Errno::SRCH.into(),
            _ => error,
        })?;
        let process = Process { pid, pidfd, memory };
        // Only now: as long as it has not ended, nobody else has its number, so what was opened is its own.
        if process.ended() { Err(rustix::io::Errno::SRCH.into()) } else { Ok(Arc::new(process)) }
    }

    /// Its number while it lives.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has ended. One that has executed another program has not.
    pub fn ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Fills `to` from its memory.
    pub fn read(&self, at: UserAddr, to: &mut [u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = rustix::io::pread(&self.memory, rest, offset(at, done)?);
            done += moved(read, at, done)?;
        }
        Ok(())
    }

    /// Writes `from` to its memory. What lies before a byte that cannot be reached may be written.
    pub fn write(&self, at: UserAddr, from: &[u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let written = rustix::io::pwrite(&self.memory, rest, offset(at, done)?);
            done += moved(written, at, done)?;
        }
        Ok(())
    }
}

fn offset(at: UserAddr, done: usize) -> Result<u64, Unreachable> {
    at.0.checked_add(done as u64).ok_or(Unreachable(at))
}

/// The bytes that were moved. None: the address space is gone (0), or nothing is mapped there (`EIO`).
fn moved(result: rustix::io::Result<usize>, at: UserAddr, done: usize) -> Result<usize, Unreachable> {
    match result {
        Ok(bytes) if bytes > 0 => Ok(bytes),
        Err(rustix::io::Errno::INTR) => Ok(0),
        _ => Err(Unreachable(UserAddr(at.0.saturating_add(done as u64)))),
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({}, {:?})", self.pid, self.memory.as_fd())
    }
}

impl fmt::Debug for ProcessExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProcessExtent({} at {})", self.process.pid, self.address)
    }
}

impl ProcessExtent {
    /// Whether both start at the same byte of the same address space.
    pub fn same_place(&self, other: &ProcessExtent) -> bool {
        self.address == other.address && Arc::ptr_eq(&self.process, &other.process)
    }

    /// The place `len` bytes further on; `None` if that wraps.
    pub fn checked_add(&self, len: u64) -> Option<ProcessExtent> {
        Some(ProcessExtent {
            process: self.process.clone(),
            address: UserAddr(self.address.0.checked_add(len)?),
        })
    }
}

#[cfg(test)]
mod tests;
