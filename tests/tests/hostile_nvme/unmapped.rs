//! Memory that is unmapped, resets, shutdowns, deletions and departures, with commands in flight.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin::{DELETE_CQ, DELETE_SQ};
use mdev_protocol::nvme::opcode::nvm::{READ, WRITE};
use mdev_protocol::nvme::register::{CC, CSTS, csts};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{DmaUnmap, Request};
use mdev_tests::stage::await_that;

use super::house::{HELD, IN_FILE, IN_MEMORY};
use super::intruder::{CONFIG, ENABLED, ENTRIES, Intruder, transfer};
use super::trial::Trial;

/// What is written over memory that the device has let go of.
const MARK: u8 = 0xa5;
/// QEMU takes a connection for dead whose replies take longer.
const REPLY: Duration = Duration::from_secs(5);

fn load(intruder: &mut Intruder, nsid: u32, opcode: u8) {
    let at = intruder.data.at.0;
    for number in 0..ENTRIES - 1 {
        let command = Command { nsid, cdw10: number * 8, ..transfer(opcode, [at, 0], 8) };
        intruder.rings[0].push(&super::intruder::with_cid(command, number as u16));
    }
    intruder.ring(0);
}

/// The range of one of the regions of its memory.
fn range(intruder: &Intruder, region: usize) -> DmaUnmap {
    let region = &intruder.memory.regions()[region];
    DmaUnmap::Range { address: region.range.first().0, size: region.size() }
}

fn mark(intruder: &Intruder) {
    intruder.data.slice().expect("a part").fill(MARK);
}

fn must_be_marked(intruder: &Intruder, what: &str) {
    let mut bytes = vec![0; 16 * 4096];
    intruder.data.range(0, bytes.len() as u64).expect("room").copy_to(&mut bytes);
    assert!(bytes.iter().all(|byte| *byte == MARK), "{what}: the device wrote there after the reply");
}

#[test]
fn unmapped_data_is_out_of_reach_when_the_reply_comes() {
    let mut trial = Trial::begin("adaptive");
    for nsid in [IN_MEMORY, IN_FILE] {
        trial.case(&format!("data unmapped under load, namespace {nsid}"), |intruder, _| {
            for _ in 0..20 {
                load(intruder, nsid, READ);
                let data = range(intruder, 1);
                let began = Instant::now();
                intruder.client.dma_unmap(data).expect("memory can be taken back at any time");
                assert!(began.elapsed() < REPLY);
                mark(intruder);
                std::thread::sleep(Duration::from_millis(2));
                must_be_marked(intruder, "unmapped");
                // The rest of the commands waits for its memory, which comes back.
                let all = range(intruder, 0);
                intruder.client.dma_unmap(all).expect("memory can be taken back");
                intruder.lend();
                for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                    assert!(completion.status().is_success(), "{:?}", completion.status());
                }
            }
            load(intruder, nsid, READ);
            let data = range(intruder, 1);
            intruder.client.dma_unmap(data).expect("memory can be taken back");
            // Not this time: each waits for a second, and fails by itself. A reset is quicker.
            let ended = intruder.await_io(0, 1);
            let status = ended[0].status().plain();
            assert!([Status::SUCCESS, Status::DATA_TRANSFER_ERROR].contains(&status), "{status:?}");
            intruder.renew_memory();
        });
    }
    trial.end();
}

#[test]
fn unmapped_queues_are_a_fatal_status_after_a_second() {
    let mut trial = Trial::begin("adaptive");
    for nsid in [IN_MEMORY, IN_FILE] {
        trial.case(&format!("queues unmapped under load, namespace {nsid}"), |intruder, _| {
            load(intruder, nsid, WRITE);
            let queues = range(intruder, 0);
            intruder.client.dma_unmap(queues).expect("memory can be taken back at any time");
            intruder.bell(1, false, 3);
            intruder.must_be_fatal("queues unmapped");
            intruder.renew_memory();
        });
    }
    trial.case("unmapped twice, in parts, and before it was mapped", |intruder, _| {
        use super::intruder::refused;
        use rustix::io::Errno;
        let DmaUnmap::Range { address, size } = range(intruder, 1) else { panic!("a range") };
        for (address, size) in [
            (address, size - 4096),
            (address + 4096, size - 4096),
            (address, size + 4096),
            (address, 1),
            (0, 4096),
            (1 << 63, 1 << 63),
        ] {
            let part = DmaUnmap::Range { address, size };
            assert_eq!(refused(intruder.client.dma_unmap(part)), Errno::NOENT, "{part:?}");
        }
        let whole = DmaUnmap::Range { address, size };
        intruder.client.dma_unmap(whole).expect("memory can be taken back");
        assert_eq!(refused(intruder.client.dma_unmap(whole)), Errno::NOENT);
        intruder.client.dma_unmap(DmaUnmap::All).expect("all that there is");
        intruder.client.dma_unmap(DmaUnmap::All).expect("nothing is all that there is");
        intruder.lend();
    });
    trial.end();
}

