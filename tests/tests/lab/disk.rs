//! A guest that obeys the console, with a disk on `mdevd blk` or another, and what tests let it do.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use mdev_tests::lab::{Counters, Guest, Lab, Mdevd, QemuGuest};

/// How long something may take that the guest does.
pub const DOES: Duration = Duration::from_secs(60);

/// Bytes of the disk of most tests.
pub const SIZE: u64 = 64 << 20;

/// The disk of a guest with one on `mdevd blk`.
pub const DISK: &str = "/dev/vda";

/// A script: obey the console. `do COMMAND` runs a command and says how it ended, `begin JOBS` begins to write `$disk` and verify, `rest`
/// ends that.
pub const OBEY: &str = r#"
while read -r command what; do
    case $command in
        do) eval "$what"; echo "did: $?" ;;
        begin) rm -f /tmp/rest; guest-blocks verify $disk $what & writer=$! ;;
        rest) touch /tmp/rest; wait $writer; echo "rest: yes" ;;
        off) exit 0 ;;
    esac
done
"#;

/// A guest whose disk is on `blk.sock`; it obeys the console. `options` are more options of the disk, each behind a comma.
pub fn guest<'a>(lab: &'a Lab, name: &str, queues: u16, options: &str) -> Guest<'a> {
    guest_on(lab, name, "path=blk.sock", queues, options)
}

/// The same with all options of the disk's socket.
pub fn guest_on<'a>(lab: &'a Lab, name: &str, socket: &str, queues: u16, options: &str) -> Guest<'a> {
    obeying(lab, name, queues, DISK).vhost_user_blk(socket, queues, options)
}

/// A guest that obeys the console, and has no disk yet; it will find the one that tests are about at this path.
pub fn obeying<'a>(lab: &'a Lab, name: &str, queues: u16, disk: &str) -> Guest<'a> {
    QemuGuest::with_script(lab, name, &format!("disk={disk}\n{OBEY}"))
        .program("guest-blocks", env!("CARGO_BIN_EXE_guest-blocks"))
        .cores(if queues > 1 { 2 } else { 1 })
}

/// An image of zeroes in the test's working folder, and the store that names it.
pub fn image(lab: &Lab, name: &str, size: u64, options: &str) -> (PathBuf, String) {
    let path = lab.work().join(name);
    File::create(&path).and_then(|file| file.set_len(size)).expect("room for an image");
    (path, format!("file={name}{options}"))
}

/// Bytes that an image takes.
pub fn taken(image: &std::path::Path) -> u64 {
    std::fs::metadata(image).expect("an image").blocks() * 512
}

/// Let the guest run a command, which succeeds, and return what it said.
pub fn runs(guest: &mut QemuGuest, command: &str) -> String {
    let (status, said) = ran(guest, command);
    assert_eq!(status, 0, "{command}: {said}");
    said
}

/// Let the guest run a command: how it ended, and what it said.
pub fn ran(guest: &mut QemuGuest, command: &str) -> (u32, String) {
    guest.forget_output();
    guest.type_in(&format!("do {command}\n"));
    let said = guest.expect("did: ", DOES);
    let (_, status) = said.rsplit_once("did: ").expect("how it ended");
    (status.trim().parse().expect("a status"), said)
}

/// Have the guest begin to write and verify with so many jobs, and wait until it does.
pub fn begin(guest: &mut QemuGuest, jobs: u32) {
    guest.type_in(&format!("begin {jobs}\n"));
    goes_on(guest);
}

/// Wait until more was verified that was not yet when this was called. Returns the longest time between two requests since such a line
/// was last written.
pub fn goes_on(guest: &mut QemuGuest) -> Duration {
    guest.forget_output();
    proceeds(guest)
}

/// The same from where the last wait ended: what was said in between counts too.
pub fn proceeds(guest: &mut QemuGuest) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        let said = guest.expect("blocks: ", DOES);
        assert!(!said.contains("failed"), "{said}");
        longest = longest.max(gap(&said));
    }
    longest
}

/// What the lines "blocks: 12 verified, gap 3 ms" in this say was the longest gap.
pub fn gap(said: &str) -> Duration {
    let gaps = said
        .lines()
        .filter_map(|line| line.split_once(" verified, gap ")?.1.split_once(" ms")?.0.parse().ok());
    Duration::from_millis(gaps.max().unwrap_or_default())
}

/// End it: all was as it was written. Returns how long the longest request took.
pub fn rest(guest: &mut QemuGuest) -> Duration {
    guest.forget_output();
    guest.type_in("rest\n");
    let said = guest.expect("rest: yes", DOES);
    assert!(said.contains("blocks: all ") && !said.contains("failed"), "{said}");
    let longest = said.split_once("longest request ").and_then(|(_, rest)| rest.split_once(" ms"));
    Duration::from_millis(longest.and_then(|(number, _)| number.parse().ok()).expect("a number"))
}

/// The counters of all queues, when no request has failed.
pub fn clean(mdevd: &mut Mdevd) -> Vec<Counters> {
    let queues = mdevd.counters();
    for queue in &queues {
        assert_eq!((queue.get("drops"), queue.get("errors")), (0, 0), "drops, errors: {queue:?}");
    }
    queues
}

/// The end of a guest and of its device.
pub fn off(mut guest: QemuGuest, mdevd: Mdevd) {
    guest.type_in("off\n");
    guest.powered_off();
    mdevd.terminate();
}
