//! Bursts allocate nothing and enter the kernel for nothing. Those to a tap are tried in the lab.

use mdev_tests::steady::{BURST, BURSTS, Cost, Counting, in_each_layout};

#[global_allocator]
static HEAP: Counting = Counting;

fn costs_nothing(what: &str, cost: Cost) {
    assert!(cost.packets >= u64::from(BURST * BURSTS) / 2, "{what}: {cost:?}");
    assert_eq!(cost.allocations, 0, "{what}: {cost:?}");
    let Some(calls) = cost.calls else {
        let reason = "the kernel does not report system calls (seccomp's user notification)";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        return eprintln!("skipped: {reason}");
    };
    assert_eq!(calls, 0, "{what}: {cost:?}");
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
