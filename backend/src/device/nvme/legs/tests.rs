use std::cell::Cell;

use mdev_dma::{Area, IovaRange, RemoteExtent, RemoteMemory, Reply, Windows};
use mdev_pin::{IgnoreUnmap, Ioas};

use super::*;

/// A peer that has failed.
struct Gone;

impl RemoteMemory for Gone {
    fn read(&self, _address: u64, _len: usize, reply: Reply) {
        reply.failed(Errno::IO.raw_os_error());
    }

    fn write(&self, _address: u64, _bytes: Vec<u8>, reply: Reply) {
        reply.failed(Errno::IO.raw_os_error());
    }
}

/// Address spaces with neighbouring areas of these sizes from 0 on.
fn areas(sizes: &[u64]) -> (Ioas, Access) {
    let ioas = Ioas::new(Windows::new().unwrap());
    let memory: Arc<dyn RemoteMemory> = Arc::new(Gone);
    let mut at = 0;
    for size in sizes {
        let extent = RemoteExtent { memory: memory.clone(), address: at };
        let range = IovaRange::with_len(Iova(at), *size).unwrap();
        ioas.map(Area { range, extent: extent.into(), perm: Perm::READ, log: None }).unwrap();
        at += size;
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    (ioas, access)
}

/// What becomes of `len` bytes from `at` on, and how many bytes were tried for that.
fn cut(sizes: &[u64], at: u64, len: u32) -> (Vec<(u64, u64)>, u64) {
    let (_ioas, access) = areas(sizes);
    let mut legs = Legs::default();
    let tried = Cell::new(0);
    let copy = |_, _, _| panic!("nothing is here");
    let what = |_, len: u32| {
        tried.set(tried.get() + u64::from(len));
        Move::Read(len.into())
    };
    legs.go(&access, Iova(at), len, copy, what).unwrap();
    let range = |leg: &Leg| leg.transfer.as_ref().unwrap().range();
    let ranges = legs.list.iter().map(|leg| (range(leg).first().0, range(leg).last().0)).collect();
    (ranges, tried.get())
}

#[test]
fn bytes_in_many_small_areas_are_not_tried_as_often_as_there_are_areas() {
    let (ranges, tried) = cut(&[PAGE; 256], 0, 1 << 20);
    assert_eq!(ranges.len(), 256);
    assert!(tried <= 8 << 20, "{tried} bytes were tried");
}

#[test]
fn bytes_in_areas_of_any_size_are_all_asked_for_once_and_in_order() {
    for sizes in [&[PAGE, 64 * PAGE, 2 * PAGE, PAGE, 16 * PAGE, 300 * PAGE][..], &[400 * PAGE], &[PAGE; 400]]
    {
        for (at, len) in
            [(0, 1 << 20), (1, 4096), (PAGE - 1, 2), (3584, 1 << 20), (66 * PAGE + 512, 20 * 4096)]
        {
            let (ranges, _) = cut(sizes, at, len);
            let mut next = at;
            for (first, last) in ranges {
                assert_eq!(first, next, "{sizes:?}: {len} bytes from {at}");
                next = last + 1;
            }
            assert_eq!(next, at + u64::from(len), "{sizes:?}: {len} bytes from {at}");
        }
    }
    assert_eq!(cut(&[400 * PAGE], 512, 1 << 20).0.len(), 1, "in one piece where they are in one");
}
