//! The file of what is in flight: where it is, how long, and what it must not be.

use std::fs;
use std::path::Path;

use super::*;
use crate::ring::RingLog;
use crate::session::vduse::RecordsError;

fn name() -> DeviceName {
    "disk".parse().unwrap()
}

fn session(records: &Records, queues: u16) -> Result<Session, RecordsError> {
    let device = MockDevice::new(queues);
    device.tracks.store(true, Ordering::Relaxed);
    let kernel = Arc::new(Model::new(queues, Vec::new()).unwrap().open().unwrap());
    let windows = Windows::new().unwrap();
    Session::new(CONN, kernel, Arc::new(device), windows, FilePolicy::default(), Some(records))
}

#[track_caller]
fn refused(records: Result<Records, RecordsError>, queues: u16) -> String {
    records.and_then(|records| session(&records, queues)).map(drop).unwrap_err().to_string()
}

fn file(folder: &Path) -> std::path::PathBuf {
    folder.join("vduse-disk.inflight")
}

#[test]
fn records_have_room_for_every_ring_in_either_layout() {
    let folder = TempDir::new().unwrap();
    let below = folder.path().join("a/b");
    let records = Records::open(&below, &name(), false).unwrap();
    session(&records, 2).unwrap();
    let each = RingLog::len_of(false, 1024).max(RingLog::len_of(true, 1024)) as u64;
    assert_eq!(fs::metadata(file(&below)).unwrap().len(), 2 * each);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(file(&below)).unwrap().permissions().mode() & 0o777, 0o600);
    session(&records, 2).unwrap();
}

#[test]
fn records_of_another_device_are_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let open = || Records::open(folder.path(), &name(), false);
    session(&open().unwrap(), 2).unwrap();
    let said = refused(open(), 3);
    assert!(said.contains("another device") && said.contains("vdpa dev del"), "{said}");
    fs::write(file(folder.path()), [0]).unwrap();
    assert!(refused(open(), 2).contains("0x1 bytes"));
}

#[test]
fn records_of_a_device_that_is_new_are_empty() {
    let folder = TempDir::new().unwrap();
    fs::write(file(folder.path()), [1; 77]).unwrap();
    let records = Records::open(folder.path(), &name(), true).unwrap();
    session(&records, 2).unwrap();
    assert!(fs::read(file(folder.path())).unwrap().iter().all(|byte| *byte == 0));
    records.remove();
    assert!(!file(folder.path()).exists());
    records.remove();
}

#[test]
fn place_where_no_records_can_be_is_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, []).unwrap();
    for place in [plain.as_path(), Path::new("/proc/nowhere")] {
        let said = refused(Records::open(place, &name(), false), 1);
        assert!(said.contains("--state-dir"), "{said}");
    }
    fs::create_dir(file(folder.path())).unwrap();
    for fresh in [false, true] {
        let said = refused(Records::open(folder.path(), &name(), fresh), 1);
        assert!(said.contains("--state-dir"), "{said}");
    }
}

#[test]
fn reset_forgets_what_is_recorded() {
    let mut house = House::tracking(2);
    let path = house.folder.path().join("vduse-mock.inflight");
    let len = fs::metadata(&path).unwrap().len();
    let versions = || {
        let bytes = fs::read(&path).unwrap();
        [bytes[8], bytes[len as usize / 2 + 8]]
    };
    let written = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [8, len / 2 + 8] {
        rustix::io::pwrite(&written, &[1, 0, 0, 4], at).unwrap();
    }
    house.done(Action::SetReady { index: 0, ready: false });
    assert_eq!(versions(), [1, 1]);
    house.done(Action::Reset);
    assert_eq!(versions(), [0, 0]);
}
