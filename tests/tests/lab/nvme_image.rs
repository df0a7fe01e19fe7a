//! The images under `mdevd nvme`: what is in them when the guest is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use mdev_tests::blocks::{BLOCK, check};
use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

use super::blk_guest::PROGRAMS;
use super::controller::{DISK, SECOND, guest, ready};
use super::disk::{DOES, SIZE, clean, image, off, runs};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("nvme_image_holds_all_that_was_flushed_when_qemu_is_killed_and_serves_the_next", |lab| {
            flushed(lab, "")
        }),
        Trial::new(
            "nvme_image_written_directly_holds_all_that_was_flushed_when_qemu_is_killed_and_serves_the_next",
            |lab| flushed(lab, ",direct=on"),
        ),
    ]
}

/// The guest writes to a file system on one namespace and says which blocks of the other one it has flushed. QEMU is killed in the middle
/// of it, and another one finds all.
fn flushed(lab: &Lab, options: &str) -> Result<(), Skip> {
    let (_, files) = image(lab, "files.img", SIZE, options);
    let (blocks, store) = image(lab, "blocks.img", SIZE, options);
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&files, &store], &[]);
    let mut first = guest(lab, "first", 2).lab_programs(PROGRAMS).start();
    ready(&mut first, 2);
    runs(&mut first, &format!("mkfs.ext4 -q {DISK} && mkdir /mnt && mount {DISK} /mnt"));
    runs(
        &mut first,
        "dd if=/dev/urandom of=/mnt/g bs=64k count=64 && cd /mnt && md5sum g > sum && sync && cd /",
    );
    runs(
        &mut first,
        "while dd if=/dev/urandom of=/mnt/more bs=64k count=128 conv=fsync; do :; done > /dev/null 2>&1 &",
    );
    first.forget_output();
    first.type_in(&format!("do guest-blocks flush {SECOND}\n"));
    first.expect("flushed: 300", DOES);
    let said = first.kill().output;
    let count = all_there(&said, &File::open(&blocks).expect("the image"));
    println!("{count} blocks were flushed when QEMU was killed, and are there");

    let mut second = guest(lab, "second", 2).lab_programs(PROGRAMS).start();
    ready(&mut second, 2);
    runs(
        &mut second,
        &format!("mkdir /mnt && mount {DISK} /mnt && cd /mnt && md5sum -c sum && cd / && umount /mnt"),
    );
    runs(&mut second, &format!("e2fsck -fn {DISK}"));
    same(&mut second, &blocks, count);
    clean(&mut mdevd);
    off(second, mdevd);
    Ok(())
}

/// What the guest said was flushed is in the image: so many blocks.
fn all_there(said: &str, image: &File) -> u64 {
    let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n')); // the last may be cut
    let numbers = lines.filter_map(|line| line.trim().strip_prefix("flushed: ")?.parse::<u64>().ok());
    let count = numbers.max().expect("a number");
    let mut block = vec![0; BLOCK];
    for index in 0..count {
        image.read_exact_at(&mut block, index * BLOCK as u64).expect("a block");
        check(&block, index, 1).unwrap_or_else(|wrong| panic!("of {count} that were flushed {wrong}"));
    }
    count
}

/// The guest reads the same first blocks from namespace 2 as this machine from the image.
fn same(guest: &mut QemuGuest, image: &Path, count: u64) {
    let sum = format!("dd bs={BLOCK} count={count} if=");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{sum}{} | md5sum", image.display()));
    let ours = command.output().expect("md5sum").stdout;
    let ours = String::from_utf8_lossy(&ours).split_whitespace().next().unwrap_or_default().to_owned();
    let theirs = runs(guest, &format!("{sum}{SECOND} iflag=direct | md5sum"));
    assert!(ours.len() == 32 && theirs.contains(&ours), "{ours} here, in the guest {theirs}");
}
