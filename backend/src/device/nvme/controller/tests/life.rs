use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CAP, CC, CRTO, CSTS, INTMC, INTMS, NSSR, VS};
use mdev_protocol::nvme::status::Status;

use super::rig::*;
use crate::store::held::Held;

const FATAL: u32 = 2;

#[test]
fn registers_after_power_on_are_those_of_the_plan() {
    let mut rig = Rig::new();
    assert_eq!((rig.read(CAP), rig.read(CAP + 4)), (0x1401_0fff, 0x0800_0020));
    assert_eq!((rig.read(VS), rig.read(CC), rig.read(CSTS)), (0x2_0000, 0, 0));
    assert_eq!((rig.read(CRTO), rig.read(AQA), rig.read(0xe00)), (20, 0, 0));
    let mut cap = [0; 8];
    rig.controller.read_bar0(0, &mut cap);
    assert_eq!(u64::from_le_bytes(cap), 0x0800_0020_1401_0fff);
    let mut upper = [0; 2];
    rig.controller.read_bar0(6, &mut upper);
    assert_eq!(upper, [0, 8]);
}

#[test]
fn odd_reads_are_zeros_and_odd_writes_are_ignored() {
    let mut rig = Rig::new();
    for (offset, len) in
        [(1, 4), (2, 8), (4, 8), (0, 3), (0, 16), (0x1ffe, 4), (0x1000, 4), (u64::MAX - 3, 4)]
    {
        let mut out = vec![0xff; len];
        rig.controller.read_bar0(offset, &mut out);
        assert!(out.iter().all(|byte| *byte == 0), "{len} bytes at {offset:#x}");
    }
    rig.controller.write_bar0(u64::from(AQA), &[0xff; 2], &mut rig.host);
    rig.controller.write_bar0(u64::from(AQA) + 2, &[0xff; 4], &mut rig.host);
    rig.controller.write_bar0(u64::from(AQA) + 4, &[0xff; 12], &mut rig.host);
    rig.controller.write_bar0(u64::MAX - 3, &[0xff; 4], &mut rig.host);
    rig.controller.write_bar0(u64::MAX - 7, &[0xff; 8], &mut rig.host);
    assert_eq!((rig.read(AQA), rig.read(ASQ)), (0, 0));
}

#[test]
fn reserved_bits_are_not_kept() {
    let mut rig = Rig::new();
    rig.write(AQA, u32::MAX);
    rig.write(CC, !1);
    rig.write(ASQ, u32::MAX);
    rig.write(ASQ + 4, 0x1234_5678);
    rig.write64(ACQ, u64::MAX);
    assert_eq!((rig.read(AQA), rig.read(CC)), (0x0fff_0fff, 0x00ff_fff0));
    assert_eq!((rig.read(ASQ), rig.read(ASQ + 4)), (0xffff_f000, 0x1234_5678));
    assert_eq!((rig.read(ACQ), rig.read(ACQ + 4)), (0xffff_f000, u32::MAX));
    rig.write(CAP, 0);
    rig.write(NSSR, 0x4e56_4d65);
    assert_eq!(rig.read(CAP), 0x1401_0fff);
}

#[test]
fn interrupt_masks_are_set_and_cleared_by_bit() {
    let mut rig = Rig::new();
    rig.write(INTMS, 0x13);
    rig.write(INTMC, 0x2);
    assert_eq!((rig.read(INTMS), rig.read(INTMC)), (0x11, 0x11));
    rig.enable();
    rig.disable();
    assert_eq!(rig.read(INTMS), 0, "a reset forgets masks");
}

#[test]
fn enabling_with_what_is_not_supported_is_fatal_until_disabled() {
    for cc in [ENABLED | 6 << 4, ENABLED | 1 << 7, ENABLED | 1 << 11] {
        let mut rig = Rig::new();
        rig.point(rig.asq.at.0, rig.acq.at.0);
        rig.write(CC, cc);
        assert_eq!(rig.read(CSTS), FATAL, "{cc:#x}");
        rig.disable();
        rig.enable();
    }
    for aqa in [0, 31, 31 << 16] {
        let mut rig = Rig::new();
        rig.point(rig.asq.at.0, rig.acq.at.0);
        rig.write(AQA, aqa);
        rig.write(CC, ENABLED);
        assert_eq!(rig.read(CSTS), FATAL, "{aqa:#x}");
    }
}

#[test]
fn page_size_cannot_change_while_enabled() {
    let mut rig = Rig::enabled();
    rig.write(CC, ENABLED | 3 << 7 | 7 << 4);
    assert_eq!((rig.read(CC), rig.read(CSTS)), (ENABLED, 1));
}

