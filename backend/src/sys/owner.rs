//! UNSAFETY: a process that owns guest memory and has no program of its own is made by fork(2); what it does with
//! its mappings is mmap(2) and munmap(2). Rust cannot say that the child of a process with threads may only make
//! system calls, nor that nobody looks at memory that is unmapped.

use std::ffi::c_void;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};

/// How long the owner may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
const MAP: u8 = b'm';
const UNMAP: u8 = b'u';
const FORK: u8 = b'f';
const EXECUTE: u8 = b'x';

/// Another process that made a memory file, mapped it, and handed us the descriptor: a virtual machine monitor, as
/// far as its memory goes. It ends when this is dropped, and with the thread that started it.
#[derive(Debug)]
pub struct OwnerProcess {
    pid: Pid,
    socket: UnixStream,
    ended: bool,
}

impl OwnerProcess {
    /// Starts it. Its file has `size` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// No process or descriptors left, or it does not answer.
    pub fn start(size: usize) -> io::Result<(OwnerProcess, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER))?;
        // SAFETY: the child calls nothing but `serve`, which makes system calls only, without allocating, taking
        // locks or panicking, and `_exit`, which runs no destructor: none of this process's state is relied upon.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let status = i32::from(serve(ours.as_fd(), theirs.as_fd(), size).is_err());
                // SAFETY: ends the child at once and takes no pointer.
                unsafe { libc::_exit(status) }
            }
            pid => pid,
        };
        drop(theirs);
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?;
        let owner = OwnerProcess { pid, socket: ours, ended: false };
        let file = owner.receive()?;
        Ok((owner, file))
    }

    fn receive(&self) -> io::Result<OwnedFd> {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&self.socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        files.last().ok_or_else(|| io::Error::other("the owner's process gave no file"))
    }

    /// It drops its mapping and puts something else in that place.
    ///
    /// # Errors
    /// It is stopped, has ended, or has no memory left.
    pub fn unmap(&self) -> io::Result<()> {
        self.ask(UNMAP).map(drop)
    }

    /// It maps its file anew, at another address: that address, and the first eight bytes there.
    ///
    /// # Errors
    /// As [`OwnerProcess::unmap`].
    pub fn map(&self) -> io::Result<(u64, u64)> {
        self.ask(MAP)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// It makes a child, which does nothing and ends when it ends: that child's number.
    ///
    /// # Errors
    /// As [`OwnerProcess::unmap`].
    pub fn fork(&self) -> io::Result<u32> {
        let (child, _) = self.ask(FORK)?;
        u32::try_from(child).map_err(io::Error::other)
    }

    /// It executes another program, which does nothing: its mappings are gone, and it answers nothing from here on.
    ///
    /// # Errors
    /// As [`OwnerProcess::unmap`]; there is no such program.
    pub fn execute(&self) -> io::Result<()> {
        (&self.socket).write_all(&[EXECUTE])?;
        // Its end of the socket closes on execution; so it does when it ends because it could not execute.
        if (&self.socket).read(&mut [0])? != 0 {
            return Err(io::Error::other("the owner's process said something else"));
        }
        let name = format!("/proc/{}/comm", self.pid());
        let deadline = Instant::now() + ANSWER;
        while std::fs::read_to_string(&name)? != "sleep\n" {
            if Instant::now() >= deadline {
                return Err(io::Error::other("the owner's process executes nothing"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn ask(&self, what: u8) -> io::Result<(u64, u64)> {
        (&self.socket).write_all(&[what])?;
        let (mut address, mut word) = ([0; 8], [0; 8]);
        (&self.socket).read_exact(&mut address)?;
        (&self.socket).read_exact(&mut word)?;
        Ok((u64::from_ne_bytes(address), u64::from_ne_bytes(word)))
    }

    /// Stops it (SIGSTOP), and returns when it has stopped: it answers nothing from here on.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&self) -> io::Result<()> {
        kill_process(self.pid, Signal::STOP)?;
        waitpid(Some(self.pid), WaitOptions::UNTRACED)?;
        Ok(())
    }

    /// Kills it (SIGKILL), and returns when nothing is left of it.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&mut self) -> io::Result<()> {
        if !self.ended {
            self.ended = true;
            kill_process(self.pid, Signal::KILL)?;
            waitpid(Some(self.pid), WaitOptions::empty())?;
        }
        Ok(())
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        // One that has ended by itself is waited for all the same.
        let _ = self.kill();
    }
}

/// The child's life. System calls only: see `start`.
fn serve(parents: BorrowedFd<'_>, socket: BorrowedFd<'_>, size: usize) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let file = memfd_create(c"mdevd-regress", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, size as u64)?;
    let mut mapping = map(file.as_fd(), size)?;
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    // The copy of the parent's end would hide that the parent is gone.
    // SAFETY: the child owns all descriptors of its copied table and uses this one no more.
    unsafe { rustix::io::close(std::os::fd::AsRawFd::as_raw_fd(&parents)) };
    let mut what = [0];
    while rustix::io::read(socket, &mut what)? == 1 {
        let mut word = 0;
        let mut answer = mapping as u64;
        if what == [FORK] {
            answer = idle_child(socket)?;
        } else if what == [EXECUTE] {
            return Err(execute());
        } else if what == [UNMAP] {
            // SAFETY: the child has one thread, which touches the mapping only below, after mapping it anew.
            unsafe {
                munmap(mapping, size)?;
                // Takes the place that has become free, so that the file's next mapping is elsewhere.
                mmap_anonymous(null_mut(), size, ProtFlags::empty(), MapFlags::PRIVATE)?;
            }
        } else {
            mapping = map(file.as_fd(), size)?;
            // SAFETY: `mapping` has at least a page, is aligned to one, and was just mapped for reading.
            word = unsafe { mapping.cast::<u64>().read_volatile() };
            answer = mapping as u64;
        }
        rustix::io::write(socket, &answer.to_ne_bytes())?;
        rustix::io::write(socket, &word.to_ne_bytes())?;
    }
    Ok(())
}

/// A child of the child, which ends with it. System calls only.
fn idle_child(socket: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    // SAFETY: as in `start`: neither of both does anything but system calls.
    match unsafe { libc::fork() } {
        -1 => Err(rustix::io::Errno::AGAIN),
        0 => {
            // Without it, nobody would see that the parent closes its own.
            // SAFETY: the child owns its copy of the descriptor and uses it no more.
            unsafe { rustix::io::close(std::os::fd::AsRawFd::as_raw_fd(&socket)) };
            if set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
                // SAFETY: as in `start`.
                unsafe { libc::_exit(1) }
            }
            loop {
                // SAFETY: waits for a signal and takes no pointer.
                unsafe { libc::pause() };
            }
        }
        child => u64::try_from(child).map_err(|_| rustix::io::Errno::RANGE),
    }
}

/// Becomes `sleep`; returns only if that fails. System calls only.
fn execute() -> rustix::io::Errno {
    let arguments = [c"sleep".as_ptr(), c"3600".as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: the path, the arguments and the environment are texts that end with zero, in lists that end with null.
    unsafe { libc::execve(c"/bin/sleep".as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    rustix::io::Errno::NOEXEC
}

fn map(file: BorrowedFd<'_>, size: usize) -> rustix::io::Result<*mut c_void> {
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    unsafe { mmap(null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_maps_elsewhere_and_sees_what_was_written_meanwhile() {
        let (owner, file) = OwnerProcess::start(8192).unwrap();
        let (first, word) = owner.map().unwrap();
        assert_eq!(word, 0);
        owner.unmap().unwrap();
        rustix::io::pwrite(&file, &7u64.to_ne_bytes(), 0).unwrap();
        let (second, word) = owner.map().unwrap();
        assert!(first != second && word == 7, "{first:x} {second:x} {word}");
    }

    #[test]
    fn owner_forks_and_executes_another_program() {
        let (mut owner, _file) = OwnerProcess::start(4096).unwrap();
        let child = owner.fork().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        assert!(status.contains(&format!("PPid:\t{}", owner.pid())), "{status}");
        owner.map().unwrap();
        owner.execute().unwrap();
        assert!(owner.map().is_err());
        owner.kill().unwrap();
    }

    #[test]
    fn owner_that_is_stopped_or_killed_answers_nothing_and_leaves_its_file() {
        let (mut owner, file) = OwnerProcess::start(4096).unwrap();
        owner.stop().unwrap();
        owner.kill().unwrap();
        assert!(owner.map().is_err());
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 4096);
    }
}
