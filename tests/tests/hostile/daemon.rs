//! The daemon itself: one guest with traffic on, and everything else that connects to its socket.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use mdev_protocol::vhost_user::{Client, FrontendMessage as M, MemoryRegion};
use mdev_tests::random::Random;
use mdev_tests::stage::{Alone, Guest, GuestOptions, Traffic, WATCHDOG, await_that};
use mdevd::daemon::{CounterSocket, Daemon, DaemonError, Endpoint, MAX_CONNECTIONS, Options};
use mdevd::device::net::{NetConfig, NetDevice, QUEUE_NAMES};
use mdevd::device::{Device, QueueCounters};
use mdevd::link::LinkKind;
use mdevd::report::{CounterLine, MemoryLine};
use mdevd::worker::Mode;
use rustix::fs::ftruncate;
use rustix::process::{Signal, getpid, kill_process};
use tempfile::TempDir;

use super::files::memfd;
use super::greed::TIB;
use super::latched::Door;
use super::leaving::vanish;
use super::lost::renew_memory;
use super::messages::send_random;
use super::replies::flood;
use super::together::say_everything;

/// A daemon in this process, with one worker.
pub(super) struct House {
    device: Arc<NetDevice>,
    path: PathBuf,
    thread: Option<JoinHandle<Result<(), DaemonError>>>,
    _folder: TempDir,
    /// Where it tells its counters.
    counters: UnixStream,
    alone: Option<Alone>,
}

impl House {
    pub(super) fn open() -> House {
        let alone = Alone::begin();
        let (counters, theirs) = UnixStream::pair().expect("sockets");
        counters.set_read_timeout(Some(WATCHDOG)).expect("a watchdog");
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("net.sock");
        let config =
            NetConfig { name: "net".into(), queue_pairs: 1, mac: None, mtu: None, link: LinkKind::Loopback };
        let device = Arc::new(NetDevice::new(config).expect("the configuration is valid"));
        let endpoint = Endpoint::bind(&path, None).expect("a socket");
        let options = Options {
            mode: Mode::Adaptive,
            cpus: Vec::new(),
            stats: None,
            queue_names: QUEUE_NAMES,
            sessions: Default::default(),
            counters: Some(CounterSocket::new(theirs.into()).expect("a socket")),
        };
        let daemon = Daemon::new(device.clone(), endpoint, options).expect("a daemon");
        let thread = std::thread::Builder::new().name("daemon".into()).spawn(move || daemon.run());
        House {
            device,
            path,
            thread: Some(thread.expect("a thread")),
            _folder: folder,
            counters,
            alone: Some(alone),
        }
    }

    /// What it tells of the memory of all its guests.
    fn memory(&self) -> MemoryLine {
        let mut line = String::new();
        (&self.counters).write_all(b"?").expect("the daemon listens");
        BufReader::new(&self.counters).read_line(&mut line).expect("it answers");
        serde_json::from_str::<CounterLine>(&line).expect("a line of counters").memory
    }

    pub(super) fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).expect("the daemon listens")
    }

    pub(super) fn guest(&self) -> Guest {
        let mut guest = Guest::over(self.connect(), GuestOptions::default());
        guest.share();
        guest.start_rings();
        guest
    }

    fn counters(&self, queue: u16) -> QueueCounters {
        self.device.queue_stats(queue).expect("it is there").counters()
    }

    /// The guest's frames all came back, its counters are clean, and the daemon ends when it is told to and leaves nothing behind.
    pub(super) fn close(mut self, victim: Traffic) {
        let guest = victim.end();
        for queue in 0..2 {
            let counters = self.counters(queue);
            assert_eq!((counters.dropped(), counters.parks, counters.errors), (0, 0, 0), "{counters:?}");
        }
        drop(guest);
        self.end();
        let alone = self.alone.take().expect("it ends once");
        drop(self);
        alone.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            kill_process(getpid(), Signal::TERM).expect("we may");
            let ended = thread.join().expect("the control thread did not panic");
            assert!(ended.is_ok(), "{ended:?}");
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.end();
    }
}

impl Door for House {
    fn enter(&self) -> (u64, UnixStream) {
        (0, self.connect())
    }

    fn left(&self, _: u64) {
        // The daemon tells nobody; what is left shows when it has ended.
    }
}

