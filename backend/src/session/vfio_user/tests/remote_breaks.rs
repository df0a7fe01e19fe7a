//! What a host breaks off, holds up, or does not want, where the client keeps the memory.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::data::{
    SGL_BIT_BUCKET, SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor,
};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::pci::command::{BUS_INITIATOR, MEMORY};
use mdev_protocol::vfio_user::Capabilities;
use zerocopy::IntoBytes;

use super::host::Host;
use super::remote::{LISTS, Lent, PATIENCE, REMOTE, command, host, pattern, prps, run};
use super::{SIZE, Server, soon};
use crate::store::Store;
use crate::store::held::Held;
use crate::worker::Mode;

/// The region of the configuration space, and its command register.
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
/// How long a test looks whether something does not happen.
const WHILE: Duration = Duration::from_millis(50);

/// Aborts the command that all tests here submit.
fn abort() -> Command {
    Command { cdw10: 7 << 16 | 1, ..Command::new(admin::ABORT, 9, 0) }
}

fn permit(host: &mut Host, permitted: bool) {
    let value = if permitted { MEMORY | BUS_INITIATOR } else { MEMORY };
    host.client.region_write(CONFIG, COMMAND, &value.to_le_bytes()).unwrap();
}

/// Answers what the device asks, for a while.
fn serve_for(host: &mut Host, time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        host.client.serve().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn abort_ends_a_command_that_waits_for_its_client() {
    for (opcode, twin) in [(nvm::WRITE, false), (nvm::WRITE, true), (nvm::COMPARE, false)] {
        let server = Server::start(Mode::Adaptive);
        let (mut host, lent) = host(&server, twin);
        lent.put(REMOTE, &pattern(4096, 1));
        let since = Instant::now();
        host.submit(command(opcode, 4096, [REMOTE, 0]));
        std::thread::sleep(Duration::from_millis(20));
        host.admin_unheard(abort());
        assert!(soon(|| host.has_admin_completion()));
        assert!(host.has_completion(), "the host sees the end before it learns of the abort");
        assert_eq!(host.reap_unserved().status(), Status::ABORT_REQUESTED);
        assert_eq!(u32::from_le(host.reap_admin().dw0), 0, "it was aborted");
        assert!(since.elapsed() < PATIENCE, "nobody has waited for the client");
        // What it answers now is late.
        serve_for(&mut host, WHILE);
        assert!(!host.has_completion() && server.held.pending().is_empty());
        assert_eq!(run(&server, &mut host, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
        assert_eq!(host.status(), 1);
    }
}

#[test]
fn abort_takes_a_command_from_its_store_and_its_client_hears_nothing_of_it() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, false);
    lent.put(REMOTE, &[0xee; 8192]);
    host.submit(command(nvm::READ, 8192, [REMOTE, REMOTE + 4096]));
    assert!(server.awaits(1));
    assert_eq!(host.admin(abort()), Status::SUCCESS);
    assert_eq!(host.reap_unserved().status(), Status::ABORT_REQUESTED);
    assert_eq!(server.held.finish_all(), 0, "the store has let go of it");
    let asked = lent.asked();
    serve_for(&mut host, WHILE);
    assert_eq!((lent.asked(), lent.get(REMOTE, 8192)), (asked, vec![0xee; 8192]));
    // The room that it had is free: as many as there is room for, one after the other.
    let dptr = prps(&lent, REMOTE, 1 << 20);
    for _ in 0..4 {
        host.submit(command(nvm::READ, 1 << 20, dptr));
        assert!(soon(|| {
            host.client.serve().unwrap();
            server.held.pending().len() == 1
        }));
        assert_eq!(host.admin(abort()), Status::SUCCESS);
        assert_eq!(host.reap_unserved().status(), Status::ABORT_REQUESTED);
    }
}

#[test]
fn command_whose_data_go_to_the_client_is_not_aborted() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, false);
    let data = pattern(4096, 2);
    lent.put(REMOTE, &data);
    assert_eq!(run(&server, &mut host, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
    lent.put(REMOTE, &[0; 4096]);
    host.submit(command(nvm::READ, 4096, [REMOTE, 0]));
    assert!(server.awaits(1));
    server.held.finish_all();
    std::thread::sleep(Duration::from_millis(20));
    host.admin_unheard(abort());
    assert!(soon(|| host.has_admin_completion()));
    assert_eq!(u32::from_le(host.reap_admin().dw0), 1, "it was not aborted");
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    assert!(lent.get(REMOTE, 4096) == data);
    assert_eq!(host.admin(abort()), Status::SUCCESS, "of a command that is not there any more");
}

#[test]
fn abort_is_told_when_the_completion_has_arrived_in_a_queue_that_the_client_keeps() {
    for mode in [Mode::Adaptive, Mode::Busy] {
        let server = Server::start(mode);
        let mut client = server.stranger();
        client.negotiate(Capabilities::default()).unwrap();
        let mut host = Host::keeping(client);
        let data = host.memory.regions()[1].range.first().0;
        for round in 0..8 {
            host.submit(command(nvm::READ, 4096, [data, 0]));
            assert!(soon(|| {
                host.client.serve().unwrap();
                server.held.pending().len() == 1
            }));
            host.submit_admin(abort());
            assert!(soon(|| {
                host.client.serve().unwrap();
                host.has_admin_completion()
            }));
            assert!(host.has_completion(), "round {round}");
            assert_eq!(host.reap_unserved().status(), Status::ABORT_REQUESTED);
            assert_eq!(u32::from_le(host.reap_admin().dw0), 0);
        }
        assert_eq!(host.status(), 1);
    }
}

fn reads_around_a_bucket(server: &Server) {
    let (mut host, lent) = host(server, false);
    let local = host.memory.regions()[1].range.first();
    let data = pattern(2048, 3);
    lent.put(REMOTE, &data);
    assert_eq!(run(server, &mut host, command(nvm::WRITE, 2048, [REMOTE, 0])), Status::SUCCESS);

    let block = |address, len| SglDescriptor::new(SGL_DATA_BLOCK, address, len);
    let bucket = |len| SglDescriptor::new(SGL_BIT_BUCKET, 0, len);
    let sgl = |list: &[SglDescriptor], opcode, len| {
        lent.put(LISTS, list.as_bytes());
        let kind = if list.len() > 1 { SGL_LAST_SEGMENT } else { SGL_SEGMENT };
        let first = SglDescriptor::new(kind, LISTS, size_of_val(list) as u32);
        let mut sgl = command(opcode, len, zerocopy::transmute!(first));
        sgl.cdw0 |= 1 << 14;
        sgl
    };
    lent.put(REMOTE, &[0xee; 4096]);
    host.memory.slice(local, 4096).unwrap().fill(0xee);
    let list = [bucket(100), block(REMOTE + 100, 412), bucket(512), block(local.0, 512), bucket(512)];
    assert_eq!(run(server, &mut host, sgl(&list, nvm::READ, 2048)), Status::SUCCESS);
    let there = lent.get(REMOTE, 4096);
    assert!(there[100..512] == data[100..512], "what is wanted arrives");
    assert!(there[..100].iter().chain(&there[512..]).all(|byte| *byte == 0xee), "and nothing else");
    let mut there = vec![0; 4096];
    host.memory.slice(local, 4096).unwrap().copy_to(&mut there);
    assert!(there[..512] == data[1024..1536] && there[512..].iter().all(|byte| *byte == 0xee));

    // Nothing at all is wanted, and only the list is with the client.
    assert_eq!(run(server, &mut host, sgl(&[bucket(512), bucket(1536)], nvm::READ, 2048)), Status::SUCCESS);
    // Among what comes from the host they are as if they were not there.
    lent.put(REMOTE, &[7; 512]);
    let list = [bucket(4096), block(REMOTE, 512), bucket(1)];
    assert_eq!(run(server, &mut host, sgl(&list, nvm::WRITE, 512)), Status::SUCCESS);
    assert_eq!(run(server, &mut host, sgl(&list, nvm::COMPARE, 512)), Status::SUCCESS);
    assert_eq!(host.status(), 1);
}

#[test]
fn bit_buckets_take_what_is_not_wanted_beside_memory_of_the_client() {
    reads_around_a_bucket(&Server::start(Mode::Adaptive));
    let store = Store::open(&format!("mem,size={SIZE}").parse().unwrap()).unwrap();
    reads_around_a_bucket(&Server::on(Mode::Adaptive, Held::new(vec![0; SIZE]), store));
}

/// What the device asks while it must not reach memory.
fn asked_in_a_pause(host: &mut Host, lent: &Lent, time: Duration) -> u32 {
    let before = lent.asked();
    serve_for(host, time);
    lent.asked() - before
}

#[test]
fn nothing_is_asked_of_the_client_while_the_function_must_not_reach_memory() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, false);
    permit(&mut host, true);
    let data = pattern(1 << 20, 4);
    lent.put(REMOTE, &data);
    let dptr = prps(&lent, REMOTE, 1 << 20);
    // One message is on its way, and more are to follow. Longer than a client may take for its answer: this time does not count.
    host.submit(command(nvm::WRITE, 1 << 20, dptr));
    std::thread::sleep(Duration::from_millis(20));
    permit(&mut host, false);
    assert_eq!(asked_in_a_pause(&mut host, &lent, PATIENCE * 2), 0);
    permit(&mut host, true);
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.finish_all();
        host.has_completion()
    }));
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    assert!(server.held.bytes() == data);

    // The store goes on, and what it has read stays here.
    lent.put(REMOTE, &[0; 4096]);
    host.submit(command(nvm::READ, 4096, [REMOTE, 0]));
    assert!(server.awaits(1));
    permit(&mut host, false);
    server.held.finish_all();
    host.submit(command(nvm::READ, 4096, [REMOTE, 0]));
    assert_eq!(asked_in_a_pause(&mut host, &lent, WHILE), 0);
    assert!(!host.has_completion() && server.held.pending().is_empty());
    permit(&mut host, true);
    for _ in 0..2 {
        assert!(soon(|| {
            host.client.serve().unwrap();
            server.held.finish_all();
            host.has_completion()
        }));
        assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    }
    assert!(lent.get(REMOTE, 4096) == data[..4096]);
    assert_eq!(host.status(), 1);
}

