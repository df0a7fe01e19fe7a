//! K12: memory files that shrink, on every path to their bytes. The request that was under way fails, later ones are
//! refused, others go on, and what is mapped anew is as good as new.

use std::time::Instant;

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals};

use super::*;
use crate::{Place, Rw, Within};

/// A space with a file that will shrink, at 0, and one that will not, at [`FINE`].
struct Half {
    s: Space,
    file: Arc<BackingFile>,
}

const FINE: u64 = 0x10_0000;
const BOTH: Perm = Perm::READ.union(Perm::WRITE);

impl Half {
    fn new() -> Half {
        let s = pinning_space(Arc::new(IgnoreUnmap));
        let (file, fine) = (memory(2), memory(2));
        s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
        s.ioas.map(area(&fine, FINE, 2 * PAGE, 0)).unwrap();
        Half { s, file }
    }

    fn shrink(&self) {
        ftruncate(self.file.as_fd(), 0).unwrap();
    }

    fn grow(&self) {
        ftruncate(self.file.as_fd(), 2 * PAGE).unwrap();
    }

    fn try_read(&self, at: u64) -> Result<u8, ResolveError> {
        let mut lane = self.s.access.lane();
        let burst = lane.enter();
        burst.slice(Iova(at), 1, Perm::READ).map(|slice| slice.read(0).unwrap())
    }

    /// The file's memory is refused on every path, the other's is not.
    fn is_refused(&self) {
        let mut lane = self.s.access.lane();
        let burst = lane.enter();
        for at in [0, 1, PAGE, 2 * PAGE - 1] {
            assert_eq!(burst.slice(Iova(at), 1, Perm::READ).unwrap_err(), ResolveError::Poisoned);
            assert_eq!(burst.pin(Iova(at), 1, Perm::READ).unwrap_err(), ResolveError::Poisoned);
            let mut list = SgList::new();
            assert_eq!(burst.sg(Iova(at), 1, BOTH, &mut list).unwrap_err(), ResolveError::Poisoned);
        }
        let at = FileExtent { file: self.file.clone(), offset: 0 };
        assert_eq!(burst.extent(&at, 16, Perm::READ).unwrap_err(), ResolveError::Poisoned);
        burst.slice(Iova(FINE), 16, BOTH).unwrap();
        assert!(!burst.poisoned(), "another file is not to blame");
        drop(burst);
        self.s.access.rw(Iova(FINE), Rw::Write(&[1; 16])).unwrap();
        let pages = self.s.access.pin_pages(Iova(FINE), PAGE, Perm::READ).unwrap();
        pages.with(|pin| assert!(!pin.poisoned())).unwrap();
        pages.unpin().unwrap();
    }

    /// Mapped anew it works on every path.
    fn is_healed(&self) {
        rustix::io::pwrite(self.file.as_fd(), &[7; 2 * PAGE as usize], 0).unwrap();
        let mut lane = self.s.access.lane();
        let burst = lane.enter();
        assert_eq!(burst.slice(Iova(PAGE), 1, Perm::READ).unwrap().read(0), Some(7_u8));
        assert!(!burst.poisoned());
        drop(burst);
        self.s.access.rw(Iova(PAGE - 1), Rw::Write(&[8; 2])).unwrap();
        let pages = self.s.access.pin_pages(Iova(0), PAGE, Perm::READ).unwrap();
        pages.with(|pin| assert!(!pin.poisoned())).unwrap();
        pages.unpin().unwrap();
        assert_eq!((self.s.windows.live(), self.s.windows.losses().poisoned), (2, 0));
    }
}

#[test]
fn slices_of_a_file_that_shrank_spoil_their_burst_and_no_other_one() {
    let h = Half::new();
    let (mut lane, mut other) = (h.s.access.lane(), h.s.access.lane());
    let (burst, beside) = (lane.enter(), other.enter());
    let slice = burst.slice(Iova(0), 8, BOTH).unwrap();
    beside.slice(Iova(FINE), 8, BOTH).unwrap();
    h.shrink();
    assert!(!burst.poisoned(), "nobody has touched it yet");
    slice.fill(3);
    assert!(burst.poisoned() && slice.poisoned());
    // The burst may still resolve what it remembers, but it is spoilt for good.
    let _ = burst.slice(Iova(PAGE), 8, Perm::READ);
    assert!(burst.poisoned());
    assert!(!beside.poisoned(), "another burst that did not touch it");
    drop((burst, beside));
    h.is_refused();
}

