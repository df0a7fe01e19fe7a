//! Devices of a host's own kernel come, stay and go, and their daemons too; and what is said to those who cannot have one.

use mdev_tests::lab::{Lab, Skip, Trial};

use super::disk::{SIZE, begin, goes_on, proceeds, rest};
use super::vduse::{DOES, Host, host, host_without_modules};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("vduse_disk_taken_off_the_bus_under_io_and_put_back_holds_its_data", off_and_on),
        Trial::new("vduse_device_goes_with_its_daemon_unless_it_is_to_stay_or_in_use", comes_and_goes),
        Trial::new("vduse_daemon_ended_in_order_under_io_and_started_again_goes_on", ended_in_order),
        Trial::new("vduse_device_that_cannot_be_had_is_refused_in_clear_words", refused),
        Trial::new("vduse_without_its_module_is_refused_in_clear_words", no_module),
    ]
}

fn off_and_on(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs(&format!("truncate -s {SIZE} /tmp/disk.img"));
    host.disk("vd0", "--queues 2 --store file=/tmp/disk.img");
    // Behind what is written and verified.
    host.runs(
        "dd if=/dev/urandom of=/tmp/mine bs=1M count=8 && dd if=/tmp/mine of=$disk bs=1M seek=32 conv=fsync",
    );
    for round in 0..3 {
        if round > 0 {
            begin(host.guest(), 4);
        }
        host.runs("vdpa dev del vd0");
        host.waits("[ ! -e $disk ]");
        // Requests fail, as those of a disk that was pulled out do.
        host.waits("! pidof guest-blocks");
        host.runs("plug vd0 && find vd0");
        host.runs("dd if=$disk bs=1M skip=32 count=8 iflag=direct | cmp - /tmp/mine");
    }
    begin(host.guest(), 4);
    rest(host.guest());
    host.clean("vd0");
    host.runs("vdpa dev del vd0 && leave vd0");
    host.runs("[ ! -e /dev/vduse/vd0 ]");
    host.off();
    Ok(())
}

fn comes_and_goes(lab: &Lab) -> Result<(), Skip> {
    const RECORDS: &str = "/run/mdevd/vduse-vd0.inflight";
    let mut host = Host::up(host(lab));
    let serve = |more: &str| format!("start vd0 blk --vduse vd0 --store mem,size={SIZE} {more}");
    host.runs(&serve(""));
    host.runs(&format!("[ -e /dev/vduse/vd0 ] && [ -e {RECORDS} ]"));
    host.runs("leave vd0");
    host.runs(&format!("[ ! -e /dev/vduse/vd0 ] && [ ! -e {RECORDS} ]"));

    host.runs(&serve("--keep"));
    host.runs("leave vd0");
    host.runs(&format!("[ -e /dev/vduse/vd0 ] && [ -e {RECORDS} ]"));
    host.runs(&serve(""));
    host.runs("grep 'it is taken over' /tmp/vd0.log");
    host.runs("plug vd0 && find vd0");
    host.runs("leave vd0");
    host.runs("grep 'stays, because it is on the vDPA bus' /tmp/vd0.log");
    host.runs(&format!("[ -e /dev/vduse/vd0 ] && [ -e {RECORDS} ]"));
    // Nobody is there to hear that its driver leaves. The kernel gives the device up then, and the next daemon makes it anew.
    host.runs("echo 2 > /sys/class/vduse/vd0/msg_timeout && vdpa dev del vd0");
    host.runs(&serve(""));
    host.runs("grep 'it is made anew' /tmp/vd0.log");
    host.runs("plug vd0 && find vd0 && dd if=$disk of=/dev/null bs=1M count=1 && vdpa dev del vd0");
    host.runs("leave vd0 INT");
    host.runs(&format!("[ ! -e /dev/vduse/vd0 ] && [ ! -e {RECORDS} ]"));

    // Its records may lie elsewhere.
    host.runs(&serve("--state-dir /tmp/records"));
    host.runs(&format!("[ -e /tmp/records/vduse-vd0.inflight ] && [ ! -e {RECORDS} ]"));
    host.runs("leave vd0");
    host.off();
    Ok(())
}

/// What is under way when the daemon ends is done by the next.
fn ended_in_order(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs(&format!("truncate -s {SIZE} /tmp/disk.img"));
    host.disk("vd0", "--queues 2 --store file=/tmp/disk.img,direct=on");
    begin(host.guest(), 8);
    for _ in 0..5 {
        host.runs("leave vd0");
        host.runs("start vd0 blk --vduse vd0 --queues 2 --store file=/tmp/disk.img,direct=on");
        println!("{:.1?} without a request that ended", goes_on(host.guest()));
    }
    rest(host.guest());
    host.clean("vd0");
    host.runs("leave vd0");
    host.off();
    Ok(())
}

fn refused(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    let refuses = |host: &mut Host, arguments: &str, status: u32, words: &[&str]| {
        let said = host.fails(&format!("timeout 20 mdevd {arguments} 2>&1"), status);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let store = format!("--store mem,size={SIZE}");
    refuses(&mut host, &format!("blk --vduse x/y {store}"), 2, &["x/y"]);
    refuses(&mut host, "net --vduse vn0 --queue-pairs 2", 1, &["--queue-pairs 1"]);

    host.runs(&format!("start vd0 blk --vduse vd0 --queues 2 {store} --keep"));
    // By another process, in the same and in another shape.
    refuses(&mut host, &format!("blk --vduse vd0 --queues 2 {store}"), 1, &["served by another process"]);
    refuses(&mut host, &format!("blk --vduse vd0 --queues 3 {store}"), 1, &["served by another process"]);
    host.runs("plug vd0 && find vd0");
    begin(host.guest(), 2);
    refuses(&mut host, &format!("blk --vduse vd0 --queues 2 {store}"), 1, &["served by another process"]);
    proceeds(host.guest());
    rest(host.guest());
    host.runs("vdpa dev del vd0 && leave vd0");
    for shape in ["--queues 1", "--queues 3"] {
        let arguments = format!("blk --vduse vd0 {shape} {store}");
        refuses(&mut host, &arguments, 1, &["vd0 already", "vdpa dev del vd0"]);
    }
    refuses(&mut host, "net --vduse vd0", 1, &["vd0 already", "vdpa dev del vd0"]);
    host.runs("[ -e /dev/vduse/vd0 ]");
    host.runs(&format!("start vd0 blk --vduse vd0 --queues 2 {store} && leave vd0"));

    host.runs("mkdir -p /etc && echo nobody:x:65534:65534::/tmp:/bin/sh > /etc/passwd");
    let command = format!("su nobody -c \"mdevd blk --vduse vd1 {store}\" 2>&1");
    let said = host.fails(&command, 1);
    assert!(said.contains("/dev/vduse/control") && said.contains("ermission"), "{said}");
    host.off();
    Ok(())
}

fn no_module(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host_without_modules(lab));
    let said = host.fails(&format!("mdevd blk --vduse vd0 --store mem,size={SIZE} 2>&1"), 1);
    assert!(said.contains("modprobe vduse"), "{said}");
    host.guest().type_in("off\n");
    host.guest().expect("script ended with status 0", DOES);
    Ok(())
}