#[test]
fn queues_that_the_client_keeps_outlast_a_pause_of_any_length() {
    let server = Server::start(Mode::Adaptive);
    let mut client = server.stranger();
    client.negotiate(Capabilities::default()).unwrap();
    let mut host = Host::keeping(client);
    permit(&mut host, true);
    // The device waits for its entries, and then for the arrival of a completion.
    host.submit(Command::new(nvm::FLUSH, 1, 1));
    std::thread::sleep(Duration::from_millis(20));
    permit(&mut host, false);
    serve_for(&mut host, PATIENCE * 2);
    assert!(server.held.pending().is_empty());
    permit(&mut host, true);
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.pending().len() == 1
    }));
    server.held.finish_all();
    std::thread::sleep(Duration::from_millis(20));
    permit(&mut host, false);
    serve_for(&mut host, PATIENCE * 2);
    permit(&mut host, true);
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    assert_eq!(host.admin(abort()), Status::SUCCESS);
    assert_eq!(host.status(), 1);
}

#[test]
fn reset_in_a_pause_waits_for_nothing_that_is_with_the_client() {
    for opcode in [nvm::READ, nvm::WRITE] {
        let server = Server::start(Mode::Adaptive);
        let (mut host, lent) = host(&server, false);
        permit(&mut host, true);
        host.submit(command(opcode, 4096, [REMOTE, 0]));
        std::thread::sleep(Duration::from_millis(20));
        permit(&mut host, false);
        server.held.finish_all();
        let asked = lent.asked();
        let since = Instant::now();
        host.client.reset().unwrap();
        assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
        serve_for(&mut host, WHILE);
        assert_eq!(lent.asked(), asked, "nothing is asked for a queue that is gone");
    }
}

