//! A software mediated device in forty lines: it pins pages, is unmapped under, and closes.
//!
//! What Linux calls an mdev holds guest pages for I/O that takes its time, and promises one thing: told that a range
//! goes, it lets go of its pins there. It need not find out who unmaps, or why, or wait for anybody; and whoever unmaps
//! gets the memory back when the promise is kept.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, AccessOps, Ioas, Lane, Pin, ResolveError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const PAGE: u64 = 4096;
const SECOND: Duration = Duration::from_secs(1);

/// The device: the pages that its I/O uses.
#[derive(Default)]
struct Mdev {
    held: Mutex<Vec<(IovaRange, Pin)>>,
}

impl Mdev {
    /// Begins an I/O on a page: pinned and recorded in one burst, so that no unmap comes between the two.
    fn begin(&self, lane: &mut Lane, page: Iova) -> Result<(), ResolveError> {
        let burst = lane.enter();
        let pin = burst.pin(page, PAGE as u32, Perm::READ | Perm::WRITE)?;
        let range = IovaRange::with_len(page, PAGE).map_err(|_| ResolveError::Overflow)?;
        self.held().push((range, pin));
        Ok(())
    }

    /// What the hardware would do meanwhile: one byte into every pinned page.
    fn work(&self, byte: u8) -> usize {
        let held = self.held();
        held.iter().flat_map(|(_, pin)| pin.slices()).for_each(|page| page.fill(byte));
        held.len()
    }

    fn held(&self) -> MutexGuard<'_, Vec<(IovaRange, Pin)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessOps for Mdev {
    fn on_unmap(&self, range: IovaRange) {
        self.held().retain(|(page, _)| page.intersection(range).is_none());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The guest: two areas of one file.
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, 2 * PAGE)?;
    let file = BackingFile::new(fd, &FilePolicy::default())?;
    let ioas = Ioas::new(Windows::new()?);
    let (low, high) = (IovaRange::with_len(Iova(0), PAGE)?, IovaRange::with_len(Iova(1 << 32), PAGE)?);
    for (range, offset) in [(low, 0), (high, PAGE)] {
        let extent = FileExtent { file: file.clone(), offset };
        ioas.map(Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None })?;
    }

    let device = Arc::new(Mdev::default());
    let access = Access::new(device.clone());
    access.attach(&ioas)?;
    let mut lane = access.lane();
    device.begin(&mut lane, low.first())?;
    device.begin(&mut lane, high.first())?;
    println!("{} pages written through pins, {} pins out", device.work(1), ioas.pins());

    // Somebody unmaps the low area: the callback lets go, and the other page is not touched by that.
    println!("{} bytes unmapped, {} pin out", ioas.unmap(low, SECOND)?, ioas.pins());
    println!("{} page written", device.work(2));
    match device.begin(&mut lane, low.first()) {
        Ok(()) => return Err("pinned what is not mapped".into()),
        Err(error) => println!("another pin there: {error}"),
    }

    // Closing is an unmap of everything, for this device alone.
    access.close(SECOND)?;
    println!("closed: {} pins out, {} area still mapped", ioas.pins(), ioas.areas().len());
    match device.begin(&mut lane, high.first()) {
        Ok(()) => Err("pinned through a closed access".into()),
        Err(error) => {
            println!("another pin: {error}");
            Ok(())
        }
    }
}
