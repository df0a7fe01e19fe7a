//! A Linux guest in QEMU with a disk on `mdevd blk`.

use std::fs::File;
use std::path::Path;

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

use super::disk::{DISK, SIZE, clean, guest, image, off, ran, runs, taken};

/// Writes in pieces of many sizes on all queues, then reads and verifies.
pub const FIO: &str = "fio --name=v --directory=/mnt --size=4m --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=16 \
                   --numjobs=2 --verify=crc32c --verify_fatal=1 --group_reporting --output-format=terse";

/// What of the lab's root a guest with a file system needs.
pub const PROGRAMS: &[&str] = &["/usr/bin/fio", "/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck"];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("blk_guest_file_system_on_memory_holds_what_was_written", |lab| {
            let mut mdevd = Mdevd::blk(lab, "blk.sock", 2, &format!("mem,size={SIZE}"), &[]);
            let mut guest = guest(lab, "guest", 2, "").lab_programs(PROGRAMS).start();
            guest.booted();
            file_system(&mut guest, &mut mdevd, DISK);
            zeroes(&mut guest, "zero", DISK);
            off(guest, mdevd);
            Ok(())
        }),
        Trial::new("blk_guest_file_system_on_a_file_holds_what_was_written_and_gives_space_back", |lab| {
            on_a_file(lab, "", "")
        }),
        Trial::new(
            "blk_guest_file_system_on_a_direct_file_with_packed_rings_holds_what_was_written",
            |lab| on_a_file(lab, ",direct=on", ",packed=on"),
        ),
        Trial::new("blk_guest_sees_its_serial_the_size_of_a_grown_file_and_its_cache_mode", configured),
        Trial::new("blk_guest_cannot_write_to_a_disk_that_is_read_only", read_only),
    ]
}

fn on_a_file(lab: &Lab, store: &str, disk: &str) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, store);
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let mut guest = guest(lab, "guest", 2, disk).lab_programs(PROGRAMS).start();
    guest.booted();
    file_system(&mut guest, &mut mdevd, DISK);
    space_comes_back(&mut guest, &image, DISK);
    off(guest, mdevd);
    Ok(())
}

/// Make a file system on this disk, write and verify in it, and check it.
pub fn file_system(guest: &mut QemuGuest, mdevd: &mut Mdevd, disk: &str) {
    runs(guest, &format!("mkfs.ext4 -q {disk} && mkdir /mnt && mount {disk} /mnt"));
    println!("{}", runs(guest, FIO));
    runs(guest, "dd if=/dev/urandom of=/mnt/g bs=64k count=64 && md5sum /mnt/g > /tmp/sum && umount /mnt");
    runs(guest, &format!("e2fsck -fn {disk}"));
    runs(guest, &format!("mount {disk} /mnt && md5sum -c /tmp/sum && rm /mnt/v* && sync && fstrim -v /mnt"));
    runs(guest, &format!("md5sum -c /tmp/sum && umount /mnt && e2fsck -fn {disk}"));
    for queue in clean(mdevd) {
        assert!(queue.requests() > 50, "one queue did it all: {queue:?}");
    }
}

/// What the guest trims, discards and zeroes takes no space in the image any more.
pub fn space_comes_back(guest: &mut QemuGuest, image: &Path, disk: &str) {
    let trimmed = taken(image);
    runs(guest, &format!("mount {disk} /mnt && dd if=/dev/urandom of=/mnt/f bs=64k count=256 && sync"));
    let written = taken(image);
    assert!(written >= trimmed + (12 << 20), "{trimmed} bytes before 16 MiB were written, {written} after");
    runs(guest, "rm /mnt/f && sync && fstrim -v /mnt && umount /mnt");
    let trimmed = taken(image);
    assert!(trimmed + (12 << 20) <= written, "{written} bytes before fstrim, {trimmed} after");
    runs(guest, &format!("blkdiscard {disk}"));
    assert_eq!(taken(image), 0, "after blkdiscard");
    zeroes(guest, "unmap", disk);
    assert_eq!(taken(image), 0, "after zeroes that may unmap");
    zeroes(guest, "zero", disk);
}

/// Fill the disk's beginning, zero the disk in this way, and see that it is.
pub fn zeroes(guest: &mut QemuGuest, how: &str, disk: &str) {
    runs(guest, &format!("dd if=/dev/urandom of={disk} bs=64k count=64 && sync"));
    runs(guest, &format!("guest-blocks {how} {disk} && cmp -n {SIZE} {disk} /dev/zero"));
}

fn configured(lab: &Lab) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, "");
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 1, &store, &["--serial", "SN-1"]);
    let mut guest = guest(lab, "guest", 1, "").start();
    guest.booted();
    let guest_ = &mut guest;
    assert!(runs(guest_, "cat /sys/block/vda/serial").contains("SN-1"));

    let grown = 2 * SIZE;
    File::options().write(true).open(image).and_then(|file| file.set_len(grown)).expect("a longer image");
    runs(guest_, &format!("until [ $(cat /sys/block/vda/size) = {} ]; do sleep 0.1; done", grown / 512));
    runs(guest_, &format!("dd if=/dev/urandom of=/dev/vda bs=1M seek={} count=1", (grown >> 20) - 1));

    for mode in ["write through", "write back"] {
        runs(guest_, &format!("echo {mode} > /sys/block/vda/cache_type"));
        let said = runs(guest_, "cat /sys/block/vda/queue/write_cache");
        assert!(said.contains(mode), "{said}");
        runs(guest_, "dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct && sync");
    }
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

fn read_only(lab: &Lab) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, ",ro=on");
    std::fs::write(&image, vec![7; SIZE as usize]).expect("an image");
    let mdevd = Mdevd::blk(lab, "blk.sock", 1, &store, &[]);
    let mut guest = guest(lab, "guest", 1, "").start();
    guest.booted();
    assert!(runs(&mut guest, "cat /sys/block/vda/ro").contains('1'));
    runs(&mut guest, "dd if=/dev/vda bs=1M of=/tmp/all && [ $(tr -d '\\007' < /tmp/all | wc -c) = 0 ]");
    let (status, said) = ran(&mut guest, "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct");
    assert_ne!(status, 0, "{said}");
    let (status, said) = ran(&mut guest, "blkdiscard /dev/vda");
    assert_ne!(status, 0, "{said}");
    off(guest, mdevd);
    let bytes = std::fs::read(image).expect("an image");
    assert!(bytes.iter().all(|byte| *byte == 7), "the image has changed");
    Ok(())
}
