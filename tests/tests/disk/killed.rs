//! Block devices under verified load while somebody is killed: the daemon, or the front-end. Nothing is lost, doubled, torn or
//! misplaced.
//!
//! `MDEV_KILLS` says how often for each format of the ring; 5 if it is not set.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mdev_tests::disk::{BLOCK, Load, NvmeLoad, Unheard, Watched, follow};
use mdev_tests::random::Random;
use mdevd::driver::ledger::Ledger;
use mdevd::driver::nvme::DoorbellWay;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};
use rustix::process::{Signal, kill_process};

use super::daemon::{BLOCKS, Disk};

/// The longest a victim lives, in microseconds.
const LIFE: u64 = 40_000;

fn kills() -> u32 {
    std::env::var("MDEV_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn daemon_dies<Q: Virtqueue>(packed: bool, mode: &'static str, name: &str) {
    let mut random = Random::seeded(name);
    let mut disk = Disk::new("file=disk.img", mode);
    let mut load = Load::<Q>::new(packed, BLOCKS, random.number(), random.clone());
    load.connect(&disk.socket());
    for _ in 0..kills() {
        let life = Instant::now() + Duration::from_micros(random.below(LIFE));
        while Instant::now() < life {
            load.step(true, &mut Unheard);
        }
        // It dies at an instant of its own: requests are submitted until nobody is there.
        let daemon = disk.process();
        let killer = std::thread::spawn(move || kill_process(daemon, Signal::KILL).expect("a process"));
        while !load.is_alone() {
            load.step(true, &mut Unheard);
        }
        killer.join().expect("it kills");
        disk.kill();
        load.step(true, &mut Unheard);
        disk.start();
        load.connect(&disk.socket());
    }
    load.drain();
    assert!(load.work.ended > 0, "nothing was done");
    let ledger = std::mem::replace(&mut load.work.ledger, Ledger::new(0, BLOCK));
    load.verify(&ledger);
    println!("{name}: {} requests, {} writes, {} kills", load.work.ended, ledger.begun(), kills());
}

#[test]
fn daemon_killed_at_any_instant_loses_doubles_and_tears_nothing_split() {
    daemon_dies::<SplitQueue>(false, "adaptive", "daemon killed, split");
}

#[test]
fn daemon_killed_at_any_instant_loses_doubles_and_tears_nothing_packed() {
    daemon_dies::<PackedQueue>(true, "adaptive", "daemon killed, packed");
}

/// A front-end of this format writes for a while, and is killed: what may be on the disk, how many of its writes have ended, and its
/// memory.
fn written_until_killed(disk: &Disk, format: &str, random: &mut Random) -> (Ledger, u64, Watched) {
    let seed = random.number();
    let mut writer = Command::new(env!("CARGO_BIN_EXE_victim-writer"))
        .arg(disk.socket())
        .arg(format)
        .args([BLOCKS, seed].map(|number| number.to_string()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a writer");
    let mut journal = BufReader::new(writer.stdout.take().expect("a pipe"));
    let mut ledger = Ledger::new(seed, BLOCK);
    let life = Duration::from_micros(random.below(LIFE));
    if !random.one_in(4) {
        // It lives at least until its first write.
        journal.fill_buf().expect("a writer that writes");
    }
    let killer = std::thread::spawn(move || {
        std::thread::sleep(life);
        let memory = Watched::of_process(writer.id());
        writer.kill().expect("a process");
        let end = writer.wait().expect("a process that has ended");
        assert_eq!(
            end.signal(),
            Some(Signal::KILL.as_raw()),
            "the writer has found something, or could not work"
        );
        memory
    });
    let ended = follow(&mut ledger, journal);
    (ledger, ended, killer.join().expect("it kills"))
}

fn writer_dies<Q: Virtqueue>(packed: bool, name: &str) {
    let mut random = Random::seeded(name);
    let disk = Disk::new("file=disk.img", "adaptive");
    let mut total = 0;
    for _ in 0..kills() {
        let format = if packed { "packed" } else { "split" };
        let (ledger, ended, _) = written_until_killed(&disk, format, &mut random);
        check::<Q>(&disk.socket(), packed, &ledger, random.clone());
        total += ended;
    }
    assert!(total > 0, "nothing was written");
    println!("{name}: {total} writes, {} kills", kills());
}

/// Another front-end reads what the one before has written.
fn check<Q: Virtqueue>(socket: &Path, packed: bool, ledger: &Ledger, random: Random) {
    let mut reader = Load::<Q>::new(packed, BLOCKS, 0, random);
    reader.connect(socket);
    reader.verify(ledger);
}

#[test]
fn front_end_killed_at_any_instant_leaves_what_was_acknowledged_split() {
    writer_dies::<SplitQueue>(false, "writer killed, split");
}

#[test]
fn front_end_killed_at_any_instant_leaves_what_was_acknowledged_packed() {
    writer_dies::<PackedQueue>(true, "writer killed, packed");
}

/// The next client of a controller is answered when nothing reaches the memory of the one that was killed, and finds what that has
/// written.
fn client_dies(store: &'static str, name: &str) {
    let mut random = Random::seeded(name);
    let disk = Disk::nvme(store, "adaptive");
    let (mut total, mut watched) = (0, 0);
    for _ in 0..kills() {
        let (ledger, ended, memory) = written_until_killed(&disk, "nvme", &mut random);
        let mut reader = NvmeLoad::connect(&disk.socket(), DoorbellWay::Trapped, BLOCKS, 0, random.clone());
        memory.mark();
        reader.verify(&ledger);
        assert!(memory.is_marked(), "a write came into the memory of a client that is gone");
        watched += u32::from(!memory.is_empty());
        total += ended;
    }
    assert!(total > 0 && watched > 0, "nothing was written");
    println!("{name}: {total} writes, {} kills", kills());
}

#[test]
fn client_of_a_controller_killed_at_any_instant_is_not_written_to_and_leaves_what_was_acknowledged() {
    client_dies("file=disk.img", "client killed");
}

#[test]
fn client_of_a_controller_past_the_page_cache_killed_at_any_instant_is_not_written_to() {
    client_dies("file=disk.img,direct=on", "client killed, direct");
}