#[test]
fn admin_queues_outside_memory_are_fatal_after_a_while() {
    for (asq, acq) in [(true, false), (false, true), (true, true)] {
        let mut rig = Rig::new();
        let nowhere = 0xffff_ffff_ffff_f000;
        rig.point(if asq { nowhere } else { rig.asq.at.0 }, if acq { nowhere } else { rig.acq.at.0 });
        rig.write(CC, ENABLED);
        assert_eq!(rig.read(CSTS), 1);
        rig.submit(Command::new(admin::GET_FEATURES, 0, 0));
        let began = std::time::Instant::now();
        while rig.read(CSTS) & FATAL == 0 {
            let deadline = rig.controller.next_deadline().expect("it looks again");
            std::thread::sleep(deadline.saturating_duration_since(std::time::Instant::now()));
            rig.controller.serve_admin(&mut rig.host);
            assert!(began.elapsed().as_secs() < 20, "never fatal");
        }
        assert_eq!(rig.controller.next_deadline(), None);
        rig.ring(0, false, 5);
        rig.disable();
        rig.enable();
        rig.done(Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, 0, 0) });
    }
}

#[test]
fn admin_queue_whose_memory_comes_back_goes_on() {
    let mut rig = Rig::enabled();
    let region = rig.memory.regions()[0].clone();
    rig.ioas.unmap(region.range, std::time::Duration::from_secs(1)).unwrap();
    rig.submit(Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, 0, 0) });
    assert!(rig.ended().is_empty() && rig.controller.next_deadline().is_some());
    rig.ioas.map(region.area()).unwrap();
    rig.controller.serve_admin(&mut rig.host);
    let ended = rig.ended();
    assert_eq!((ended.len(), ended[0].status()), (1, Status::SUCCESS));
    assert_eq!((rig.read(CSTS), rig.controller.next_deadline()), (1, None));
}

#[test]
fn command_whose_data_come_back_is_carried_out_and_one_whose_do_not_fails_alone() {
    let mut rig = Rig::enabled();
    let identify = |at: u64| Command { dptr: [at, 0], cdw10: 1, ..Command::new(admin::IDENTIFY, 0, 0) };
    rig.submit(identify(0xdead_0000_0000));
    assert!(rig.ended().is_empty());
    std::thread::sleep(std::time::Duration::from_millis(60));
    rig.controller.serve_admin(&mut rig.host);
    let ended = rig.ended();
    assert_eq!((ended.len(), ended[0].status().plain()), (1, Status::DATA_TRANSFER_ERROR));
    rig.done(identify(rig.data.at.0));
    assert_eq!(rig.read(CSTS), 1);
}

#[test]
fn disabling_waits_for_queues_and_a_host_that_enables_meanwhile_gets_a_fresh_controller() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    rig.create_pair(2);
    rig.write(CC, ENABLED & !1);
    assert_eq!((rig.read(CSTS), rig.host.stopping.clone()), (1, vec![1, 2]));
    assert!(!rig.controller.is_quiet());
    rig.ring(0, false, 1);
    rig.point(rig.asq.at.0, rig.acq.at.0);
    rig.write(CC, ENABLED);
    assert_eq!(rig.finish_stops(), 2);
    assert!(rig.controller.is_quiet());
    assert_eq!(rig.read(CSTS), 1);
    rig.create_pair(1);
}

#[test]
fn shutdown_ends_queues_and_serves_nothing_until_reset() {
    for kind in [1, 2] {
        let mut rig = Rig::enabled();
        rig.create_pair(1);
        rig.write(CC, ENABLED | kind << 14);
        assert_eq!(rig.read(CSTS), 1 | 1 << 2, "shutdown processing");
        rig.finish_stops();
        if kind == 1 {
            assert_eq!(rig.read(CSTS), 1 | 1 << 2, "its stores are being flushed");
            rig.finish_flushes();
        }
        assert_eq!(rig.read(CSTS), 1 | 2 << 2, "shutdown complete");
        rig.submit(Command::new(admin::GET_FEATURES, 0, 0));
        assert!(rig.ended().is_empty());
        rig.write(CC, ENABLED);
        assert_eq!(rig.read(CSTS), 1 | 2 << 2, "only a reset ends it");
        rig.disable();
        rig.enable();
    }
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    rig.write(CC, ENABLED & !1 | 1 << 14);
    assert_eq!(rig.read(CSTS), 1 | 1 << 2);
    rig.finish_stops();
    assert_eq!(rig.read(CSTS), 1 << 2, "it is disabled, but not all is durable");
    rig.finish_flushes();
    assert_eq!(rig.read(CSTS), 2 << 2, "shut down and disabled at once");
}

