//! What is behind an address: tables, holes, and what is asked for when it is missed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use mdev_protocol::vduse::{DeviceError, IotlbFile, VqInfo};

use super::super::Kernel;
use super::super::memory::FETCHED;
use super::super::model::Opened;
use super::*;

const ALL: Perm = Perm::READ.union(Perm::WRITE);

fn forsaken(house: &mut House) -> Vec<(u16, u64)> {
    let forsake = |note: Note| match note {
        Note::Forsake { index, iova } => Some((index, iova.0)),
        _ => None,
    };
    house.queues.take_notes().into_iter().filter_map(forsake).collect()
}

/// So many entries of a page each, a page apart.
fn pages(count: usize) -> (Arc<OwnedFd>, Vec<Entry>) {
    let file = memfd(count as u64 * 4096);
    let entries = (0..count as u64).map(|at| entry(at * 8192, 4096, &file, at * 4096)).collect();
    (file, entries)
}

#[test]
fn table_is_fetched_as_a_whole_up_to_a_length() {
    for (count, fetched) in [(FETCHED, FETCHED), (FETCHED + 1, 0)] {
        let mut house = House::new(1);
        let (file, entries) = pages(count);
        (0..count as u64).for_each(|at| write(&file, at * 4096, at as u8 + 1));
        house.start(entries.clone());
        assert_eq!(house.areas().len(), fetched);
        for at in 0..count as u64 {
            house.miss(at * 8192 + 7, Perm::READ);
            assert_eq!(house.byte(at * 8192), Some(at as u8 + 1));
        }
        assert_eq!(house.areas().len(), count);
        // What comes next is fetched in the same way, and nothing stays that is not there.
        house.done(Action::SetMap(entries[1..].to_vec()));
        assert_eq!(house.areas().len(), FETCHED.min(count - 1));
        house.done(Action::SetMap(entries));
        assert_eq!(house.areas().len(), FETCHED, "what was there is");
        assert!(forsaken(&mut house).is_empty());
    }
}

#[test]
fn table_of_holes_only_is_not_longer_than_others() {
    let mut house = House::new(1);
    let short = memfd(4096);
    let holes: Vec<Entry> = (1..100).map(|at| entry(at << 20, MIB, &short, 0)).collect();
    let good = entry(0, 4096, &short, 0);
    house.start(holes.into_iter().chain([good]).collect());
    assert!(house.areas().is_empty(), "nothing was fetched");
    house.miss(0, ALL);
    assert_eq!(house.areas(), [(0, 4095)]);
}

#[test]
fn address_that_nothing_is_behind_is_a_hole_for_whoever_looks_and_for_nobody_else() {
    let mut house = House::new(2);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.miss(MIB, Perm::READ);
    assert_eq!(forsaken(&mut house), [(0, MIB)]);
    assert!(house.runs(0) && house.runs(1));
    assert_eq!(house.byte(0), Some(0));
    // What appears without a word is there for whoever misses it.
    assert!(house.model.map(entry(MIB, MIB, &memfd(MIB), 0)));
    house.miss(MIB + 5, ALL);
    assert!(forsaken(&mut house).is_empty());
    assert_eq!(house.byte(MIB), Some(0));
}

#[test]
fn files_that_cannot_be_used_are_holes_and_spoil_no_others() {
    let mut house = House::new(1);
    let regular = Arc::new(OwnedFd::from(tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap()));
    ftruncate(&regular, MIB).unwrap();
    let null = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    let short = memfd(MIB);
    let bad = [
        entry(MIB, MIB, &regular, 0),
        entry(2 * MIB, MIB, &null, 0),
        entry(3 * MIB, MIB, &short, 4096),
        entry(4 * MIB, MIB, &short, u64::MAX - 4095),
        Entry { perm: IotlbPerm::empty(), ..entry(5 * MIB, MIB, &short, 0) },
    ];
    let good = [entry(0, MIB, &short, 0), entry(9 * MIB, MIB, &short, 0)];
    house.start(bad.iter().chain(&good).cloned().collect());
    let first = usize::from(rustix::fs::fstatfs(&*regular).unwrap().f_type == 0x0102_1994);
    assert_eq!(house.areas().len(), 2 + first, "a checkout in memory is as good as any memory");
    for bad in &bad[first..] {
        house.miss(bad.range.first().0, Perm::READ);
        assert_eq!(forsaken(&mut house), [(0, bad.range.first().0)]);
    }
    // A file that has grown meanwhile.
    ftruncate(&*short, 2 * MIB).unwrap();
    house.miss(3 * MIB, Perm::READ);
    assert!(forsaken(&mut house).is_empty() && house.byte(3 * MIB).is_some());
}

