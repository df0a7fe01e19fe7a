//! Queues, and the data of admin commands, in memory that the client keeps.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{Capabilities, TwinSocket};

use super::host::Host;
use super::{Server, soon, unmap_of};
use crate::sys::EventFd;
use crate::worker::Mode;

/// How long a device waits for its client, in tests, and more.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(800);

fn host(server: &Server, twin: bool) -> Host {
    let mut client = server.stranger();
    let twin_socket = twin.then_some(TwinSocket { supported: true, fd_index: None });
    client.negotiate(Capabilities { twin_socket, ..Capabilities::default() }).unwrap();
    Host::keeping(client)
}

fn run(server: &Server, host: &mut Host, command: Command) -> Status {
    host.submit(command);
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.finish_all();
        host.has_completion()
    }));
    host.reap().unwrap().status()
}

#[test]
fn host_that_keeps_all_its_memory_has_its_commands_served() {
    for (mode, twin) in [(Mode::Adaptive, false), (Mode::Busy, true), (Mode::Event, true)] {
        let server = Server::start(mode);
        let mut host = host(&server, twin);
        let data = host.memory.regions()[1].range.first();
        // More than once around the queues.
        for round in 0..50u8 {
            host.memory.slice(data, 8192).unwrap().fill(round | 1);
            let lba = u32::from(round) * 16;
            let write = |opcode| Command {
                dptr: [data.0, data.0 + 4096],
                cdw10: lba,
                cdw12: 15,
                ..Command::new(opcode, u16::from(round), 1)
            };
            assert_eq!(run(&server, &mut host, write(nvm::WRITE)), Status::SUCCESS, "{round}");
            host.memory.slice(data, 8192).unwrap().fill(0);
            assert_eq!(run(&server, &mut host, write(nvm::READ)), Status::SUCCESS, "{round}");
            let mut bytes = vec![0; 8192];
            host.memory.slice(data, 8192).unwrap().copy_to(&mut bytes);
            assert!(bytes.iter().all(|byte| *byte == round | 1), "{round}");
        }
        assert_eq!(host.status(), 1);
    }
}

#[test]
fn admin_commands_send_and_fetch_their_data() {
    let server = Server::start(Mode::Adaptive);
    let mut host = host(&server, false);
    let data = host.memory.regions()[1].range.first();
    // Across two pages.
    let identify =
        Command { dptr: [data.0 + 512, data.0 + 4096], cdw10: 1, ..Command::new(admin::IDENTIFY, 1, 0) };
    assert_eq!(host.admin(identify), Status::SUCCESS);
    let mut serial = [0; 4];
    host.memory.slice(data, 8192).unwrap().subslice(512 + 4, 4).unwrap().copy_to(&mut serial);
    assert_eq!(&serial, b"nvme");
    // The timestamp: set, and read elsewhere.
    let time = 0x0102_0304_0506u64;
    host.memory.slice(data, 8).unwrap().copy_from(&time.to_le_bytes());
    let feature = |opcode, at| Command { dptr: [at, 0], cdw10: 0x0e, ..Command::new(opcode, 2, 0) };
    assert_eq!(host.admin(feature(admin::SET_FEATURES, data.0)), Status::SUCCESS);
    assert_eq!(host.admin(feature(admin::GET_FEATURES, data.0 + 4096)), Status::SUCCESS);
    let mut read = [0; 8];
    host.memory.slice(data, 8192).unwrap().subslice(4096, 8).unwrap().copy_to(&mut read);
    let read = u64::from_le_bytes(read) & 0xffff_ffff_ffff;
    assert!((time..time + 60_000).contains(&read), "{read:#x}");
    // What the client has not got is an error of the command.
    let nowhere = Command { dptr: [1 << 50, 0], cdw10: 1, ..Command::new(admin::IDENTIFY, 3, 0) };
    assert_eq!(host.admin(nowhere).code(), Status::DATA_TRANSFER_ERROR.code());
    assert_eq!(host.status(), 1);
}

#[test]
fn host_is_interrupted_when_its_completion_has_arrived_and_not_before() {
    use std::os::fd::AsFd;
    let server = Server::start(Mode::Adaptive);
    let mut host = host(&server, false);
    let event = EventFd::new().unwrap();
    host.client.wire_irqs(0, 0, &[event.as_fd()]).unwrap();
    event.drain();
    host.admin_unheard(Command { cdw10: 1, dptr: [1 << 32, 0], ..Command::new(admin::IDENTIFY, 1, 0) });
    assert_eq!(event.drain(), crate::sys::Kicks::None);
    assert!(soon(|| {
        host.client.serve().unwrap();
        event.drain() != crate::sys::Kicks::None
    }));
    assert!(host.has_admin_completion(), "it was there before");
}

#[test]
fn client_that_never_answers_for_its_queues_has_a_controller_in_fatal_status_until_it_resets_it() {
    let server = Server::start(Mode::Adaptive);
    let mut host = host(&server, false);
    host.submit(Command::new(nvm::FLUSH, 1, 1));
    std::thread::sleep(PATIENCE);
    assert_eq!(host.status(), 3, "ready, and in fatal status");
    host.client.reset().unwrap();
    assert_eq!(host.status(), 0);
}

#[test]
fn queues_in_remote_memory_that_goes_and_comes_back_within_a_second_go_on() {
    let server = Server::start(Mode::Adaptive);
    let mut host = host(&server, false);
    let region = host.memory.regions()[0].clone();
    host.client.dma_unmap(unmap_of(&region)).unwrap();
    host.submit(Command::new(nvm::FLUSH, 1, 1));
    std::thread::sleep(std::time::Duration::from_millis(5));
    host.client.dma_map(super::map_of(&region), None).unwrap();
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.finish_all();
        host.has_completion()
    }));
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    assert_eq!(host.status(), 1);
}