#[test]
fn terabytes_leave_room_for_newcomers() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    let before = house.memory().windows;
    // Each takes all that it can get, and keeps it.
    let greedy: Vec<Guest> = (0..3)
        .map(|_| {
            let file = memfd(64 * TIB);
            let mut greedy = Guest::over(house.connect(), GuestOptions::default());
            let mut taken = 0;
            for size in [TIB, TIB / 32, TIB / 1024] {
                while greedy.front.client().add_mem_region(file_region(taken, size), file.as_fd()).is_ok() {
                    taken += size;
                }
            }
            greedy
        })
        .collect();
    let all = house.memory().windows;
    assert!(all > 12 * 1024, "{all} windows: the first should have half, the second a quarter");

    let mut newcomer = Guest::over(house.connect(), GuestOptions::default());
    newcomer.share();
    for number in 0..64 {
        let file = memfd(4096);
        let at = (1 << 41) + number * 4096;
        let region = MemoryRegion { guest_addr: at, user_addr: at, size: 4096, mmap_offset: 0 };
        newcomer.front.client().add_mem_region(region, file.as_fd()).expect("there is room");
    }
    victim.must_go_on(50);
    drop(greedy);
    await_that("their memory is let go", || house.memory().windows == before + 65);
    drop(newcomer);
    house.close(victim);
}

/// A region of a sparse file, where it stands in it.
fn file_region(offset: u64, size: u64) -> MemoryRegion {
    let at = (1 << 41) + offset;
    MemoryRegion { guest_addr: at, user_addr: at, size, mmap_offset: offset }
}

#[test]
fn other_front_ends_do_not_touch_the_rings_of_the_one_that_has_them() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    victim.must_go_on(100);
    let other = Guest::over(house.connect(), GuestOptions::default());
    for round in 0..32 {
        let mut client = Client::new(house.connect(), WATCHDOG);
        let offered = mdevd::session::OFFERED_PROTOCOL_FEATURES;
        client.set_protocol_features(offered).expect("what is offered");
        say_everything(&mut client, &other, round);
        victim.must_go_on(20);
    }
    drop(other);
    house.close(victim);
}

#[test]
fn front_ends_that_vanish_do_not_touch_the_rings_of_the_one_that_has_them() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    let mut random = Random::seeded("vanishing from the daemon");
    for _ in 0..200 {
        assert!(!vanish(&house, &mut random, false), "rings of two front-ends ran at once");
    }
    victim.must_go_on(100);
    house.close(victim);
}

#[test]
fn front_ends_that_vanish_leave_a_device_that_works() {
    let house = House::open();
    let mut random = Random::seeded("vanishing with the rings");
    let served = (0..200).filter(|_| vanish(&house, &mut random, true)).count();
    assert!(served > 0, "no front-end was ever served");
    // The last ones may still be leaving.
    let mut guest = house.guest();
    guest.exchange(50);
    drop(guest);
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    let mut house = house;
    drop(victim.end());
    house.end();
    let alone = house.alone.take().expect("it ends once");
    drop(house);
    alone.end();
}

#[test]
fn random_messages_to_the_daemon_do_not_touch_the_rings_of_the_one_that_has_them() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    send_random(&house, 20_000, || victim.must_go_on(10));
    victim.must_go_on(100);
    house.close(victim);
}

#[test]
fn memory_that_is_lost_shows_in_the_counters_until_it_is_announced_anew() {
    let mut house = House::open();
    let mut guest = house.guest();
    guest.exchange(50);
    let before = house.memory();
    assert_eq!((before.windows, before.poisoned, before.revoked, before.faults), (1, 0, 0, 0));
    let lost = guest.churn(|busy| {
        await_that("traffic", || busy.received() > 200);
        ftruncate(busy.memory.regions()[0].extent.file.as_fd(), 0).expect("nothing forbids it");
        await_that("the lost page is counted", || house.memory().poisoned == 1);
        house.memory()
    });
    assert!(lost.faults > 0);
    await_that("the device says so", || guest.needs_reset());
    for index in 0..2 {
        guest.front.stop(index).expect("it stops");
    }
    renew_memory(&mut guest);
    let healed = house.memory();
    assert_eq!((healed.windows, healed.poisoned), (1, 0), "the window went with the memory");
    assert!(healed.faults >= lost.faults, "what happened stays counted");
    guest.start_rings();
    guest.exchange(50);
    assert_eq!(house.memory(), healed);
    drop(guest);
    house.end();
    let alone = house.alone.take().expect("it ends once");
    drop(house);
    alone.end();
}

#[test]
fn more_connections_than_the_daemon_takes_are_turned_away_and_deaf_ones_hold_nobody() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    let mut others: Vec<UnixStream> = (0..2 * MAX_CONNECTIONS).map(|_| house.connect()).collect();
    for socket in others.iter_mut().take(2) {
        flood(socket, &M::GetFeatures.to_bytes(false));
    }
    victim.must_go_on(100);
    // The last one was turned away.
    let turned_away = others.pop().expect("there are many");
    let mut client = Client::new(turned_away, WATCHDOG);
    assert!(client.features().is_err());
    drop((others, client));
    // When they are gone there is room again.
    await_that("there is room again", || Client::new(house.connect(), WATCHDOG).features().is_ok());
    house.close(victim);
}
