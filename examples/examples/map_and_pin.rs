//! Guest memory is a place in a file; whoever takes it away waits for those who use it.
//!
//! A memfd stands for the guest's memory. It is mapped into an address space, a device reads it inside a
//! burst and keeps a pin for an I/O that takes longer. The unmap that comes meanwhile closes the gate at once
//! and returns when the pin is gone, neither earlier nor much later.

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, AccessOps, Ioas};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const SIZE: u64 = 2 << 20;
/// Where the device sees the memory. The guest chooses; it has nothing to do with any address of this
/// process.
const START: Iova = Iova(0x4000_0000);

/// What a device does when memory that it may have pinned is about to go: it must not block, so it passes the
/// word on.
struct Device {
    leaving: Sender<IovaRange>,
}

impl AccessOps for Device {
    fn on_unmap(&self, range: IovaRange) {
        // Nobody listens any more once the example is over.
        let _ = self.leaving.send(range);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The owner's side: a file, sized before it is announced.
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, SIZE)?;
    let file = BackingFile::new(fd, &FilePolicy::default())?;

    // One set of windows for the process, one address space for the guest, one access for the device.
    let ioas = Ioas::new(Windows::new()?);
    let range = IovaRange::with_len(START, SIZE)?;
    let perm = Perm::READ | Perm::WRITE;
    ioas.map(Area { range, extent: FileExtent { file, offset: 0 }.into(), perm, log: None })?;
    let (leaving, notices) = channel();
    let access = Access::new(Arc::new(Device { leaving }));
    access.attach(&ioas)?;
    println!("mapped {range}");

    // A burst: addresses become slices, and the slices end with the burst. Nothing is counted and nothing can
    // block.
    let mut lane = access.lane();
    let pin = {
        let burst = lane.enter();
        burst.slice(START, 5, Perm::WRITE)?.copy_from(b"hello");
        let beyond = Iova(START.0 + SIZE);
        println!("the byte behind the area: {}", burst.slice(beyond, 1, Perm::READ).unwrap_err());
        // A pin outlives the burst. It is recorded before the burst ends, here in a local.
        burst.pin(START, 4096, Perm::READ)?
    };
    println!("pins out: {}", ioas.pins());

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let unmapper = scope.spawn(|| ioas.unmap(range, Duration::from_secs(5)));
        let asked = notices.recv_timeout(Duration::from_secs(5))?;
        println!("asked to let go of {asked}");
        // The gate is closed for new accesses, yet the memory under the pin is as good as before.
        println!("a lookup now: {}", lane.enter().slice(START, 5, Perm::READ).unwrap_err());
        let mut bytes = [0; 5];
        pin.slices().next().ok_or("a pin has memory")?.copy_to(&mut bytes);
        println!("the pin reads: {}", String::from_utf8_lossy(&bytes));
        println!("the unmap has returned: {}", unmapper.is_finished());
        drop(pin);
        let released = unmapper.join().map_err(|_| "the unmapping thread panicked")??;
        println!("the pin is gone: {released} bytes unmapped, pins out: {}", ioas.pins());
        Ok(())
    })?;

    println!("a lookup afterwards: {}", lane.enter().slice(START, 5, Perm::READ).unwrap_err());
    access.close(Duration::from_secs(1))?;
    println!("a lookup after the close: {}", lane.enter().slice(START, 5, Perm::READ).unwrap_err());
    Ok(())
}