#[test]
fn every_slice_of_a_list_spoils_its_burst() {
    for lost in [0, 1] {
        let h = Half::new();
        h.s.ioas.unmap(range(FINE, 2 * PAGE), LONG).unwrap();
        let fine = memory(1);
        h.s.ioas.map(area(&fine, 2 * PAGE, PAGE, 0)).unwrap();
        let mut lane = h.s.access.lane();
        let burst = lane.enter();
        let mut list = SgList::new();
        burst.sg(Iova(2 * PAGE - 8), 16, BOTH, &mut list).unwrap();
        ftruncate(if lost == 0 { h.file.as_fd() } else { fine.as_fd() }, 0).unwrap();
        list.copy_from(0, &[1; 16]);
        assert!(burst.poisoned());
    }
}

#[test]
fn pin_tells_of_memory_that_was_lost_long_after_its_burst() {
    let h = Half::new();
    // An access that pins in bursts and lets nobody go.
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&h.s.ioas).unwrap();
    let pin = |at| access.lane().enter().pin(Iova(at), 16, BOTH).unwrap();
    let (lost, later, fine) = (pin(0), pin(PAGE), pin(FINE));
    h.shrink();
    assert!(!lost.poisoned(), "nobody has touched it yet");
    lost.slices().for_each(|slice| slice.fill(1));
    assert!(lost.poisoned());
    assert!(later.poisoned(), "blame is by window");
    assert!(!fine.poisoned());
    h.is_refused();
    drop((lost, later));
    h.grow();
    h.s.ioas.unmap(range(0, 2 * PAGE), LONG).unwrap();
    h.s.ioas.map(area(&h.file, 0, 2 * PAGE, 0)).unwrap();
    assert!(!pin(0).poisoned());
    h.is_healed();
}

#[test]
fn pages_and_copies_of_a_file_that_shrank_fail_with_their_codes() {
    let h = Half::new();
    let access = &h.s.access;
    let pages = access.pin_pages(Iova(0), PAGE, BOTH).unwrap();
    h.shrink();
    // Asked first, the file tells that it is too short.
    assert_eq!(access.pin_pages(Iova(PAGE), PAGE, Perm::READ).unwrap_err().errno(), 22);
    assert_eq!(access.rw(Iova(0), Rw::Write(&[1; 64])).unwrap_err().errno(), 22);
    assert_eq!(pages.with(|pin| pin.slices().for_each(|slice| slice.fill(1))).unwrap_err().errno(), 14);
    h.grow();
    // Long enough again, but what was lost is lost.
    let mut bytes = [0; 64];
    assert_eq!(access.rw(Iova(0), Rw::Read(&mut bytes)).unwrap_err().errno(), 14);
    assert_eq!(access.pin_pages(Iova(PAGE), PAGE, Perm::READ).unwrap_err().errno(), 14);
    assert_eq!(pages.with(|_| ()).unwrap_err().errno(), 14);
    h.is_refused();
    pages.unpin().unwrap();
    h.s.ioas.unmap(range(0, 2 * PAGE), LONG).unwrap();
    h.s.ioas.map(area(&h.file, 0, 2 * PAGE, 0)).unwrap();
    h.is_healed();
}

#[test]
fn copy_from_one_guest_to_another_blames_the_window_that_shrank() {
    let h = Half::new();
    let other = space();
    let theirs = memory(1);
    other.ioas.map(area(&theirs, 0, PAGE, 0)).unwrap();
    let (mut mine, mut their) = (h.s.access.lane(), other.access.lane());
    let (from, to) = (mine.enter(), their.enter());
    let source = from.slice(Iova(0), 64, Perm::READ).unwrap();
    let sink = to.slice(Iova(0), 64, Perm::WRITE).unwrap();
    h.shrink();
    source.copy_to_slice(&sink);
    assert!(from.poisoned());
    assert!(!to.poisoned(), "the thread met the fault in both bursts, the window is in one");
    drop(to);
    assert!(their.enter().slice(Iova(0), 64, Perm::WRITE).is_ok());
}

#[test]
fn remembered_ring_address_is_forgotten_when_any_page_is_lost() {
    let h = Half::new();
    let mut lane = h.s.access.lane();
    let burst = lane.enter();
    let ring = burst.slice(Iova(FINE), 64, BOTH).unwrap();
    let (kept, lost) = (burst.keep(ring), burst.keep(burst.slice(Iova(0), 64, BOTH).unwrap()));
    h.shrink();
    burst.recall(&lost).unwrap().load_u16(2, Ordering::Acquire).unwrap();
    assert!(burst.poisoned(), "an index that was read from it is worth nothing");
    drop(burst);
    let burst = lane.enter();
    assert!(burst.recall(&kept).is_none() && burst.recall(&lost).is_none());
    assert!(burst.slice(Iova(FINE), 64, BOTH).is_ok(), "resolved again, it is there");
    assert_eq!(burst.slice(Iova(0), 64, BOTH).unwrap_err(), ResolveError::Poisoned);
}

