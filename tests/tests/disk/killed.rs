//! Block devices under verified load while somebody is killed: the daemon, or the front-end. Nothing is lost, doubled, torn or
//! misplaced.
//!
//! `MDEV_KILLS` says how often for each format of the ring; 5 if it is not set.

use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mdev_tests::disk::{BLOCK, Load, Unheard, follow};
use mdev_tests::random::Random;
use mdevd::driver::ledger::Ledger;
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
    assert!(load.ended > 0, "nothing was done");
    let ledger = std::mem::replace(&mut load.ledger, Ledger::new(0, BLOCK));
    load.verify(&ledger);
    println!("{name}: {} requests, {} writes, {} kills", load.ended, ledger.begun(), kills());
}

#[test]
fn daemon_killed_at_any_instant_loses_doubles_and_tears_nothing_split() {
    daemon_dies::<SplitQueue>(false, "adaptive", "daemon killed, split");
}

#[test]
fn daemon_killed_at_any_instant_loses_doubles_and_tears_nothing_packed() {
    daemon_dies::<PackedQueue>(true, "adaptive", "daemon killed, packed");
}

fn writer_dies<Q: Virtqueue>(packed: bool, name: &str) {
    let mut random = Random::seeded(name);
    let disk = Disk::new("file=disk.img", "adaptive");
    let mut ended = 0;
    for _ in 0..kills() {
        let seed = random.number();
        let mut writer = Command::new(env!("CARGO_BIN_EXE_victim-writer"))
            .arg(disk.socket())
            .arg(if packed { "packed" } else { "split" })
            .args([BLOCKS, seed].map(|number| number.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a writer");
        let journal = writer.stdout.take().expect("a pipe");
        let mut ledger = Ledger::new(seed, BLOCK);
        let life = Duration::from_micros(LIFE / 2 + random.below(LIFE));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(life);
            writer.kill().expect("a process");
            writer.wait().expect("a process that has ended");
        });
        ended += follow(&mut ledger, BufReader::new(journal));
        killer.join().expect("it kills");
        check::<Q>(&disk.socket(), packed, &ledger, random.clone());
    }
    assert!(ended > 0, "nothing was written");
    println!("{name}: {ended} writes, {} kills", kills());
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
