//! Every step that the machine can refuse, refused once, in a sequence of all operations: the operation answers with
//! the error that is documented for the step, changes nothing, and succeeds when it is made again; in the end nothing
//! is left.

use std::{fs, sync::Mutex};

use mdev_dma::{
    CHUNK, Process, ProcessExtent, UserAddr,
    faults::{Fault, Step},
};

use super::*;
use crate::{Account, Pages, Place, Rw, change_process};

const NAME: &str = "mdev-pin-fault";

/// Descriptors and mappings of the memory of these tests.
fn held() -> (usize, usize) {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = |name: &str| name.contains(NAME);
    (links.filter(|to| ours(&to.to_string_lossy())).count(), maps.lines().filter(|line| ours(line)).count())
}

/// A file of three windows, of which nobody touches more than some pages.
fn large() -> OwnedFd {
    let fd = memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 3 * CHUNK).unwrap();
    fd
}

/// A device that pins pages and lets go when it is told.
#[derive(Default)]
struct Polite(Mutex<Vec<Pages>>);

impl AccessOps for Polite {
    fn on_unmap(&self, range: IovaRange) {
        let mut pages = self.0.lock().unwrap();
        for pages in pages.extract_if(.., |pages| pages.range().intersection(range).is_some()) {
            pages.unpin().unwrap();
        }
    }
}

/// Two spaces, a device that pins and one that does not.
struct World {
    windows: Arc<Windows>,
    spaces: [Ioas; 2],
    device: Arc<Polite>,
    pinning: Access,
    other: Access,
    file: Option<Arc<BackingFile>>,
    owner: Account,
    process: Arc<Process>,
    memory: Vec<u8>,
}