#[test]
fn copy_of_a_mapping_is_lost_with_its_source() {
    let h = Half::new();
    let alias = Iova(0x20_0000);
    h.s.ioas.copy_from(&h.s.ioas, Iova(0), PAGE, Place::At(alias), BOTH).unwrap();
    h.shrink();
    let mut lane = h.s.access.lane();
    let burst = lane.enter();
    burst.slice(alias, 1, Perm::READ).unwrap().read::<u8>(0);
    assert!(burst.poisoned());
    drop(burst);
    assert_eq!(h.try_read(alias.0), Err(ResolveError::Poisoned));
    h.is_refused();
}

#[test]
fn same_table_again_heals_what_was_lost_once_the_file_is_long_enough() {
    let h = Half::new();
    let table = h.s.ioas.areas();
    h.shrink();
    assert!(h.try_read(0).is_ok());
    assert_eq!(h.try_read(0), Err(ResolveError::Poisoned));
    // As long as the file is too short nothing gets worse.
    h.s.ioas.replace_table(table.clone(), LONG).unwrap();
    h.is_refused();
    assert_eq!(h.s.windows.mapped_total(), 2);
    h.grow();
    h.s.ioas.replace_table(table.clone(), LONG).unwrap();
    h.is_healed();
    assert_eq!(h.s.windows.mapped_total(), 3);
    h.s.ioas.replace_table(table, LONG).unwrap();
    assert_eq!(h.s.windows.mapped_total(), 3, "what is whole stays");
}

#[test]
fn healing_takes_lost_memory_away_from_a_device_that_does_not_let_go_of_it() {
    let h = Half::new();
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&h.s.ioas).unwrap();
    let pin = access.lane().enter().pin(Iova(0), 16, BOTH).unwrap();
    h.shrink();
    pin.slices().for_each(|slice| slice.fill(1));
    h.grow();
    h.s.ioas.replace_table(h.s.ioas.areas(), Within::or_revoke(SOON)).unwrap();
    assert_eq!((access.voided(), h.try_read(0)), (1, Ok(0)));
    drop(pin);
    assert_eq!(access.voided(), 0);
    h.is_healed();
}

#[test]
fn punched_pages_read_zeros_and_harm_nothing() {
    let h = Half::new();
    rustix::io::pwrite(h.file.as_fd(), &[7; 2 * PAGE as usize], 0).unwrap();
    let pages = h.s.access.pin_pages(Iova(0), PAGE, BOTH).unwrap();
    fallocate(h.file.as_fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, PAGE).unwrap();
    let seen = |pin: &Pin| pin.slices().next().unwrap().read::<u8>(0);
    assert_eq!(pages.with(seen).unwrap(), Some(0));
    assert_eq!((h.try_read(0), h.try_read(PAGE)), (Ok(0), Ok(7)));
    h.s.access.rw(Iova(0), Rw::Write(&[9])).unwrap();
    let mut byte = [0];
    rustix::io::pread(h.file.as_fd(), &mut byte, 0).unwrap();
    assert_eq!((byte, pages.with(seen).unwrap()), ([9], Some(9)), "one memory still, seen by all");
    pages.unpin().unwrap();
    assert_eq!(h.s.windows.losses(), mdev_dma::Losses::default());
}

#[test]
fn file_sealed_against_shrinking_cannot_be_taken_away() {
    let fd = memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, PAGE).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    let s = space();
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!(ftruncate(file.as_fd(), 0), Err(rustix::io::Errno::PERM));
    let mut lane = s.access.lane();
    let burst = lane.enter();
    burst.slice(Iova(0), 8, Perm::WRITE).unwrap().fill(1);
    assert!(!burst.poisoned());
}

/// The file shrinks and grows all the while; each request ends whole or with an error, and nothing ends the process.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn requests_race_with_truncation_and_end_whole_or_with_an_error() {
    let h = Half::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                h.shrink();
                h.grow();
            }
        });
        // However this ends, the other thread is not left behind.
        let _done = OnDrop(|| done.store(true, Ordering::Relaxed));
        let give_up = Instant::now() + LONG;
        let (mut failed, mut round) = (0, 0);
        while round < 3000 || failed == 0 {
            assert!(Instant::now() < give_up, "{round} reads, and none met a file that was too short");
            round += 1;
            let mut bytes = [1; 256];
            match h.s.access.rw(Iova(PAGE), Rw::Read(&mut bytes)) {
                Ok(()) => assert_eq!(bytes, [0; 256]),
                Err(error) => {
                    failed += 1;
                    assert!([14, 22].contains(&error.errno()), "{error}");
                }
            }
            h.s.access.rw(Iova(FINE), Rw::Write(&[5; 256])).unwrap();
            if round % 10 == 0 {
                // Succeeds whatever the length is at the moment, or finds it too short.
                match h.s.ioas.replace_table(h.s.ioas.areas(), LONG) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.errno(), 22, "{error}"),
                }
            }
        }
    });
    h.grow();
    h.s.ioas.replace_table(h.s.ioas.areas(), LONG).unwrap();
    h.is_healed();
}
