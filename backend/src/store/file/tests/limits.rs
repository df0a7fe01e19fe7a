//! What is opened and what is refused; sizes.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;

use super::*;
use crate::store::StoreError;

fn refused(path: impl AsRef<Path>) -> StoreError {
    let options = FileOptions { read_only: true, ..FileOptions::new(path.as_ref().to_owned()) };
    match File::open(&options) {
        Ok(_) => panic!("{options:?} is opened"),
        Err(error) => error,
    }
}

#[test]
fn what_is_no_file_of_sectors_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refused(folder.path()), StoreError::NotAStore(_)));
    assert!(matches!(refused("/dev/null"), StoreError::NotAStore(_)));
    assert!(matches!(refused(folder.path().join("none")), StoreError::Open { .. }));
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(refused(fifo), StoreError::NotAStore(_)), "and it is not waited for");
    assert!(matches!(refused(Image::on_disk(&[0; 511]).path()), StoreError::Empty { size: 511, .. }));
}

#[test]
fn direct_store_of_a_file_system_without_direct_io_is_refused() {
    let path = PathBuf::from("/proc/version");
    let options = FileOptions { path, direct: true, read_only: true };
    assert!(matches!(File::open(&options).err(), Some(StoreError::NotDirect { .. })));
}

#[test]
fn size_is_in_whole_sectors() {
    let (file, _port) = Image::on_disk(&[0; 1024 + 511]).open();
    assert_eq!(file.size(), 1024);
}

#[test]
fn read_only_store_reads_and_does_not_write() {
    for image in [Image::on_disk(&sectors(8)), Image::on_disk(&sectors(8)).direct()] {
        let (guest, image) = (Guest::new(), image.read_only());
        let (file, mut port) = image.open();
        let limits = file.limits();
        assert!(limits.read_only && limits.max_discard == 0 && limits.max_zeroes == 0);
        assert_eq!(end(&mut port, guest.request(1, Operation::Read, 0, 0, 4096)), Ok(4096));
        assert_eq!(end(&mut port, guest.request(2, Operation::WRITE, 0, 0, 512)), Err(Errno::ROFS));
        for operation in [Operation::Discard, Operation::WriteZeroes { unmap: false, durable: false }] {
            assert_eq!(end(&mut port, without_memory(3, operation, 0, 512)), Err(Errno::ROFS));
        }
        assert_eq!(end(&mut port, without_memory(4, Operation::Flush, 0, 0)), Ok(0));
        assert_eq!((guest.read(0, 4096), image.bytes()), (sectors(8), sectors(8)));
    }
}

#[test]
fn file_that_grows_is_seen_when_it_is_looked_at() {
    let (guest, image) = (Guest::new(), Image::on_disk(&sectors(8)));
    let (file, mut port) = image.open();
    assert!(!file.look());
    let other = OpenOptions::new().write(true).open(image.path()).unwrap();
    other.set_len(4096 + 100).unwrap();
    assert!(!file.look(), "not a whole sector");
    other.set_len(8192 + 100).unwrap();
    assert_eq!(file.size(), 4096);
    assert!(file.look());
    assert_eq!(file.size(), 8192);
    assert_eq!(end(&mut port, guest.request(1, Operation::Read, 4096, 0, 4096)), Ok(4096));
}

#[test]
fn size_is_to_be_looked_at_again_and_again() {
    let (file, _port) = Image::on_disk(&sectors(8)).open();
    for _ in 0..2 {
        let timer = file.watched().unwrap();
        let fds = &mut [PollFd::from_borrowed_fd(timer.as_fd(), PollFlags::IN)];
        while poll(fds, None) == Err(Errno::INTR) {}
        assert!(!file.look());
        let now = Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 });
        let ready = poll(&mut [PollFd::from_borrowed_fd(timer.as_fd(), PollFlags::IN)], now).unwrap();
        assert_eq!(ready, 0, "looking takes the ring back");
    }
}
