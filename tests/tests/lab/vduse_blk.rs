//! Disks that a host's own kernel has from `mdevd blk --vduse`.

use mdev_tests::lab::{Lab, Skip, Trial};

use super::blk_guest::{FIO, PROGRAMS};
use super::disk::{SIZE, begin, goes_on, rest};
use super::vduse::{Host, host};

/// A disk on two queues.
const DISK: &str = "--queues 2 --store";

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("vduse_file_system_on_memory_holds_what_was_written", |lab| {
            let mut host = Host::up(host(lab).lab_programs(PROGRAMS));
            host.disk("vd0", &format!("{DISK} mem,size={SIZE}"));
            file_system(&mut host);
            zeroes(&mut host, "zero");
            host.runs("leave vd0");
            host.off();
            Ok(())
        }),
        Trial::new("vduse_file_system_on_a_file_holds_what_was_written_and_gives_space_back", |lab| {
            on_a_file(lab, "", "")
        }),
        Trial::new("vduse_file_system_on_a_direct_file_holds_what_was_written_and_gives_space_back", |lab| {
            on_a_file(lab, ",direct=on", "")
        }),
        Trial::new("vduse_file_system_through_bounce_pages_of_the_daemon_holds_what_was_written", |lab| {
            on_a_file(lab, "", "--own-bounce")
        }),
        Trial::new("vduse_disk_has_its_serial_and_follows_its_image_when_that_grows", configured),
        Trial::new("vduse_disk_that_is_read_only_cannot_be_written", read_only),
    ]
}

fn on_a_file(lab: &Lab, store: &str, arguments: &str) -> Result<(), Skip> {
    let mut host = Host::up(host(lab).lab_programs(PROGRAMS));
    host.runs(&format!("truncate -s {SIZE} /tmp/disk.img"));
    host.disk("vd0", &format!("{arguments} {DISK} file=/tmp/disk.img{store}"));
    file_system(&mut host);
    host.runs("dd if=/dev/urandom of=$disk bs=64k count=256 conv=fsync");
    assert!(taken(&mut host) >= 16 << 20, "16 MiB were written");
    host.runs("blkdiscard -o 1048576 -l 8388608 $disk");
    let left = taken(&mut host);
    assert!(left <= SIZE - (8 << 20), "{left} bytes after 8 MiB were discarded");
    host.runs("blkdiscard $disk");
    assert_eq!(taken(&mut host), 0, "after blkdiscard");
    zeroes(&mut host, "unmap");
    assert_eq!(taken(&mut host), 0, "after zeroes that may unmap");
    zeroes(&mut host, "zero");
    host.clean("vd0");
    host.runs("leave vd0");
    host.off();
    Ok(())
}

/// Make a file system on the disk, write and verify in it, and check it.
fn file_system(host: &mut Host) {
    host.runs("mkfs.ext4 -q $disk && mkdir /mnt && mount $disk /mnt");
    println!("{}", host.runs(FIO));
    host.runs("dd if=/dev/urandom of=/mnt/g bs=64k count=64 && md5sum /mnt/g > /tmp/sum && umount /mnt");
    host.runs("e2fsck -fn $disk");
    host.runs("mount $disk /mnt && md5sum -c /tmp/sum && rm /mnt/v* && sync && fstrim -v /mnt");
    host.runs("md5sum -c /tmp/sum && umount /mnt && e2fsck -fn $disk");
    let queues = host.clean("vd0");
    assert_eq!(queues.len(), 2);
    for queue in queues {
        assert!(queue.requests() > 50, "one queue did it all: {queue:?}");
    }
}

/// Fill the disk's beginning, zero the disk in this way, and see that it is.
fn zeroes(host: &mut Host, how: &str) {
    host.runs("dd if=/dev/urandom of=$disk bs=64k count=64 conv=fsync");
    host.runs(&format!("guest-blocks {how} $disk && cmp -n {SIZE} $disk /dev/zero"));
}

/// Bytes that the image takes.
fn taken(host: &mut Host) -> u64 {
    let blocks: u64 = host.runs("stat -c %b /tmp/disk.img").trim().parse().expect("a number");
    blocks * 512
}

fn configured(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs(&format!("truncate -s {SIZE} /tmp/disk.img"));
    host.disk("vd0", "--store file=/tmp/disk.img --serial SN-1");
    assert_eq!(host.runs("cat /sys/block/${disk##*/}/serial").trim(), "SN-1");
    begin(host.guest(), 2);
    let grown = 2 * SIZE;
    host.runs(&format!("truncate -s {grown} /tmp/disk.img"));
    host.waits(&format!("[ $(cat /sys/block/${{disk##*/}}/size) = {} ]", grown / 512));
    host.runs(&format!(
        "dd if=/dev/urandom of=/tmp/last bs=1M count=1 && dd if=/tmp/last of=$disk bs=1M seek={} conv=fsync",
        (grown >> 20) - 1
    ));
    host.runs("tail -c 1048576 /tmp/disk.img | cmp - /tmp/last");
    goes_on(host.guest());
    rest(host.guest());
    host.clean("vd0");
    host.runs("leave vd0");
    host.off();
    Ok(())
}

fn read_only(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs("dd if=/dev/urandom of=/tmp/disk.img bs=1M count=16 && md5sum < /tmp/disk.img > /tmp/sum");
    host.disk("vd0", "--store file=/tmp/disk.img --read-only");
    assert_eq!(host.runs("cat /sys/block/${disk##*/}/ro").trim(), "1");
    host.runs("md5sum < $disk | cmp - /tmp/sum");
    host.fails("dd if=/dev/zero of=$disk bs=4k count=1 conv=fsync", 1);
    host.fails("blkdiscard $disk", 1);
    host.runs("md5sum < /tmp/disk.img | cmp - /tmp/sum");
    host.runs("leave vd0");
    host.off();
    Ok(())
}