#[test]
fn device_may_do_what_the_entry_says_and_nothing_else() {
    let mut house = House::new(1);
    let file = memfd(2 * MIB);
    let entries = vec![
        Entry { perm: IotlbPerm::READ, ..entry(0, MIB, &file, 0) },
        Entry { perm: IotlbPerm::WRITE, ..entry(MIB, MIB, &file, MIB) },
    ];
    house.start(entries.clone());
    let access = house.queues.running[&0].access.clone();
    let mut lane = access.lane();
    let mut may = |at, perm| lane.enter().pin(Iova(at), 8, perm).is_ok();
    assert!(may(0, Perm::READ) && !may(0, Perm::WRITE));
    assert!(!may(MIB, Perm::READ) && may(MIB, Perm::WRITE));
    house.miss(0, Perm::WRITE);
    house.miss(MIB, Perm::READ);
    assert_eq!(forsaken(&mut house), [(0, 0), (0, MIB)]);
    // The kernel permits more meanwhile, and is about to say so.
    let more = vec![entry(0, 2 * MIB, &file, 0)];
    let asked = house.model.begin(Action::SetMap(more));
    house.session.queue_missed(&mut house.queues, 0, Iova(0), Perm::WRITE);
    assert!(forsaken(&mut house).is_empty(), "the wait is not over");
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(forsaken(&mut house).is_empty() && may(0, Perm::WRITE) && may(MIB, Perm::READ));
}

#[test]
fn miss_between_a_change_of_the_table_and_its_message_is_answered_by_the_message() {
    let mut house = House::new(1);
    let (old, new) = (memfd(4 * MIB), memfd(4 * MIB));
    write(&old, 0, 1);
    write(&new, 0, 2);
    write(&new, MIB, 3);
    house.start(vec![entry(0, MIB, &old, 0)]);
    let asked = house.model.begin(Action::SetMap(vec![entry(0, 2 * MIB, &new, 0)]));
    // What lies behind the old one is part of the new one, which cannot be there beside it.
    house.session.queue_missed(&mut house.queues, 0, Iova(MIB), Perm::READ);
    assert_eq!(house.areas(), [(0, MIB - 1)]);
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert_eq!(house.areas(), [(0, 2 * MIB - 1)]);
    assert_eq!((house.byte(0), house.byte(MIB)), (Some(2), Some(3)));
    assert!(forsaken(&mut house).is_empty());
}

#[test]
fn miss_of_a_long_table_under_change_is_answered_when_it_has_changed() {
    let mut house = House::new(1);
    let (_, mut entries) = pages(FETCHED + 2);
    house.start(entries.clone());
    house.miss(0, Perm::READ);
    let pin = house.pin(0).unwrap();
    let gone = entries.remove(0);
    let asked = house.waits(Action::SetMap(entries));
    house.miss(8192, Perm::READ);
    assert!(house.areas().len() == 1 && forsaken(&mut house).is_empty(), "it waits for the change");
    house.miss(gone.range.first().0, Perm::READ);
    drop(pin);
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    // One ring waits for one address: the last one it missed.
    assert_eq!(forsaken(&mut house), [(0, 0)]);
    house.miss(8192, Perm::READ);
    assert_eq!(house.byte(8192), Some(0));
}

#[test]
fn long_table_that_changes_elsewhere_disturbs_nothing_that_is_mapped() {
    let mut house = House::new(1);
    let (file, mut entries) = pages(FETCHED + 3);
    house.start(entries.clone());
    for at in [0, 8192, 16384] {
        house.miss(at, Perm::READ);
    }
    let pin = house.pin(0).unwrap();
    entries.pop();
    house.done(Action::SetMap(entries.clone()));
    assert_eq!((house.areas().len(), house.session.ioas.pins()), (3, 1));
    // One goes, one is cut elsewhere, and nobody waits for the third.
    entries.remove(2);
    entries[1] = entry(8192 - 4096, 8192, &file, 0);
    house.done(Action::SetMap(entries));
    assert_eq!(house.areas(), [(0, 4095)]);
    drop(pin);
}

