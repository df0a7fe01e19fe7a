use std::sync::Arc;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, IovaRange, Windows};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::Bytes;

use super::*;
use crate::{Access, IgnoreUnmap, Ioas};

const PAGE: u64 = 4096;

/// Two neighbouring areas that are apart in the file, the second for reading only.
fn access() -> Access {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4 * PAGE).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    let ioas = Ioas::new(Windows::new().unwrap());
    for (first, offset, perm) in [(0, 2 * PAGE, Perm::READ | Perm::WRITE), (PAGE, 0, Perm::READ)] {
        let range = IovaRange::with_len(Iova(first), PAGE).unwrap();
        let extent = FileExtent { file: Arc::clone(&file), offset };
        ioas.map(Area { range, extent: extent.into(), perm, log: None }).unwrap();
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    access
}

#[test]
fn bytes_are_the_guests_across_areas() {
    let access = access();
    let mut lane = access.lane();
    let burst = lane.enter();
    burst.slice(Iova(PAGE - 2), 2, Perm::WRITE).unwrap().copy_from(b"ab");
    let mut bytes = [9; 4];
    burst.read_slice(&mut bytes, GuestAddress(PAGE - 2)).unwrap();
    assert_eq!(bytes, *b"ab\0\0");
    burst.write_obj(7u32, GuestAddress(16)).unwrap();
    assert_eq!(burst.slice(Iova(16), 4, Perm::READ).unwrap().read::<u32>(0), Some(7));
    assert_eq!(burst.read_obj::<u32>(GuestAddress(16)).unwrap(), 7);
}

#[test]
fn ranges_are_checked_with_their_permission() {
    let access = access();
    let mut lane = access.lane();
    let burst = lane.enter();
    let check = |at, count, access| burst.check_range(GuestAddress(at), count, access);
    assert!(check(0, 8192, Permissions::Read) && check(0, 4096, Permissions::ReadWrite));
    assert!(check(u64::MAX, 0, Permissions::Write), "nothing is everywhere");
    assert!(!check(1, 4096, Permissions::Write), "the second area is for reading only");
    assert!(!check(1, 8192, Permissions::Read), "behind the end");
    assert!(!check(u64::MAX, 2, Permissions::Read), "it wraps");
    assert!(!check(0, 1 << 33, Permissions::Read), "longer than any buffer");
}

#[test]
fn what_cannot_be_resolved_is_an_error_with_its_reason() {
    let access = access();
    let mut lane = access.lane();
    let burst = lane.enter();
    let error = |at, count, access| burst.get_slices(GuestAddress(at), count, access).map(drop).unwrap_err();
    let hole = error(2 * PAGE, 1, Permissions::Read);
    assert!(matches!(hole, GuestMemoryError::InvalidGuestAddress(GuestAddress(8192))), "{hole}");
    assert!(matches!(error(u64::MAX, 2, Permissions::Read), GuestMemoryError::GuestAddressOverflow));
    let refused = error(PAGE, 1, Permissions::Write);
    assert!(refused.to_string().contains(&ResolveError::Permission.to_string()), "{refused}");
    assert_eq!(burst.get_slices(GuestAddress(0), 0, Permissions::Read).unwrap().count(), 0);
    assert_eq!(burst.get_slices(GuestAddress(1), 8000, Permissions::Read).unwrap().count(), 2);
}
