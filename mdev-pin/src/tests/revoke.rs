//! K4 past the deadline: devices that do not let go, and what their neighbours see.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::{Rw, Within};

/// A device that keeps its pins whatever it is told, and says what the kernel does with them.
#[derive(Default)]
struct Stubborn {
    calls: Mutex<Vec<(&'static str, IovaRange)>>,
    kernel_is_busy: AtomicBool,
}

impl AccessOps for Stubborn {
    fn on_unmap(&self, range: IovaRange) {
        self.calls.lock().unwrap().push(("unmap", range));
    }

    fn cancel(&self, range: IovaRange) -> bool {
        self.calls.lock().unwrap().push(("cancel", range));
        !self.kernel_is_busy.load(Ordering::SeqCst)
    }
}

/// A file of numbered pages, a stubborn device on a space, and another device on a space of the same windows.
struct Two {
    windows: Arc<Windows>,
    file: Arc<BackingFile>,
    device: Arc<Stubborn>,
    ioas: Ioas,
    access: Access,
    neighbour: Ioas,
    other: Access,
}

impl Two {
    /// The stubborn device's space shows the pages 0 to 3 at 0, the neighbour's the pages 4 to 7 at 0.
    fn new() -> Two {
        let windows = Windows::new().unwrap();
        let file = memory(8);
        for page in 0..8 {
            rustix::io::pwrite(file.as_fd(), &[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
        }
        let (ioas, neighbour) = (Ioas::new(windows.clone()), Ioas::new(windows.clone()));
        let device = Arc::new(Stubborn::default());
        let (access, other) = (Access::new(device.clone()), Access::new(Arc::new(IgnoreUnmap)));
        access.attach(&ioas).unwrap();
        other.attach(&neighbour).unwrap();
        ioas.map(area(&file, 0, 4 * PAGE, 0)).unwrap();
        neighbour.map(area(&file, 0, 4 * PAGE, 4 * PAGE)).unwrap();
        Two { windows, file, device, ioas, access, neighbour, other }
    }

    fn pin(&self, at: u64) -> Pin {
        self.access.lane().enter().pin(Iova(at), 16, Perm::READ | Perm::WRITE).unwrap()
    }

    fn unmap(&self) -> Result<u64, i32> {
        self.ioas.unmap(range(0, 4 * PAGE), Within::or_revoke(SOON)).map_err(|error| error.errno())
    }

    fn in_file(&self, at: u64) -> u8 {
        let mut byte = [0];
        rustix::io::pread(self.file.as_fd(), &mut byte, at).unwrap();
        byte[0]
    }

    /// The revocation that was refused has changed nothing: the area is gated, the pin reaches the guest.
    fn is_as_before(&self, pin: &Pin) {
        assert_eq!(seen(pin), 1);
        assert_eq!(read(&self.access, 0), Err(ResolveError::Gated));
        assert_eq!((self.ioas.areas().len(), self.ioas.pins(), self.access.voided()), (1, 1, 0));
    }
}

fn seen(pin: &Pin) -> u8 {
    pin.slices().next().unwrap().read(0).unwrap()
}

fn read(access: &Access, at: u64) -> Result<u8, ResolveError> {
    let mut lane = access.lane();
    let burst = lane.enter();
    burst.slice(Iova(at), 1, Perm::READ).map(|slice| slice.read(0).unwrap())
}

#[test]
fn revoked_pin_reaches_zeros_and_the_neighbour_in_its_window_goes_on() {
    let t = Two::new();
    let (pin, others) =
        (t.pin(100), t.other.lane().enter().pin(Iova(100), 16, Perm::READ | Perm::WRITE).unwrap());
    assert_eq!(t.windows.live(), 1, "both share it");
    assert_eq!(t.unmap(), Ok(4 * PAGE));
    let told = t.device.calls.lock().unwrap().clone();
    assert_eq!(told, [("unmap", range(0, 4 * PAGE)), ("cancel", range(0, 4 * PAGE))]);

    assert_eq!(seen(&pin), 0);
    pin.slices().next().unwrap().fill(0xaa);
    assert_eq!((seen(&pin), t.in_file(100)), (0xaa, 1), "a void pin is memory, but nobody else's");
    assert_eq!(read(&t.access, 0), Err(ResolveError::Hole));
    assert_eq!((t.ioas.pins(), t.access.pins(), t.access.voided()), (0, 0, 1));

    assert_eq!((seen(&others), read(&t.other, 0), t.neighbour.pins()), (5, Ok(5), 1));
    others.slices().next().unwrap().fill(0xbb);
    assert_eq!(t.in_file(4 * PAGE + 100), 0xbb);
    let mut lane = t.other.lane();
    let burst = lane.enter();
    burst.slice(Iova(0), 1, Perm::READ).unwrap();
    assert!(!burst.poisoned(), "it is not to blame");
}

#[test]
fn memory_mapped_anew_beside_a_void_pin_shows_the_file() {
    let t = Two::new();
    let pin = t.pin(0);
    t.unmap().unwrap();
    t.ioas.map(area(&t.file, 0, 4 * PAGE, 0)).unwrap();
    assert_eq!((read(&t.access, 0), read(&t.access, 3 * PAGE)), (Ok(1), Ok(4)));
    let new = t.pin(0);
    assert_eq!((seen(&new), seen(&pin)), (1, 0));
    assert_eq!((t.access.pins(), t.access.voided()), (1, 1), "counted apart, so on another slot");
    new.slices().next().unwrap().fill(7);
    pin.slices().next().unwrap().fill(8);
    assert_eq!(t.in_file(0), 7);
    drop(new);
    assert_eq!(t.unmap(), Ok(4 * PAGE), "the void pin is not waited for");
    assert_eq!(t.access.voided(), 1);
}

#[test]
fn slots_and_memory_come_back_when_the_last_void_pin_is_dropped() {
    let t = Two::new();
    let slot = |at: u64| t.ioas.state().areas.lookup(Iova(at)).unwrap().0.slot.number();
    let freed = slot(0);
    let pins = [t.pin(0), t.pin(PAGE)];
    t.unmap().unwrap();
    t.neighbour.unmap_all(LONG).unwrap();
    assert_eq!(t.windows.live(), 1, "only void pins hold it");
    t.ioas.map(area(&t.file, 0, PAGE, 0)).unwrap();
    assert_ne!(slot(0), freed, "a slot is not used again while a void pin is counted on it");
    assert_eq!(t.windows.live(), 2);
    for pin in pins {
        assert!(t.access.voided() > 0);
        drop(pin);
    }
    assert_eq!((t.access.voided(), t.windows.live()), (0, 1));
    t.ioas.map(area(&t.file, PAGE, PAGE, 0)).unwrap();
    assert_eq!(slot(PAGE), freed);
    t.ioas.unmap_all(LONG).unwrap();
    assert_eq!((t.windows.live(), Arc::strong_count(&t.file)), (0, 1));
}

#[test]
fn any_change_of_the_space_releases_what_void_pins_needed() {
    let t = Two::new();
    t.neighbour.unmap_all(LONG).unwrap();
    let pin = t.pin(0);
    t.unmap().unwrap();
    drop(pin);
    let other = memory(1);
    t.ioas.map(area(&other, 0, PAGE, 0)).unwrap();
    assert_eq!(t.windows.live(), 1);
}

#[test]
fn device_that_lets_go_in_time_loses_nothing() {
    let windows = Windows::new().unwrap();
    let ioas = Ioas::new(windows.clone());
    let device = Arc::new(Recorder::default());
    let access = Access::new(device.clone());
    access.attach(&ioas).unwrap();
    let file = memory(2);
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    ioas.map(area(&file, PAGE, PAGE, PAGE)).unwrap();
    let pin = access.lane().enter().pin(Iova(0), 8, Perm::WRITE).unwrap();
    device.pins.lock().unwrap().push((range(0, 8), pin));
    ioas.unmap(range(0, PAGE), Within::or_revoke(LONG)).unwrap();
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!((windows.mapped_total(), access.voided()), (1, 0), "the window is as good as before");
}

#[test]
fn alias_anywhere_turns_a_revocation_into_edeadlock_until_it_is_gone() {
    for partial in [false, true] {
        for (space, at) in [(0, 0x10_0000), (1, 0x20_0000)] {
            let t = Two::new();
            let ioas = if space == 0 { &t.ioas } else { &t.neighbour };
            // The last byte of page 0, or one of another page.
            let alias = area(&t.file, at, 1, if partial { PAGE - 1 } else { 2 * PAGE });
            let pin = t.pin(0);
            ioas.map(alias).unwrap();
            assert_eq!(t.unmap(), Err(35));
            assert_eq!(seen(&pin), 1, "nothing was taken away");
            assert_eq!(read(&t.access, 0), Err(ResolveError::Gated));
            ioas.unmap(range(at, 1), LONG).unwrap();
            t.is_as_before(&pin);
            assert_eq!(t.unmap(), Ok(4 * PAGE));
            assert_eq!((seen(&pin), t.ioas.areas().len()), (0, 0));
        }
    }
}

#[test]
fn area_that_begins_within_a_page_shares_it_with_its_neighbour() {
    let t = Two::new();
    t.ioas.unmap_all(LONG).unwrap();
    t.ioas.map(area(&t.file, 0, 100, 0)).unwrap();
    t.ioas.map(area(&t.file, 100, PAGE, 100)).unwrap();
    let pin = t.pin(0);
    let revoke = |first, len| t.ioas.unmap(range(first, len), Within::or_revoke(SOON));
    assert_eq!(revoke(0, 100).unwrap_err().errno(), 35);
    assert_eq!(seen(&pin), 1);
    assert_eq!(read(&t.access, 100), Ok(1));
    revoke(100, PAGE).unwrap();
    assert_eq!(revoke(0, 100).unwrap(), 100, "alone in its page now");
    assert_eq!(seen(&pin), 0);
}

#[test]
fn kernel_io_that_is_not_over_turns_a_revocation_into_edeadlock() {
    let t = Two::new();
    let pin = t.pin(0);
    t.device.kernel_is_busy.store(true, Ordering::SeqCst);
    assert_eq!(t.unmap(), Err(35));
    t.is_as_before(&pin);
    t.device.kernel_is_busy.store(false, Ordering::SeqCst);
    assert_eq!(t.unmap(), Ok(4 * PAGE));
    assert_eq!(seen(&pin), 0);
}

#[test]
fn device_that_says_nothing_of_the_kernel_is_not_revoked() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let pin = s.access.lane().enter().pin(Iova(0), 8, Perm::READ).unwrap();
    assert_eq!(s.ioas.unmap(range(0, PAGE), Within::or_revoke(SOON)).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.unmap(range(0, PAGE), Within::or_fail(SOON)).unwrap_err().errno(), 35);
    drop(pin);
    s.ioas.unmap(range(0, PAGE), SOON).unwrap();
}

#[test]
fn only_devices_that_hold_something_are_asked_to_cancel() {
    let t = Two::new();
    let idle = Arc::new(Stubborn::default());
    idle.kernel_is_busy.store(true, Ordering::SeqCst);
    let second = Access::new(idle.clone());
    second.attach(&t.ioas).unwrap();
    let pin = t.pin(0);
    t.unmap().unwrap();
    assert_eq!(*idle.calls.lock().unwrap(), [("unmap", range(0, 4 * PAGE))]);
    drop(pin);
}

#[test]
fn burst_that_does_not_end_loses_the_memory_and_what_it_pins_later_is_void() {
    let t = Two::new();
    let (ready, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    std::thread::scope(|scope| {
        let mut lane = t.access.lane();
        let worker = scope.spawn(move || {
            let burst = lane.enter();
            let slice = burst.slice(Iova(0), 1, Perm::WRITE).unwrap();
            ready.0.send(()).unwrap();
            let _ = go.1.recv();
            slice.fill(9);
            // The table that this burst reads shows the area still, and the slot is not used for another.
            (slice.read::<u8>(0), burst.pin(Iova(PAGE), 8, Perm::READ).unwrap())
        });
        ready.1.recv().unwrap();
        assert_eq!(t.unmap(), Ok(4 * PAGE));
        t.ioas.map(area(&t.file, 0, PAGE, 0)).unwrap();
        drop(go.0);
        let (read_back, pin) = worker.join().unwrap();
        assert_eq!((read_back, t.in_file(0), seen(&pin)), (Some(9), 1, 0));
        assert_eq!((t.access.pins(), t.access.voided()), (0, 1));
        t.ioas.unmap_all(LONG).unwrap();
        assert_eq!(t.access.voided(), 1);
        drop(pin);
        assert_eq!((t.access.voided(), t.access.core().published.has_void()), (0, false));
    });
    t.neighbour.unmap_all(LONG).unwrap();
    t.ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    assert_eq!(Arc::strong_count(&t.file), 1, "no table that shows it is left");
}

#[test]
fn access_with_void_pins_is_detached_at_once_and_attached_when_they_are_gone() {
    let t = Two::new();
    let pin = t.pin(0);
    t.unmap().unwrap();
    assert_eq!(t.access.replace(&t.neighbour, LONG).unwrap_err().errno(), 16);
    t.access.detach(LONG).unwrap();
    for ioas in [&t.ioas, &t.neighbour] {
        assert_eq!(t.access.attach(ioas).unwrap_err().errno(), 16, "slots of the two have the same numbers");
    }
    drop(pin);
    t.access.attach(&t.neighbour).unwrap();
    assert_eq!(read(&t.access, 0), Ok(5));
    t.access.close(LONG).unwrap();
}

#[test]
fn void_pin_outlives_its_access_and_its_space() {
    let Two { windows, file, ioas, access, neighbour, other, .. } = Two::new();
    let pin = access.lane().enter().pin(Iova(0), 16, Perm::WRITE).unwrap();
    ioas.unmap_all(Within::or_revoke(SOON)).unwrap();
    access.close(LONG).unwrap();
    drop((access, ioas, other, neighbour));
    pin.slices().next().unwrap().fill(3);
    assert_eq!(seen(&pin), 3);
    // Nobody is left who would find out that it is dropped: its memory stays, as that of every pin of a lost access.
    drop(pin);
    assert_eq!((windows.live(), Arc::strong_count(&file)), (1, 2));
}

#[test]
fn unmap_of_several_areas_revokes_each_by_itself() {
    let t = Two::new();
    t.ioas.unmap_all(LONG).unwrap();
    for page in 0..3 {
        t.ioas.map(area(&t.file, page * PAGE, PAGE, page * PAGE)).unwrap();
    }
    let pins = [t.pin(0), t.pin(PAGE), t.pin(2 * PAGE)];
    t.neighbour.map(area(&t.file, 0x10_0000, 1, PAGE)).unwrap();
    let error = t.ioas.unmap_all(Within::or_revoke(SOON)).unwrap_err();
    assert_eq!(error.errno(), 35);
    assert_eq!(pins.each_ref().map(seen), [0, 2, 3]);
    assert_eq!(t.ioas.areas().iter().map(|area| area.range.first().0).collect::<Vec<_>>(), [PAGE, 2 * PAGE]);
    assert_eq!((t.ioas.pins(), t.access.voided()), (2, 1));
    t.neighbour.unmap(range(0x10_0000, 1), LONG).unwrap();
    assert_eq!(t.ioas.unmap_all(Within::or_revoke(SOON)).unwrap(), 2 * PAGE);
    assert_eq!(pins.each_ref().map(seen), [0, 0, 0]);
}

#[test]
fn replaced_table_revokes_what_goes_and_keeps_pins_of_what_stays() {
    let t = Two::new();
    let (stays, goes) = (t.pin(0), t.pin(3 * PAGE));
    t.ioas.replace_table(vec![area(&t.file, 0, 2 * PAGE, 0)], Within::or_revoke(SOON)).unwrap();
    assert_eq!((seen(&stays), seen(&goes)), (1, 0));
    stays.slices().next().unwrap().fill(0x77);
    assert_eq!(t.in_file(0), 0x77);
    assert_eq!((read(&t.access, 0), read(&t.access, 3 * PAGE)), (Ok(0x77), Err(ResolveError::Hole)));
    assert_eq!(t.access.pins(), 2, "both are counted on a slot of live memory, so both count as live");
    drop(goes);
    assert_eq!((t.access.pins(), t.access.core().published.has_void()), (1, true));
    drop(stays);
    t.ioas.unmap_all(LONG).unwrap();
    assert!(!t.access.core().published.has_void());
}

#[test]
fn replaced_table_whose_new_areas_show_what_goes_is_refused() {
    let t = Two::new();
    let pin = t.pin(0);
    let moved = || vec![area(&t.file, 0x10_0000, 4 * PAGE, 0)];
    t.neighbour.map(area(&t.file, 0x10_0000, 1, 0)).unwrap();
    assert_eq!(t.ioas.replace_table(moved(), Within::or_revoke(SOON)).unwrap_err().errno(), 35);
    t.is_as_before(&pin);
    drop(pin);
    t.ioas.replace_table(moved(), Within::or_revoke(SOON)).unwrap();
    assert_eq!(read(&t.access, 0x10_0000), Ok(1));
}

#[test]
fn burst_that_does_not_end_does_not_stop_the_replacement_of_whole_areas() {
    let t = Two::new();
    let (ready, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    std::thread::scope(|scope| {
        let mut lane = t.access.lane();
        let worker = scope.spawn(move || {
            let burst = lane.enter();
            let slice = burst.slice(Iova(3 * PAGE), 1, Perm::READ).unwrap();
            ready.0.send(()).unwrap();
            let _ = go.1.recv();
            slice.read::<u8>(0)
        });
        ready.1.recv().unwrap();
        // One part of the old area stays, so the other is cut out of it.
        t.ioas.replace_table(vec![area(&t.file, 0, 2 * PAGE, 0)], Within::or_revoke(SOON)).unwrap();
        drop(go.0);
        assert_eq!((worker.join().unwrap(), read(&t.access, PAGE)), (Some(0), Ok(2)));
    });
    t.ioas.unmap_all(LONG).unwrap();
    assert!(!t.access.core().published.has_void());
}

#[test]
fn revoked_pages_say_so_and_are_unpinned_like_others() {
    let device = Arc::new(Stubborn::default());
    let s = pinning_space(device);
    let file = memory(2);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let pages = s.access.pin_pages(Iova(0), PAGE, Perm::WRITE).unwrap();
    s.ioas.unmap(range(0, PAGE), Within::or_revoke(SOON)).unwrap();
    assert_eq!(pages.with(|_| ()).unwrap_err().errno(), 14);
    // The same range again, on other memory, is another pin.
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let again = s.access.pin_pages(Iova(0), PAGE, Perm::WRITE).unwrap();
    again.with(|pin| pin.slices().for_each(|slice| slice.fill(5))).unwrap();
    let mut byte = [0];
    s.access.rw(Iova(9), Rw::Read(&mut byte)).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!((s.access.pins(), s.access.voided()), (1, 1));
    pages.unpin().unwrap();
    assert_eq!((s.access.pins(), s.access.voided()), (1, 0), "the void one first");
    again.with(|_| ()).unwrap();
    again.unpin().unwrap();
    assert_eq!(s.access.unpin_pages(Iova(0), PAGE).unwrap_err().errno(), 22);
    s.ioas.unmap_all(LONG).unwrap();
}

#[test]
fn memory_that_was_truncated_is_revoked_like_any_other() {
    let t = Two::new();
    let pin = t.pin(3 * PAGE);
    ftruncate(t.file.as_fd(), PAGE).unwrap();
    assert_eq!(seen(&pin), 0);
    assert_eq!(read(&t.access, 0), Err(ResolveError::Poisoned));
    assert_eq!(t.unmap(), Ok(4 * PAGE));
    assert_eq!((seen(&pin), t.access.voided()), (0, 1));
}

/// Others map and unmap the same pages all the while: they see the file's bytes whenever they have them mapped, and the
/// revocation happens or it does not.
#[test]
fn pages_mapped_elsewhere_at_any_instant_are_never_taken_away() {
    let t = Two::new();
    let (mut revoked, mut refused) = (0, 0);
    for _ in 0..200 {
        let pin = t.pin(0);
        std::thread::scope(|scope| {
            let mapper = scope.spawn(|| {
                for _ in 0..4 {
                    t.neighbour.map(area(&t.file, 0x10_0000, PAGE, 0)).unwrap();
                    for _ in 0..10 {
                        assert_eq!(read(&t.other, 0x10_0000), Ok(1), "a mapped page was taken away");
                    }
                    t.neighbour.unmap(range(0x10_0000, PAGE), LONG).unwrap();
                }
            });
            match t.ioas.unmap_all(Within::or_revoke(Duration::from_micros(50))) {
                Ok(_) => revoked += 1,
                Err(_) => refused += 1,
            }
            mapper.join().unwrap();
        });
        drop(pin);
        t.ioas.unmap_all(LONG).unwrap();
        t.ioas.map(area(&t.file, 0, 4 * PAGE, 0)).unwrap();
    }
    assert!(revoked > 0, "{revoked} {refused}");
    assert_eq!((t.access.pins(), t.access.voided()), (0, 0));
}