#[test]
fn table_that_cannot_be_fetched_now_is_fetched_when_it_is_missed() {
    let mut house = House::new(1);
    let (old, new) = (memfd(MIB), memfd(MIB));
    write(&old, 0, 1);
    write(&new, 0, 2);
    house.start(vec![entry(0, MIB, &old, 0)]);
    house.model.starve(true);
    house.done(Action::SetMap(vec![entry(0, MIB, &new, 0)]));
    assert!(house.byte(0).is_none(), "what was there before is out of reach all the same");
    house.model.starve(false);
    house.miss(0, Perm::READ);
    assert_eq!(house.byte(0), Some(2));
}

#[test]
fn nothing_is_mapped_before_the_driver_is_ready_nor_after_a_suspension() {
    let mut house = House::new(1);
    let entries = vec![entry(0, MIB, &memfd(MIB), 0)];
    house.prepare();
    house.done(Action::SetMap(entries.clone()));
    assert!(house.areas().is_empty());
    house.done(Action::SetStatus(OK));
    assert_eq!(house.areas().len(), 1);
    house.done(Action::Suspend);
    house.done(Action::SetMap(entries));
    assert!(house.areas().is_empty());
}

#[test]
fn memory_that_the_kernel_takes_back_with_a_reset_is_asked_for_anew() {
    let mut house = House::new(1);
    let (old, new) = (memfd(MIB), memfd(MIB));
    write(&old, 0, 1);
    write(&new, 0, 2);
    house.start(Vec::new());
    house.model.map(entry(0, MIB, &old, 0));
    house.miss(0, Perm::READ);
    assert_eq!(house.byte(0), Some(1));
    house.done(Action::Reset);
    assert!(house.areas().is_empty() && house.windows.live() == 0);
    house.model.unmap(0);
    house.model.map(entry(0, MIB, &new, 0));
    house.prepare();
    house.done(Action::SetStatus(OK));
    house.miss(0, Perm::READ);
    assert_eq!(house.byte(0), Some(2));
}

#[test]
fn memory_at_the_end_of_all_addresses_is_memory() {
    let mut house = House::new(1);
    let file = memfd(MIB);
    house.start(vec![entry(0, 4096, &file, 0), entry(u64::MAX - 4095, 4096, &file, 0)]);
    assert_eq!(house.areas(), [(0, 4095), (u64::MAX - 4095, u64::MAX)]);
}

/// A kernel whose driver maps something else just after the first look at its table.
struct Meddled {
    kernel: Opened,
    model: Model,
    table: Mutex<Option<Vec<Entry>>>,
}

impl AsFd for Meddled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}

impl Kernel for Meddled {
    fn driver_features(&self) -> Result<u64, DeviceError> {
        self.kernel.driver_features()
    }

    fn queue(&self, index: u16, packed: bool) -> Result<VqInfo, DeviceError> {
        self.kernel.queue(index, packed)
    }

    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        self.kernel.set_kick(index, kick)
    }

    fn interrupt(&self, index: u16) -> Result<(), DeviceError> {
        self.kernel.interrupt(index)
    }

    fn interrupt_config(&self) -> Result<(), DeviceError> {
        self.kernel.interrupt_config()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.kernel.set_config(offset, bytes)
    }

    fn memory(&self, first: u64, last: u64) -> Result<Option<IotlbFile>, DeviceError> {
        let memory = self.kernel.memory(first, last);
        if let Some(table) = self.table.lock().unwrap().take() {
            self.model.begin(Action::SetMap(table));
        }
        memory
    }
}

#[test]
fn table_that_changes_while_a_new_server_fetches_it_is_fetched_again() {
    let mut house = House::new(1);
    let file = memfd(4 * MIB);
    house.start(vec![entry(0, MIB, &file, 0), entry(MIB, MIB, &file, MIB)]);
    // Both lie in what was fetched already, and behind it.
    let table = vec![entry(4096, 3 * MIB, &file, 0)];
    let kernel = Meddled {
        kernel: house.model.open().unwrap(),
        model: house.model.clone(),
        table: Mutex::new(Some(table)),
    };
    let device = Arc::new(MockDevice::new(1));
    (house.device, house.queues) = (device.clone(), MockQueues::new(device.clone()));
    let (windows, files) = (house.windows.clone(), FilePolicy::default());
    house.session = Session::new(CONN, Arc::new(kernel), device, windows, files, None).unwrap();
    house.pump();
    assert!(house.runs(0), "the driver is served");
    assert_eq!(house.areas(), [(4096, 4096 + 3 * MIB - 1)]);
}
