//! Commands on a file, which the kernel carries out.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::{CDW11_DEALLOCATE, CDW12_FORCE_UNIT_ACCESS, Command};
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;

use super::rig::{Options, Rig, read, transfer, write};
use crate::store::{FileOptions, Store, StoreKind};

/// Has a command served, and says how it ended.
fn end(rig: &mut Rig, command: Command) -> Status {
    rig.offer(command);
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        rig.poll();
        if let Some(one) = rig.reap().first() {
            assert_eq!(one.cid, command.cid());
            return one.status();
        }
        assert!(Instant::now() < limit, "{command:x?} does not end");
        std::thread::yield_now();
    }
}

fn every_command(direct: bool) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let options = FileOptions { direct, ..FileOptions::new(file.path().to_owned()) };
    // Not every file system knows direct I/O.
    let Ok(store) = Store::open(&StoreKind::File(options)) else {
        assert!(direct);
        return;
    };
    let mut rig = Rig::on(store, Options::default());
    let at = rig.at(0);
    rig.fill(0, 8192, 5);
    let mut forced = write(8, 16, at, at + 4096);
    forced.cdw12 |= CDW12_FORCE_UNIT_ACCESS;
    assert_eq!(end(&mut rig, forced), Status::SUCCESS);
    assert_eq!(std::fs::read(file.path()).unwrap()[4096..12288], [5; 8192]);
    let compare = |at: u64| transfer(nvm::COMPARE, 8, 9, at, at / 4096 * 4096 + 4096);
    assert_eq!(end(&mut rig, compare(at)), Status::SUCCESS);
    assert_eq!(end(&mut rig, compare(at + 4)), Status::SUCCESS, "memory that is not aligned");
    rig.fill(9 * 512 - 1, 1, 6);
    assert_eq!(end(&mut rig, compare(at)), Status::COMPARE_FAILURE);
    assert_eq!(rig.bytes(0, 512), [5; 512], "nothing is moved");
    assert_eq!(end(&mut rig, transfer(nvm::VERIFY, 0, 8192, 0, 0)), Status::SUCCESS);
    assert_eq!(end(&mut rig, Command::new(nvm::FLUSH, 1, 1)), Status::SUCCESS);
    assert_eq!(end(&mut rig, transfer(nvm::WRITE_ZEROES, 8, 8, 0, 0)), Status::SUCCESS);
    rig.list(0, &[8 << 32, 16]);
    let mut deallocate = Command::new(nvm::DATASET_MANAGEMENT, 9, 1);
    (deallocate.cdw11, deallocate.dptr) = (CDW11_DEALLOCATE, [rig.lists.at.0, 0]);
    assert_eq!(end(&mut rig, deallocate), Status::SUCCESS);
    assert_eq!(end(&mut rig, read(8, 8, at, 0)), Status::SUCCESS);
    assert_eq!(rig.bytes(0, 4096), [0; 4096]);
    // A file that became shorter.
    file.as_file().set_len(1 << 20).unwrap();
    assert_eq!(end(&mut rig, read(8000, 8, at, 0)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(end(&mut rig, transfer(nvm::VERIFY, 0, 8192, 0, 0)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(rig.ioas.pins(), 0);
}

#[test]
fn file_serves_every_command() {
    every_command(false);
}

#[test]
fn direct_file_serves_every_command() {
    every_command(true);
}
