//! The scenarios of `mdevd regress`, each a test of its own.
//!
//! One is played at a time: they count the descriptors of the process. `MDEV_ROUNDS` and `MDEV_SEED` choose rounds
//! and seed; the seed is printed when a scenario fails.

use std::fs::File;
use std::sync::Mutex;
use std::time::Duration;

use mdev_tests::random::SEED;
use mdevd::regress::{Body, Failure, Outcome, Run, Scenario, Transport, Verdict, play, scenarios};

/// No step of a sample may take longer, however loaded the machine is.
const WATCHDOG: Duration = Duration::from_secs(60);
const ROUNDS: &str = "MDEV_ROUNDS";

fn chosen(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

fn holds(transport: Transport, name: &str) {
    let scenario = scenarios(transport).into_iter().find(|scenario| scenario.name == name);
    let scenario = scenario.unwrap_or_else(|| panic!("there is no scenario {name}"));
    let (rounds, seed) = (chosen(ROUNDS, 100), chosen(SEED, 1));
    let verdict = play(&scenario, rounds, seed.into());
    assert!(matches!(verdict, Verdict::Ok(_)), "{name} with {SEED}={seed} {ROUNDS}={rounds}: {verdict:?}");
}

/// A test for each scenario, and the list of all that have one.
macro_rules! tests {
    ($($transport:ident { $($test:ident: $name:literal,)* })*) => {
        $($(
            #[test]
            fn $test() {
                holds(Transport::$transport, $name);
            }
        )*)*

        const TESTED: &[(Transport, &str)] = &[$($((Transport::$transport, $name),)*)*];
    };
}

tests! {
    Memory {
        scenario_01_close_vs_workqueue: "close-vs-workqueue",
        scenario_02_late_pin_race: "late-pin-race",
        scenario_03_other_device_waiters: "other-device-waiters",
        scenario_04_trapped_mmio_no_close: "trapped-mmio-no-close",
        scenario_05_vaddr_window: "vaddr-window",
        scenario_06_fork_change_exec: "fork-change-exec",
        scenario_07_unmap_with_pin: "unmap-with-pin",
        scenario_08_stubborn_device: "stubborn-device",
        scenario_09_pin_record_gap: "pin-record-gap",
        scenario_10_callback_reentry: "callback-reentry",
        scenario_11_notify_all: "notify-all",
        scenario_12_destroy_vs_callback: "destroy-vs-callback",
        scenario_13_replace: "replace",
        scenario_14_rw_vs_unmap: "rw-vs-unmap",
        scenario_15_partial_unmap: "partial-unmap",
        scenario_16_multi_area_unmap: "multi-area-unmap",
        scenario_17_change_process_refused: "change-process-refused",
        scenario_18_owner_sigkill_file: "owner-sigkill-file",
        scenario_18_owner_sigkill_vaddr: "owner-sigkill-vaddr",
        scenario_19_fd_closed_first: "fd-closed-first",
        scenario_20_truncate_under_io: "truncate-under-io",
        scenario_23_iotlb_miss_no_update: "iotlb-miss-no-update",
    }
    VhostUser {
        scenario_02_late_pin_race_over_a_socket: "late-pin-race",
        scenario_03_other_device_waiters_over_a_socket: "other-device-waiters",
        scenario_08_stubborn_device_over_a_socket: "stubborn-device",
        scenario_21_mem_table_new_vaddrs: "mem-table-new-vaddrs",
        scenario_22_remreg_barrier: "remreg-barrier",
        scenario_23_iotlb_miss_no_update_over_a_socket: "iotlb-miss-no-update",
        scenario_24_front_end_vanishes: "front-end-vanishes",
        scenario_26_daemon_restart: "daemon-restart",
    }
    VfioUser {
        scenario_02_late_pin_race_of_a_controller: "late-pin-race",
        scenario_04_trapped_mmio_no_close_of_a_controller: "trapped-mmio-no-close",
        scenario_08_stubborn_device_of_a_controller: "stubborn-device",
        scenario_15_partial_unmap_of_a_controller: "partial-unmap",
        scenario_20_truncate_under_io_of_a_controller: "truncate-under-io",
        scenario_22_remreg_barrier_of_a_controller: "remreg-barrier",
        scenario_24_front_end_vanishes_of_a_controller: "front-end-vanishes",
    }
}

/// Those of VDUSE need a kernel that has it, and are played in the lab.
#[test]
fn every_scenario_that_can_be_played_is_a_test() {
    for transport in [Transport::Memory, Transport::VhostUser, Transport::VfioUser] {
        let played: Vec<&str> = scenarios(transport)
            .iter()
            .filter(|scenario| matches!(scenario.body, Body::Play(_)))
            .map(|scenario| scenario.name)
            .collect();
        let tested: Vec<&str> =
            TESTED.iter().filter(|(of, _)| *of == transport).map(|(_, name)| *name).collect();
        assert_eq!(tested, played, "{transport:?}");
    }
}

/// A scenario of these tests.
fn sample(bound: Duration, body: fn(&Run) -> Outcome) -> Verdict {
    let scenario =
        Scenario { number: 0, name: "sample", origin: "K", bound, shows: "nothing", body: Body::Play(body) };
    play(&scenario, 3, 1)
}

fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Failed(why, _) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn scenario_that_holds_is_ok_with_its_worst_time() {
    let verdict = sample(WATCHDOG, |run| {
        for _ in run.rounds(1) {
            run.time("sleep", || std::thread::sleep(Duration::from_millis(1)));
        }
        Ok(())
    });
    assert!(matches!(verdict, Verdict::Ok(worst) if worst >= Duration::from_millis(1)), "{verdict:?}");
}

#[test]
fn scenario_that_fails_names_its_round() {
    let verdict = sample(WATCHDOG, |run| {
        run.rounds(1).nth(2);
        Err(Failure::new("as it must"))
    });
    assert_eq!(why(verdict), "round 2: as it must");
}

#[test]
fn scenario_that_hangs_fails_and_names_its_step() {
    let verdict = sample(Duration::from_millis(20), |run| {
        run.time("for ever", || std::thread::sleep(WATCHDOG));
        Ok(())
    });
    let why = why(verdict);
    assert!(why.contains("hangs") && why.contains("for ever"), "{why}");
}

#[test]
fn scenario_that_panics_fails() {
    let why = why(sample(WATCHDOG, |_| panic!("as it must")));
    assert!(why.contains("panicked"), "{why}");
}

#[test]
fn scenario_that_keeps_a_descriptor_fails() {
    static KEPT: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let verdict = sample(WATCHDOG, |_| {
        KEPT.lock().expect("nobody panics with it").push(File::open("/dev/null")?);
        Ok(())
    });
    assert!(why(verdict).contains("leaves something behind"));
}
