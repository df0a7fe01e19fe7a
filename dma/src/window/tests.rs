use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};

fn memory(len: u64) -> Arc<BackingFile> {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    BackingFile::new(fd, &FilePolicy::default()).unwrap()
}

fn area(file: &Arc<BackingFile>, iova: u64, offset: u64, len: u64) -> Area {
    Area {
        range: IovaRange::with_len(Iova(iova), len).unwrap(),
        extent: FileExtent { file: Arc::clone(file), offset },
        perm: Perm::READ | Perm::WRITE,
        log: None,
    }
}

#[test]
fn two_areas_of_one_file_see_the_same_bytes_through_one_window() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let one = windows.segments(&area(&file, 0x1000, 0, 0x2000)).unwrap();
    let two = windows.segments(&area(&file, 0x9001, 0x101, 0x100)).unwrap();
    one[0].slice(Iova(0x1101), 4).unwrap().copy_from(b"here");
    let mut seen = [0; 4];
    two[0].slice(Iova(0x9001), 4).unwrap().copy_to(&mut seen);
    assert_eq!(&seen, b"here");
    assert_eq!((windows.live(), windows.mapped_total()), (1, 1));
    drop((one, two));
    assert_eq!(windows.live(), 0);
}

#[test]
fn a_file_that_shrinks_poisons_its_window_and_reads_zeros() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let segments = windows.segments(&area(&file, 0, 0, 1 << 20)).unwrap();
    ftruncate(file.as_fd(), 4096).unwrap();
    let slice = segments[0].slice(Iova(8192), 8).unwrap();
    assert_eq!(slice.read::<u64>(0), Some(0));
    assert_eq!(segments[0].window.poison_count(), 1);
}
