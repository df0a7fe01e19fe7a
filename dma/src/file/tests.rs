use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ftruncate, memfd_create};

use super::{BackingFile, FileError, FileExtent, FileKind, FilePolicy};
use crate::Perm;

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

fn accept(fd: OwnedFd) -> Result<std::sync::Arc<BackingFile>, FileError> {
    BackingFile::new(fd, &FilePolicy::default())
}

/// A file on tmpfs that has no name any more, by the name it keeps under /proc.
fn by_proc(fd: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

#[test]
fn a_memfd_is_accepted_with_its_size_and_page_size() {
    let file = accept(memfd(3 << 20)).unwrap();
    assert_eq!(file.kind(), FileKind::Shmem);
    assert_eq!(file.page_size(), rustix::param::page_size() as u64);
    assert_eq!(file.perm(), Perm::READ | Perm::WRITE);
    assert_eq!(file.size().unwrap(), 3 << 20);
    ftruncate(file.as_fd(), 5).unwrap();
    assert_eq!(file.size().unwrap(), 5, "the size is asked for, not remembered");
}

#[test]
fn the_access_mode_is_that_of_the_descriptor_that_arrived() {
    let fd = memfd(4096);
    let read_only = File::open(by_proc(&fd)).unwrap();
    assert_eq!(accept(read_only.into()).unwrap().perm(), Perm::READ);
    let write_only = OpenOptions::new().write(true).open(by_proc(&fd)).unwrap();
    let error = accept(write_only.into()).unwrap_err();
    assert!(matches!(error, FileError::WriteOnly), "{error}");
    assert_eq!(error.errno(), libc::EACCES);
}

#[test]
fn a_path_descriptor_is_refused() {
    let fd = memfd(4096);
    let path_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(by_proc(&fd)).unwrap();
    let error = accept(path_only.into()).unwrap_err();
    assert!(matches!(error, FileError::PathOnly), "{error}");
    assert_eq!(error.errno(), libc::EBADF);
}

#[test]
fn what_is_no_regular_file_is_refused_whatever_the_policy() {
    let policy = FilePolicy { allow_other_filesystems: true, ..FilePolicy::default() };
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    let directory: OwnedFd = File::open("/dev/shm").unwrap().into();
    let device: OwnedFd = File::open("/dev/zero").unwrap().into();
    for fd in [pipe, directory, device] {
        let error = BackingFile::new(fd, &policy).unwrap_err();
        assert!(matches!(error, FileError::NotRegular { .. }), "{error}");
        assert_eq!(error.errno(), libc::EINVAL);
    }
}

#[test]
fn a_file_elsewhere_needs_the_option_and_the_message_names_it() {
    let open = || OwnedFd::from(File::open("/proc/self/status").unwrap());
    let error = accept(open()).unwrap_err();
    assert!(matches!(error, FileError::Filesystem { .. }), "{error}");
    assert!(error.to_string().contains("allow_other_filesystems"), "{error}");
    assert_eq!(error.errno(), libc::EINVAL);
    let file =
        BackingFile::new(open(), &FilePolicy { allow_other_filesystems: true, ..FilePolicy::default() })
            .unwrap();
    assert_eq!(file.kind(), FileKind::Other);
}

#[test]
fn the_same_inode_opened_again_is_the_same_file_on_shmem() {
    let fd = memfd(4096);
    let again = OpenOptions::new().read(true).write(true).open(by_proc(&fd)).unwrap();
    let other = accept(memfd(4096)).unwrap();
    let (one, two) = (accept(fd).unwrap(), accept(again.into()).unwrap());
    assert_eq!(one.id(), two.id());
    assert!(one.is_same_file(&two));
    assert!(!one.is_same_file(&other));
}

#[test]
fn the_same_inode_opened_again_is_not_proven_the_same_elsewhere() {
    let policy = FilePolicy { allow_other_filesystems: true, ..FilePolicy::default() };
    let open = || rustix::fs::openat(CWD, "/proc/version", OFlags::RDONLY, Mode::empty()).unwrap();
    let fd = open();
    let copy = BackingFile::new(fd.try_clone().unwrap(), &policy).unwrap();
    let one = BackingFile::new(fd, &policy).unwrap();
    let two = BackingFile::new(open(), &policy).unwrap();
    assert!(one.is_same_file(&copy), "the same open file");
    assert_eq!(one.id(), two.id());
    assert!(!one.is_same_file(&two), "a number is no proof");
}

#[test]
fn places_are_the_same_when_file_and_offset_are() {
    let fd = memfd(4096);
    let copy = accept(fd.try_clone().unwrap()).unwrap();
    let file = accept(fd).unwrap();
    let other = accept(memfd(4096)).unwrap();
    let at = |file: &std::sync::Arc<BackingFile>, offset| FileExtent { file: file.clone(), offset };
    assert!(at(&file, 8).same_place(&at(&copy, 8)));
    assert!(!at(&file, 8).same_place(&at(&copy, 9)));
    assert!(!at(&file, 8).same_place(&at(&other, 8)));
    assert_eq!(at(&file, 8).checked_add(8).unwrap().offset, 16);
    assert!(at(&file, u64::MAX).checked_add(1).is_none());
}

#[test]
fn a_file_without_a_name_that_is_no_memory_of_a_vduse_device_is_refused_even_where_those_are_allowed() {
    let policy = FilePolicy { allow_vduse_domain: true, ..FilePolicy::default() };
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let error = BackingFile::new(event, &policy).unwrap_err();
    assert!(matches!(error, FileError::NotRegular { .. }), "{error}");
    assert!(BackingFile::new(memfd(4096), &policy).is_ok(), "other memory is accepted as before");
}
