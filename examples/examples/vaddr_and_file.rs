//! Two ways to name guest memory, side by side: by its owner's address, and by file and offset.
//!
//! The owner has "hello" in both. Then it does what owners do: it unmaps its memory, executes itself anew (as a live
//! update does), hands over to another process, dies. A device that was told an address can only be refused or fail; one
//! that was told a file does not notice.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write, stdin};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use mdev_dma::{
    Area, BackingFile, Extent, FileExtent, FilePolicy, Iova, IovaRange, Perm, Process, ProcessExtent,
    UserAddr, Windows,
};
use mdev_pin::{Access, AccessError, Account, IgnoreUnmap, Ioas, Rw, change_process};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
/// So much that the allocator gives it back to the kernel at once.
const MEMORY: usize = 64 << 20;

/// The owner's program: says where its memory is, and obeys.
fn owner() -> Outcome<()> {
    let mut memory = vec![0; MEMORY];
    let first = memory.as_ptr().align_offset(PAGE);
    memory.get_mut(first..first + 5).ok_or("no page")?.copy_from_slice(b"hello");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, PAGE as u64)?;
    rustix::io::pwrite(&file, b"hello", 0)?;
    println!("{} {}", memory.as_ptr().addr() + first, file.as_raw_fd());
    let mut kept = Some((memory, file));
    for line in stdin().lines() {
        match line?.as_str() {
            "unmap" => drop(kept.take()),
            "execute" => return Err(Command::new(std::env::current_exe()?).arg("owner").exec().into()),
            _ => {}
        }
        println!("done");
    }
    Ok(())
}

/// The owner as others see it.
struct Owner {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: u64,
    file: i32,
}

impl Owner {
    fn start() -> Outcome<Owner> {
        let mut program = Command::new(std::env::current_exe()?);
        let mut process = program.arg("owner").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) =
            (process.stdin.take().ok_or("no input")?, process.stdout.take().ok_or("no output")?);
        let mut owner = Owner { process, input, output: BufReader::new(output), address: 0, file: 0 };
        let line = owner.answer()?;
        let (address, file) = line.trim().split_once(' ').ok_or("it does not say where its memory is")?;
        (owner.address, owner.file) = (address.parse()?, file.parse()?);
        Ok(owner)
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    fn tell(&mut self, what: &str) -> Outcome<()> {
        writeln!(self.input, "{what}")?;
        self.answer().map(drop)
    }

    fn kill(&mut self) -> Outcome<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // One that has ended already is no loss.
        let _ = self.kill();
    }
}

/// A device on a space with one page of the owner's.
struct Device {
    ioas: Ioas,
    access: Access,
}

impl Device {
    fn on(extent: impl Into<Extent>, owner: &Account) -> Outcome<Device> {
        let ioas = Ioas::charged_to(Windows::new()?, owner);
        let range = IovaRange::with_len(Iova(0), PAGE as u64)?;
        ioas.map(Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None })?;
        let access = Access::pinning(Arc::new(IgnoreUnmap));
        access.attach(&ioas)?;
        Ok(Device { ioas, access })
    }

    /// Copies, pins and unpins.
    fn work(&self) -> Result<String, AccessError> {
        let mut word = [0; 5];
        self.access.rw(Iova(0), Rw::Read(&mut word))?;
        self.access.pin_pages(Iova(0), PAGE as u64, Perm::READ)?.unpin()?;
        Ok(String::from_utf8_lossy(&word).into_owned())
    }
}

fn said(done: Result<String, i32>) -> String {
    done.unwrap_or_else(|errno| match errno {
        14 => "EFAULT".to_owned(),
        22 => "EINVAL".to_owned(),
        other => format!("error {other}"),
    })
}

fn main() -> Outcome<()> {
    if std::env::args().nth(1).as_deref() == Some("owner") {
        return owner();
    }
    println!("{:24} {:12} by its file", "the owner", "by address");
    for event in ["does nothing", "unmaps its memory", "executes itself anew", "hands over", "dies"] {
        let mut owner = Owner::start()?;
        let account = Account::of_process(owner.process.id())?;
        let process = Process::open(owner.process.id())?;
        let file = OpenOptions::new().read(true).write(true).open(format!(
            "/proc/{}/fd/{}",
            owner.process.id(),
            owner.file
        ))?;
        let file = BackingFile::new(file.into(), &FilePolicy::default())?;
        let devices = [
            Device::on(ProcessExtent { process, address: UserAddr(owner.address) }, &account)?,
            Device::on(FileExtent { file, offset: 0 }, &account)?,
        ];
        let successor = Account::of_process(std::process::id())?;
        let mut hand_over = false;
        match event {
            "unmaps its memory" => owner.tell("unmap")?,
            "executes itself anew" => owner.tell("execute")?,
            "hands over" => hand_over = true,
            "dies" => owner.kill()?,
            _ => {}
        }
        let [address, file] = devices.each_ref().map(|device| {
            if hand_over {
                let spaces = std::slice::from_ref(&device.ioas);
                change_process(spaces, &successor).map_err(|error| error.errno())?;
            }
            device.work().map_err(|error| error.errno())
        });
        println!("{event:24} {:12} {}", said(address), said(file));
    }
    Ok(())
}
