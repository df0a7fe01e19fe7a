//! The image under `mdevd blk`: who else may have it, and what is in it when the guest is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use mdev_tests::blocks::{BLOCK, check};
use mdev_tests::lab::{Lab, Mdevd, Running, Skip, Trial};

use super::disk::{DOES, SIZE, guest, image};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("blk_image_that_is_in_use_is_refused_by_mdevd_and_by_qemu", locked),
        Trial::new("blk_image_holds_all_that_was_flushed_when_qemu_is_killed", |lab| flushed(lab, "", "")),
        Trial::new(
            "blk_image_written_directly_from_packed_rings_holds_all_that_was_flushed_when_qemu_is_killed",
            |lab| flushed(lab, ",direct=on", ",packed=on"),
        ),
    ]
}

/// QEMU's locks and those of mdevd are the same.
fn locked(lab: &Lab) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, "");
    let second = || {
        let ended = Mdevd::run(lab, &["blk", "--socket-path", "other.sock", "--store", &store]).ended(DOES);
        assert!(!ended.status.success() && ended.output.contains("in use"), "{ended:?}");
    };
    let qemu_writes = || {
        let mut command = lab.command("/usr/bin/qemu-img");
        command.args(["bench", "-t", "none", "-f", "raw", "-w", "-c", "1", "disk.img"]);
        Running::spawn("qemu-img", command).ended(DOES)
    };
    let mdevd = Mdevd::blk(lab, "blk.sock", 1, &store, &[]);
    second();
    let refused = qemu_writes();
    assert!(!refused.status.success() && refused.output.contains("lock"), "{refused:?}");
    mdevd.terminate();
    let free = qemu_writes();
    assert!(free.status.success(), "{free:?}");

    let mut command = lab.command("/usr/bin/qemu-storage-daemon");
    command.args(["--blockdev", "file,node-name=disk,filename=disk.img", "--export"]);
    command.arg("vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path=qsd.sock");
    let theirs = Running::spawn("qemu-storage-daemon", command);
    let give_up = Instant::now() + DOES;
    while !lab.work().join("qsd.sock").exists() {
        assert!(Instant::now() < give_up, "{}", theirs.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    second();
    drop(theirs);
    Mdevd::blk(lab, "blk.sock", 1, &store, &[]).terminate();
    Ok(())
}

/// The guest says which blocks it has flushed. QEMU is killed in the middle of it.
fn flushed(lab: &Lab, store: &str, disk: &str) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, store);
    let mdevd = Mdevd::blk(lab, "blk.sock", 1, &store, &[]);
    let mut guest = guest(lab, "guest", 1, disk).start();
    guest.booted();
    guest.type_in("do guest-blocks flush /dev/vda\n");
    guest.expect("flushed: 300", DOES);
    let said = guest.kill().output;
    let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n')); // the last may be cut
    let numbers = lines.filter_map(|line| line.trim().strip_prefix("flushed: ")?.parse::<u64>().ok());
    let count = numbers.max().expect("a number");
    let file = File::open(&image).expect("the image");
    let mut block = vec![0; BLOCK];
    for index in 0..count {
        file.read_exact_at(&mut block, index * BLOCK as u64).expect("a block");
        check(&block, index, 1).unwrap_or_else(|wrong| panic!("of {count} that were flushed {wrong}"));
    }
    println!("{count} blocks were flushed when QEMU was killed, and are there");
    mdevd.terminate();
    Ok(())
}