#[test]
fn reset_in_a_pause_leaves_out_what_waited_for_its_turn() {
    let server = Server::start(Mode::Adaptive);
    for _ in 0..20 {
        let (mut host, lent) = host(&server, false);
        permit(&mut host, true);
        // As long as nobody knows how the client answers, the second waits for the first.
        host.submit(command(nvm::WRITE, 512, [REMOTE, 0]));
        host.submit(command(nvm::WRITE, 512, [REMOTE + 4096, 0]));
        std::thread::sleep(Duration::from_millis(5));
        permit(&mut host, false);
        let asked = lent.asked();
        host.client.reset().unwrap();
        serve_for(&mut host, Duration::from_millis(2));
        assert_eq!(lent.asked(), asked);
    }
}

#[test]
fn flush_of_all_and_a_shutdown_go_beside_data_of_the_client() {
    let server = Server::start(Mode::Adaptive);
    let mut client = server.stranger();
    client.negotiate(Capabilities::default()).unwrap();
    let mut host = Host::keeping(client);
    let data = host.memory.regions()[1].range.first().0;
    host.submit(command(nvm::WRITE, 4096, [data, 0]));
    host.submit(Command::new(nvm::FLUSH, 8, NSID_ALL));
    for _ in 0..2 {
        assert!(soon(|| {
            host.client.serve().unwrap();
            server.held.finish_all();
            host.has_completion()
        }));
        assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    }
    // A normal shutdown, with a command in flight: its stores are flushed, and nobody has to answer.
    host.submit(command(nvm::READ, 4096, [data, 0]));
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.pending().len() == 1
    }));
    host.write(0x14, &(0x0046_0001u32 | 1 << 14).to_le_bytes());
    assert!(soon(|| {
        server.held.finish_all();
        host.status() & 0xc == 8
    }));
    assert_eq!(host.status(), 9, "ready, and shut down");
}