/// An operation: what it is called, and itself; the error is the number.
type Operation = (&'static str, fn(&mut World) -> Result<(), i32>);

fn pages_at(first: u64, pages: u64) -> IovaRange {
    range(first, pages * PAGE)
}

impl World {
    fn new() -> World {
        let windows = Windows::new().unwrap();
        let device = Arc::new(Polite::default());
        World {
            spaces: [Ioas::new(windows.clone()), Ioas::new(windows.clone())],
            pinning: Access::pinning(device.clone()),
            other: Access::new(Arc::new(IgnoreUnmap)),
            windows,
            device,
            file: None,
            owner: Account::unlimited(),
            process: Process::open(std::process::id()).unwrap(),
            memory: vec![1; 2 * PAGE as usize],
        }
    }

    /// A page of this process.
    fn page(&self) -> u64 {
        (self.memory.as_ptr() as u64).next_multiple_of(PAGE)
    }

    fn file(&self) -> Arc<BackingFile> {
        self.file.clone().unwrap()
    }

    /// All that an operation could change: areas, what lanes find at their ends, pins.
    fn seen(&self) -> String {
        let spaces = self.spaces.each_ref().map(|ioas| (ioas.areas(), ioas.pins()));
        let mut lanes = [self.pinning.lane(), self.other.lane()];
        let found: Vec<_> = lanes
            .iter_mut()
            .flat_map(|lane| {
                let burst = lane.enter();
                let ends = spaces.iter().flat_map(|(areas, _)| areas).map(|area| area.range);
                ends.flat_map(|range| [range.first(), range.last()])
                    .map(|at| burst.slice(at, 1, Perm::READ).map(|slice| slice.len()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let charged = self.spaces.each_ref().map(|ioas| ioas.account().pinned());
        format!("{spaces:?} {found:?} {charged:?} {:?}", self.device.0.lock().unwrap())
    }
}

/// In the order in which they are made, each on what those before it left.
const SEQUENCE: &[Operation] = &[
    ("a file arrives", |w| {
        let file = BackingFile::new(large(), &FilePolicy::default());
        w.file = Some(file.map_err(|error| error.errno())?);
        Ok(())
    }),
    ("map over two windows", |w| {
        let area = area(&w.file(), 0, 4 * PAGE, CHUNK - 2 * PAGE);
        w.spaces[0].map(area).map_err(|error| error.errno())
    }),
    ("map anywhere", |w| {
        let extent = FileExtent { file: w.file(), offset: 0 };
        let done = w.spaces[0].map_anywhere(extent, 2 * PAGE, Perm::READ | Perm::WRITE);
        done.map(drop).map_err(|error| error.errno())
    }),
    ("attach", |w| w.pinning.attach(&w.spaces[0]).map_err(|error| error.errno())),
    ("attach the other", |w| w.other.attach(&w.spaces[0]).map_err(|error| error.errno())),
    ("pin pages over two windows", |w| {
        let pages = w.pinning.pin_pages(Iova(0), 4 * PAGE, Perm::WRITE).map_err(|error| error.errno())?;
        w.device.0.lock().unwrap().push(pages);
        Ok(())
    }),
    ("write and read over two windows", |w| {
        let mut back = [0; 64];
        let at = Iova(2 * PAGE - 32);
        w.other.rw(at, Rw::Write(&[7; 64])).map_err(|error| error.errno())?;
        w.other.rw(at, Rw::Read(&mut back)).map_err(|error| error.errno())?;
        assert_eq!(back, [7; 64]);
        Ok(())
    }),
    ("copy to the other space", |w| {
        let place = Place::At(Iova(PAGE));
        let done = w.spaces[1].copy_from(&w.spaces[0], Iova(PAGE), 2 * PAGE, place, Perm::READ);
        done.map(drop).map_err(|error| error.errno())
    }),
    ("copy anywhere within a space", |w| {
        let [ioas, _] = &w.spaces;
        let done = ioas.copy_from(ioas, Iova(0), 6 * PAGE, Place::Anywhere, Perm::READ);
        done.map(drop).map_err(|error| error.errno())
    }),
    ("change the process", |w| {
        let [one, other] = &w.spaces;
        change_process(&[one.clone(), other.clone()], &w.owner).map_err(|error| error.errno())
    }),
    ("map memory by address", |w| {
        let extent = ProcessExtent { process: w.process.clone(), address: UserAddr(w.page()) };
        let (range, perm) = (range(128 * PAGE, PAGE), Perm::READ);
        let area = Area { range, extent: extent.into(), perm, log: None };
        w.spaces[0].map(area).map_err(|error| error.errno())
    }),
    ("pin pages by address", |w| {
        let pages = w.pinning.pin_pages(Iova(128 * PAGE), PAGE, Perm::READ).map_err(|error| error.errno())?;
        w.device.0.lock().unwrap().push(pages);
        Ok(())
    }),
    ("replace the table", |w| {
        let (file, perm) = (w.file(), Perm::READ | Perm::WRITE);
        // Cuts the first area, keeps a part of it, and adds a third window.
        let kept = area(&file, 0, 3 * PAGE, CHUNK - 2 * PAGE);
        let new = Area { perm, ..area(&file, 64 * PAGE, 2 * PAGE, 2 * CHUNK - PAGE) };
        w.spaces[0].replace_table(vec![kept, new], LONG).map_err(|error| error.errno())
    }),
    ("replace the space of an access", |w| {
        w.pinning.replace(&w.spaces[1], LONG).map_err(|error| error.errno())
    }),
    ("unmap", |w| w.spaces[0].unmap(pages_at(64 * PAGE, 2), LONG).map(drop).map_err(|error| error.errno())),
    ("unmap everything", |w| w.spaces[0].unmap_all(LONG).map(drop).map_err(|error| error.errno())),
    ("close", |w| w.pinning.close(LONG).map_err(|error| error.errno())),
    ("detach", |w| w.other.detach(LONG).map_err(|error| error.errno())),
    ("destroy", |w| w.spaces[0].destroy().map(drop).map_err(|error| error.errno())),
    ("destroy the other", |w| w.spaces[1].destroy().map(drop).map_err(|error| error.errno())),
];

/// What is documented for a step that fails in an operation.
fn documented(operation: &str, step: Step) -> i32 {
    match step {
        Step::Inspect => 5,
        // The file is asked for its size to tell whether it was truncated; if it cannot tell, it was.
        Step::Size if operation.starts_with("pin") || operation.starts_with("write") => 22,
        Step::Size => 5,
        Step::Map | Step::TakeAway | Step::Advise | Step::Memory | Step::Charge => 12,
        Step::WindowSlot | Step::AreaSlot => 28,
    }
}

#[test]
fn every_step_that_fails_once_changes_nothing_and_leaves_nothing() {
    let mut failed = Vec::new();
    for n in 1.. {
        assert!(n < 1000, "the sequence never passes");
        let mut world = World::new();
        let fault = Fault::at(n);
        let mut reached = None;
        for (operation, run) in SEQUENCE {
            let before = world.seen();
            let done = run(&mut world);
            let Some(step) = fault.step().filter(|_| reached.is_none()) else {
                assert_eq!(done, Ok(()), "{operation} after {reached:?}");
                continue;
            };
            reached = Some((*operation, step));
            assert_eq!(done, Err(documented(operation, step)), "{operation}: {step:?}, step {n}");
            assert_eq!(world.seen(), before, "{operation}: {step:?}, step {n}");
            assert_eq!(run(&mut world), Ok(()), "{operation}, made again after {step:?}");
        }
        assert_eq!(
            (world.windows.live(), world.pinning.pins(), world.other.pins()),
            (0, 0, 0),
            "{reached:?}"
        );
        drop(world);
        assert_eq!(held(), (0, 0), "{reached:?}, step {n}");
        match reached {
            Some(reached) => failed.push(reached),
            None => break,
        }
    }
    let operations =
        |prefix: &str| failed.iter().filter(|(operation, _)| operation.starts_with(prefix)).count();
    for prefix in [
        "a file",
        "map over",
        "map any",
        "attach the",
        "pin",
        "write",
        "copy to",
        "copy any",
        "change",
        "replace the table",
    ] {
        assert!(operations(prefix) > 0, "nothing failed in {prefix}: {failed:?}");
    }
    // What undoes things cannot be refused.
    assert_eq!(["unmap", "close", "detach", "destroy"].map(operations), [0; 4], "{failed:?}");
}