#[test]
fn memory_that_is_held_is_out_of_reach_within_four_seconds() {
    for mode in ["adaptive", "busy"] {
        let mut trial = Trial::holding(mode);
        trial.case(&format!("held reads, {mode}"), |intruder, house| {
            load(intruder, HELD, READ);
            house.await_held(u64::from(ENTRIES) - 1);
            let (data, began) = (range(intruder, 1), Instant::now());
            intruder.client.dma_unmap(data).expect("it is taken from the device");
            assert!(began.elapsed() < REPLY, "{:?}", began.elapsed());
            mark(intruder);
            house.order("finish");
            trial_pause();
            must_be_marked(intruder, "held");
            assert!(intruder.is_fatal(), "its commands were cancelled");
            intruder.renew_memory();
        });
        trial.case(&format!("held and finished in time, {mode}"), |intruder, house| {
            load(intruder, HELD, READ);
            house.await_held(u64::from(ENTRIES) - 1);
            let request = Request::DmaUnmap(range(intruder, 1));
            let ticket = intruder.client.send(&request, &[]).expect("room");
            trial_pause();
            // Registers are answered meanwhile.
            assert_eq!(intruder.csts(), csts::READY);
            house.order("finish");
            intruder.client.await_reply(ticket).expect("it is let go of");
            assert!(!intruder.is_fatal());
            intruder.renew_memory();
        });
        trial.end();
    }
}

fn trial_pause() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn resets_shutdowns_and_deletions_end_what_is_held() {
    let mut trial = Trial::holding("adaptive");
    let hold = |intruder: &mut Intruder, house: &mut super::house::House| {
        load(intruder, HELD, READ);
        house.await_held(u64::from(ENTRIES) - 1);
    };
    trial.case("CC.EN is cleared", |intruder, house| {
        hold(intruder, house);
        intruder.disable();
        assert_eq!(house.order("pending"), 0);
    });
    trial.case("CC.EN is cleared and set a hundred times", |intruder, house| {
        hold(intruder, house);
        for _ in 0..100 {
            intruder.write32(CC, 0);
            intruder.write32(CC, ENABLED);
        }
        await_that("it is ready", || intruder.read32(CSTS) == csts::READY);
        assert_eq!(house.order("pending"), 0);
    });
    trial.case("the device is reset", |intruder, house| {
        hold(intruder, house);
        intruder.client.reset().expect("it is reset");
        assert_eq!((house.order("pending"), intruder.csts()), (0, 0));
    });
    trial.case("the function is reset", |intruder, house| {
        hold(intruder, house);
        intruder.client.region_write(CONFIG, 0x60 + 9, &[0x80]).expect("it is answered");
        await_that("it is reset", || intruder.csts() == 0);
        assert_eq!(house.order("pending"), 0);
    });
    trial.case("it is shut down, and told more", |intruder, house| {
        hold(intruder, house);
        intruder.write32(CC, ENABLED | 1 << 14);
        await_that("it is shut down", || intruder.csts() & 0xc == csts::SHUT_DOWN);
        intruder.write32(CC, ENABLED | 2 << 14);
        intruder.bell(1, false, 5);
        intruder.bell(0, false, 5);
        assert_eq!(intruder.csts() & 0xc, csts::SHUT_DOWN);
        // The store holds the flush of the shutdown too, which was given up; it is no command of the host's.
        assert!(house.order("pending") <= 1);
        house.order("finish");
    });
    trial.case("the queue is deleted", |intruder, house| {
        hold(intruder, house);
        assert!(intruder.delete(DELETE_SQ, 1).is_success());
        for completion in intruder.await_io(0, ENTRIES as usize - 1) {
            assert_eq!(completion.status().plain(), Status::ABORTED_SQ_DELETION);
        }
        assert!(intruder.delete(DELETE_CQ, 1).is_success());
        assert_eq!(house.order("pending"), 0);
    });
    trial.case("all of that at once", |intruder, house| {
        for _ in 0..20 {
            hold(intruder, house);
            let unmap = Request::DmaUnmap(range(intruder, 1));
            let ticket = intruder.client.send(&unmap, &[]).expect("room");
            intruder.submit_admin(Command { cdw10: 1, ..Command::new(DELETE_SQ, 0, 0) });
            let reset = intruder.client.send(&Request::DeviceReset, &[]).expect("room");
            let again = intruder.client.send(&Request::DeviceReset, &[]).expect("room");
            intruder.client.await_reply(ticket).expect("it is let go of");
            // The first may be given up for the second.
            let _ = intruder.client.await_reply(reset);
            intruder.client.await_reply(again).expect("it is reset");
            let all = DmaUnmap::All;
            intruder.client.dma_unmap(all).expect("memory can be taken back");
            intruder.lend();
            intruder.enable();
            intruder.create_pairs(1);
        }
    });
    for _ in 0..10 {
        trial.hit("the client vanishes", |house| {
            let mut intruder = Intruder::at_work(&house.target(), 1);
            load(&mut intruder, HELD, READ);
            house.await_held(u64::from(ENTRIES) - 1);
            drop(intruder);
        });
    }
    trial.end();
}