#[test]
fn shutdown_waits_for_the_flush_of_every_store_that_can_be_written() {
    let mut rig = Rig::enabled();
    rig.write(CC, ENABLED | 1 << 14);
    // Attached or not.
    assert!(rig.awaits_flushes(3), "{:?}", rig.held.iter().map(Held::pending).collect::<Vec<_>>());
    assert!(rig.controller.next_deadline().is_some());
    rig.held[0].finish_all();
    rig.held[1].finish_all();
    rig.controller.look(&mut rig.host);
    assert_eq!(rig.read(CSTS), 1 | 1 << 2, "the last one is not flushed");
    rig.finish_flushes();
    assert_eq!((rig.read(CSTS), rig.controller.next_deadline()), (1 | 2 << 2, None));
    // The same shutdown is asked for again, and nothing was written since.
    rig.write(CC, ENABLED | 1 << 14);
    rig.write(CC, ENABLED & !1 | 1 << 14);
    assert_eq!(rig.read(CSTS), 2 << 2);
}

#[test]
fn shutdown_of_a_disabled_controller_flushes_too() {
    let mut rig = Rig::enabled();
    rig.disable();
    rig.write(CC, ENABLED & !1 | 1 << 14);
    assert_eq!(rig.read(CSTS), 1 << 2);
    rig.finish_flushes();
    assert_eq!(rig.read(CSTS), 2 << 2);
}

#[test]
fn flush_that_fails_or_does_not_end_does_not_hold_up_a_shutdown() {
    let mut rig = Rig::enabled();
    rig.write(CC, ENABLED | 1 << 14);
    assert!(rig.awaits_flushes(3));
    for held in &rig.held {
        held.fail(held.pending()[0].id, rustix::io::Errno::IO);
    }
    rig.finish_flushes();
    assert_eq!(rig.read(CSTS), 1 | 2 << 2);
    let mut rig = Rig::enabled();
    let began = std::time::Instant::now();
    rig.write(CC, ENABLED | 1 << 14);
    while rig.read(CSTS) != 1 | 2 << 2 {
        let at = rig.controller.next_deadline().expect("it looks again");
        std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
        rig.controller.look(&mut rig.host);
        assert!(began.elapsed().as_secs() < 20, "never shut down");
    }
    assert!(began.elapsed() >= super::super::flush::WITHIN);
}

#[test]
fn disabling_and_resetting_do_not_wait_for_the_flush_of_a_shutdown() {
    for by_register in [true, false] {
        let mut rig = Rig::enabled();
        rig.write(CC, ENABLED | 1 << 14);
        assert!(rig.awaits_flushes(3));
        if by_register {
            rig.write(CC, ENABLED & !1);
        } else {
            rig.controller.write_config(0x69, &[0x80], &mut rig.host);
        }
        assert_eq!((rig.read(CSTS), rig.controller.next_deadline()), (0, None));
        rig.enable();
        rig.create_pair(1);
        // The next one waits for the first to be over, and makes its own then.
        rig.write(CC, ENABLED | 1 << 14);
        rig.finish_stops();
        rig.controller.look(&mut rig.host);
        assert!(rig.awaits_flushes(3));
        assert_eq!(rig.read(CSTS), 1 | 1 << 2);
        rig.finish_flushes();
        assert_eq!(rig.read(CSTS), 1 | 2 << 2);
    }
}

#[test]
fn reset_in_every_state_leads_to_a_controller_that_can_be_enabled() {
    for state in 0..6 {
        let mut rig = Rig::new();
        match state {
            0 => {}
            1 => rig.enable(),
            2 => {
                rig.enable();
                rig.create_pair(1);
            }
            3 => {
                rig.enable();
                rig.create_pair(1);
                rig.submit(Command { cdw10: 1, ..Command::new(admin::DELETE_SQ, 0, 0) });
            }
            4 => {
                rig.enable();
                rig.create_pair(1);
                rig.write(CC, ENABLED | 1 << 14);
            }
            _ => rig.write(CC, ENABLED),
        }
        rig.controller.write_config(0x69, &[0x80], &mut rig.host);
        assert_eq!((rig.read(CC), rig.read(AQA), rig.read(ASQ)), (0, 0, 0), "state {state}");
        assert_eq!(rig.read(CSTS) & FATAL, 0);
        rig.controller.reset(&mut rig.host);
        rig.finish_stops();
        assert!(rig.controller.is_quiet());
        assert_eq!(rig.read(CSTS), 0, "state {state}");
        rig.enable();
        rig.create_pair(1);
    }
}
