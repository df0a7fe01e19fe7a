//! The unsafe code of this crate under Miri: every pointer that outlives the borrow it came from, with bursts, pins, hints
//! and kept slices across publications, on one thread and on two. Windows are pieces of heap there.
//!
//! `MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance' cargo +nightly miri test -p mdev-pin --lib interpreted`

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mdev_dma::{Area, BackingFile, FileExtent, Iova, IovaRange, Perm, SgList, Windows};

use crate::{Access, AccessOps, IgnoreUnmap, Ioas, Pages, Pin, ResolveError, Rw};

const PAGE: u64 = 4096;
const LONG: Duration = Duration::from_secs(600);

fn area(file: &Arc<BackingFile>, iova: u64, pages: u64, offset: u64) -> Area {
    let range = IovaRange::with_len(Iova(iova), pages * PAGE).unwrap();
    let extent = FileExtent { file: file.clone(), offset }.into();
    Area { range, extent, perm: Perm::READ | Perm::WRITE, log: None }
}

fn space(ops: Arc<dyn AccessOps>) -> (Ioas, Access, Arc<BackingFile>) {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = Access::new(ops);
    access.attach(&ioas).unwrap();
    (ioas, access, BackingFile::of_heap(4 * PAGE as usize).unwrap())
}

/// Lets go of what it recorded.
#[derive(Default)]
struct Recorder(Mutex<Vec<Pin>>);

impl AccessOps for Recorder {
    fn on_unmap(&self, _range: IovaRange) {
        self.0.lock().unwrap().clear();
    }
}

#[test]
fn bursts_pins_and_kept_slices_survive_publications() {
    let (ioas, access, file) = space(Arc::new(IgnoreUnmap));
    let mut lane = access.lane();
    ioas.map(area(&file, 0, 2, 0)).unwrap();
    let (kept, pin) = {
        let burst = lane.enter();
        let slice = burst.slice(Iova(8), 16, Perm::WRITE).unwrap();
        slice.copy_from(b"sixteen bytes it");
        // By the hint.
        assert_eq!(burst.slice(Iova(9), 1, Perm::READ).unwrap().read::<u8>(0), Some(b'i'));
        (burst.keep(slice), burst.pin(Iova(8), 16, Perm::READ).unwrap())
    };
    assert_eq!(lane.enter().recall(&kept).unwrap().read::<[u8; 7]>(0), Some(*b"sixteen"));
    ioas.map(area(&file, 0x10_0000, 1, 2 * PAGE)).unwrap();
    {
        let burst = lane.enter();
        assert!(burst.recall(&kept).is_none());
        // The hint of the table before is not used.
        assert_eq!(burst.slice(Iova(8), 4, Perm::READ).unwrap().read::<[u8; 4]>(0), Some(*b"sixt"));
    }
    let change = ioas.begin_unmap(IovaRange::FULL, LONG).unwrap();
    let mut seen = [0; 16];
    assert_eq!(pin.slices().next().unwrap().copy_to(&mut seen), 16);
    assert_eq!(&seen, b"sixteen bytes it");
    assert_eq!(lane.enter().slice(Iova(8), 1, Perm::READ).map(|_| ()), Err(ResolveError::Gated));
    drop(pin);
    assert_eq!(change.wait().unwrap(), 3 * PAGE);
    access.close(LONG).unwrap();
}

#[test]
fn table_that_is_cut_and_joined_keeps_pins_over_several_pieces() {
    let (ioas, access, file) = space(Arc::new(IgnoreUnmap));
    let mut lane = access.lane();
    ioas.map(area(&file, 0, 4, 0)).unwrap();
    let pin = lane.enter().pin(Iova(PAGE - 4), 8, Perm::WRITE).unwrap();
    for table in [vec![area(&file, 0, 1, 0), area(&file, PAGE, 3, PAGE)], vec![area(&file, 0, 4, 0)]] {
        ioas.replace_table(table, LONG).unwrap();
        let burst = lane.enter();
        let mut list = SgList::new();
        burst.sg(Iova(PAGE - 4), 8, Perm::WRITE, &mut list).unwrap();
        list.iter().for_each(|slice| slice.fill(9));
        assert_eq!(pin.slices().map(|slice| slice.read::<u8>(0).unwrap()).max(), Some(9));
    }
    let another = burst_pin(&access);
    drop((pin, lane));
    // From another thread, after its lane is gone.
    std::thread::spawn(move || drop(another)).join().unwrap();
    ioas.unmap_all(LONG).unwrap();
}

fn burst_pin(access: &Access) -> Pin {
    access.lane().enter().pin(Iova(2), 2, Perm::READ).unwrap()
}

#[test]
fn worker_in_bursts_and_pins_beside_maps_and_unmaps() {
    let device = Arc::new(Recorder::default());
    let (ioas, access, file) = space(device.clone());
    let mut lane = access.lane();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..30 {
                let burst = lane.enter();
                if let Ok(slice) = burst.slice(Iova(0), 8, Perm::WRITE) {
                    slice.write(0, 7u64);
                }
                if let Ok(pin) = burst.pin(Iova(16), 8, Perm::WRITE) {
                    pin.slices().for_each(|slice| slice.fill(1));
                    device.0.lock().unwrap().push(pin);
                }
            }
        });
        for _ in 0..4 {
            ioas.map(area(&file, 0, 1, 0)).unwrap();
            assert_eq!(ioas.unmap_all(LONG).unwrap(), PAGE);
        }
    });
    device.0.lock().unwrap().clear();
    assert_eq!(ioas.pins(), 0);
}

#[test]
fn pages_and_copies_of_an_access_that_pins() {
    struct Pager(Mutex<Option<Pages>>);
    impl AccessOps for Pager {
        fn on_unmap(&self, _range: IovaRange) {
            self.0.lock().unwrap().take().into_iter().for_each(|pages| pages.unpin().unwrap());
        }
    }
    let device = Arc::new(Pager(Mutex::new(None)));
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = Access::pinning(device.clone());
    access.attach(&ioas).unwrap();
    let file = BackingFile::of_heap(2 * PAGE as usize).unwrap();
    ioas.map(area(&file, 0, 2, 0)).unwrap();
    let pages = access.pin_pages(Iova(PAGE), PAGE, Perm::WRITE).unwrap();
    pages.with(|pin| pin.slices().for_each(|slice| slice.fill(3))).unwrap();
    *device.0.lock().unwrap() = Some(pages);
    let mut bytes = [0; 8];
    access.rw(Iova(PAGE - 4), Rw::Read(&mut bytes)).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 3, 3, 3, 3]);
    access.rw(Iova(PAGE - 4), Rw::Write(&[5; 8])).unwrap();
    let second = Ioas::new(ioas.windows().clone());
    access.replace(&second, LONG).unwrap();
    ioas.destroy().unwrap();
    access.close(LONG).unwrap();
}

#[test]
fn forgotten_burst_does_not_free_what_it_reads() {
    let (ioas, access, file) = space(Arc::new(IgnoreUnmap));
    ioas.map(area(&file, 0, 1, 0)).unwrap();
    let mut lane = access.lane();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(lane.enter());
            let burst = lane.enter();
            assert!(burst.slice(Iova(0), 8, Perm::READ).is_ok());
        });
    });
    ioas.unmap_all(LONG).unwrap();
}

/// A script as those of `fuzzing::tests`, short, because each of its steps looks at every byte.
#[test]
fn random_operations() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let script: Vec<u8> = std::iter::repeat_with(next).take(60).collect();
    crate::fuzzing::fuzz_operations(&script);
}
