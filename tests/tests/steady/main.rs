//! What a burst costs that no clock shows: memory allocated, and system calls made, once rings run.
//!
//! Driver and engine take turns on one thread. Of each burst the engine's part is looked at: an allocator counts what that
//! thread asks for, and the kernel reports every system call of it to another thread ([`calls`]). The locks of the standard library
//! make no system call while nobody else holds them, so that these are not seen here.

#[allow(unsafe_code)]
mod calls;
#[allow(unsafe_code)]
mod heap;
mod rig;

use std::path::Path;
use std::process::Command;

use mdev_tests::lab::move_into_own_network;
use mdevd::driver::{PackedQueue, RingOptions, SplitQueue, Virtqueue};

use rig::{BURST, BURSTS, Rig};

const RING: u16 = 256;

/// What the bursts of a rig came to.
#[derive(Copy, Clone, Debug)]
struct Cost {
    packets: u64,
    allocations: u64,
    /// None where the kernel does not report them.
    calls: Option<u64>,
}

/// Counts on a thread of its own, whose system calls are watched to its end.
fn cost<Q: Virtqueue>(link: &str, packed: bool, in_order: bool, prepare: fn()) -> Cost {
    let options = RingOptions { in_order, ..RingOptions::plain(RING) };
    calls::watched(|watch| {
        let mut rig = Rig::<Q>::new(link, packed, options);
        prepare();
        // What grows to its size does so now.
        rig.run();
        let before = watch.begin();
        let (allocations, packets) = rig.run();
        Cost { packets, allocations, calls: watch.count().zip(before).map(|(after, before)| after - before) }
    })
}

fn in_each_layout(link: &str, prepare: fn(), check: impl Fn(&str, Cost)) {
    for in_order in [false, true] {
        let order = if in_order { " in order" } else { "" };
        check(&format!("{link}, split{order}"), cost::<SplitQueue>(link, false, in_order, prepare));
        check(&format!("{link}, packed{order}"), cost::<PackedQueue>(link, true, in_order, prepare));
    }
}

fn costs_nothing(what: &str, cost: Cost) {
    assert!(cost.packets >= u64::from(BURST * BURSTS) / 2, "{what}: {cost:?}");
    assert_eq!((cost.allocations, cost.calls.unwrap_or(0)), (0, 0), "{what}: {cost:?}");
}

#[test]
fn bursts_that_are_dropped_made_or_sent_back_allocate_nothing_and_make_no_system_call() {
    for link in ["null", "loopback", "pktgen,size=64", "pktgen,size=imix"] {
        in_each_layout(link, || (), costs_nothing);
    }
}

#[test]
fn bursts_to_a_peer_allocate_nothing_and_make_no_system_call() {
    in_each_layout("peer=bridge", || (), costs_nothing);
}

#[test]
fn bursts_to_a_tap_make_one_system_call_for_each_frame_and_allocate_nothing() {
    let has_ip = Command::new("ip").arg("-V").output().is_ok();
    if !Path::new("/dev/net/tun").exists() || !has_ip || move_into_own_network().is_err() {
        let reason = "a tap interface needs root, /dev/net/tun and the program ip (package iproute2)";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    }
    // The threads that this one starts are in its network.
    let up = || {
        let done = Command::new("ip").args(["link", "set", "vm0", "up"]).status();
        assert!(done.is_ok_and(|status| status.success()), "the interface does not come up");
    };
    in_each_layout("tap=vm0", up, |what, cost| {
        assert!(cost.packets >= u64::from(BURST * BURSTS) / 2, "{what}: {cost:?}");
        assert_eq!(cost.allocations, 0, "{what}: {cost:?}");
        // The kernel takes one frame at a time from a tap's writer; and each burst asks once whether there is one to read.
        let most = cost.packets + 2 * u64::from(BURSTS);
        assert!(cost.calls.is_none_or(|calls| calls <= most), "{what}: {cost:?}");
    });
}
