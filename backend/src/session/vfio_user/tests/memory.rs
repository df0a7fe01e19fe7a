//! Memory that is lent and taken back.

use std::os::fd::AsFd;
use std::time::Instant;

use mdev_dma::Iova;
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{DmaFlags, DmaMap, DmaUnmap, Request};
use rustix::io::Errno;

use super::host::Host;
use super::{Server, WITHIN, lend, map_of, refused, unmap_of};
use crate::driver::{GuestMemory, MemoryOptions};
use crate::worker::Mode;

#[test]
fn a_map_is_whole_pages_of_a_file_that_has_them() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let region = &memory.regions()[0];
    let (good, file) = (map_of(region), region.extent.file.as_fd());
    let wrong = [
        (DmaMap { address: good.address + 1, ..good }, Errno::INVAL),
        (DmaMap { size: good.size - 1, ..good }, Errno::INVAL),
        (DmaMap { offset: 2048, size: 4096, ..good }, Errno::INVAL),
        (DmaMap { size: good.size + 4096, ..good }, Errno::INVAL),
        (DmaMap { flags: DmaFlags::empty(), ..good }, Errno::INVAL),
    ];
    for (map, errno) in wrong {
        assert_eq!(refused(client.dma_map(map, Some(file))), errno, "{map:?}");
    }
    let pipe = rustix::pipe::pipe().unwrap();
    assert_eq!(refused(client.dma_map(good, Some(pipe.0.as_fd()))), Errno::INVAL);
    client.dma_map(good, Some(file)).unwrap();
    assert_eq!(refused(client.dma_map(good, Some(file))), Errno::EXIST);
    let inside = DmaMap { address: good.address + 4096, size: 4096, ..good };
    assert_eq!(refused(client.dma_map(inside, None)), Errno::EXIST);
}

#[test]
fn an_unmap_matches_a_map_exactly_and_all_means_all() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let page = |number: u64| DmaMap { flags: DmaFlags::READ, offset: 0, address: number * 8192, size: 4096 };
    client.dma_map(page(1), None).unwrap();
    client.dma_map(page(2), None).unwrap();
    for (address, size) in [(8192, 8192), (4096, 4096), (8192, 12288), (0, 1 << 40)] {
        assert_eq!(refused(client.dma_unmap(DmaUnmap::Range { address, size })), Errno::NOENT);
    }
    client.dma_unmap(DmaUnmap::Range { address: 8192, size: 4096 }).unwrap();
    client.dma_unmap(DmaUnmap::All).unwrap();
    client.dma_unmap(DmaUnmap::All).unwrap();
    client.dma_map(page(2), None).unwrap();
}

#[test]
fn five_thousand_ranges_of_one_file_come_and_go() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let memory = GuestMemory::new(MemoryOptions { size: 64 << 20, ..MemoryOptions::default() }).unwrap();
    let file = memory.regions()[0].extent.file.as_fd();
    let flags = DmaFlags::READ | DmaFlags::WRITE;
    for number in 0..5000u64 {
        let map = DmaMap { flags, offset: number * 4096, address: number * 8192, size: 4096 };
        client.dma_map(map, Some(file)).unwrap();
    }
    for number in 0..2500u64 {
        client.dma_unmap(DmaUnmap::Range { address: number * 8192, size: 4096 }).unwrap();
    }
    client.dma_unmap(DmaUnmap::All).unwrap();
}

#[test]
fn an_unmap_waits_for_the_commands_that_use_the_range_and_for_nothing_else() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    host.memory.add_region(MemoryOptions { first: Iova(2 << 32), ..MemoryOptions::default() }).unwrap();
    lend(&mut host.client, &host.memory.regions()[2]);
    host.read();
    assert!(server.awaits(1));

    let (data, idle) = (unmap_of(&host.memory.regions()[1]), unmap_of(&host.memory.regions()[2]));
    let since = Instant::now();
    host.client.dma_unmap(idle).unwrap();
    lend(&mut host.client, &host.memory.regions()[2]);
    assert!(since.elapsed() < WITHIN, "memory that nobody uses");

    let waits = host.client.send(&Request::DmaUnmap(data), &[]).unwrap();
    let behind = host.client.send(&Request::DmaUnmap(idle), &[]).unwrap();
    assert_eq!(host.status(), 1, "registers are not behind it");
    assert_eq!(host.client.under_way(), 2, "replies leave in order");
    assert_eq!(server.held.finish_all(), 1);
    host.client.await_reply(waits).unwrap();
    host.client.await_reply(behind).unwrap();
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
}

#[test]
fn an_aborted_command_gives_its_memory_back() {
    for mode in [Mode::Event, Mode::Busy] {
        let server = Server::start(mode);
        let mut host = Host::new(server.client());
        host.read();
        assert!(server.awaits(1));
        let abort = |cid: u32| Command { cdw10: 1 | cid << 16, ..Command::new(admin::ABORT, 0, 0) };
        assert_eq!(host.admin(abort(1)), Status::SUCCESS);
        assert!(host.has_completion(), "before the abort");
        let ended = host.reap().unwrap();
        assert_eq!((ended.cid, ended.status()), (1, Status::ABORT_REQUESTED));
        let since = Instant::now();
        let data = unmap_of(&host.memory.regions()[1]);
        host.client.dma_unmap(data).unwrap();
        assert!(since.elapsed() < WITHIN && server.held.pending().is_empty());
        assert_eq!(host.admin(abort(1)), Status::SUCCESS, "there is nothing to abort");
    }
}

#[test]
fn a_map_of_what_is_being_unmapped_waits_for_that_and_no_other_does() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    host.read();
    assert!(server.awaits(1));
    let region = host.memory.regions()[1].clone();
    let file = region.extent.file.as_fd();
    let unmap = host.client.send(&Request::DmaUnmap(unmap_of(&region)), &[]).unwrap();
    let map = host.client.send(&Request::DmaMap(map_of(&region)), &[file]).unwrap();
    let elsewhere = DmaMap { address: 5 << 32, ..map_of(&region) };
    let other = host.client.send(&Request::DmaMap(elsewhere), &[file]).unwrap();
    assert_eq!(host.status(), 1);
    assert_eq!(host.client.under_way(), 3);
    server.held.finish_all();
    for ticket in [unmap, map, other] {
        host.client.await_reply(ticket).unwrap();
    }
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    host.read();
    assert!(server.awaits(1));
    server.held.finish_all();
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
}

#[test]
fn unmaps_and_maps_of_one_range_that_pile_up_are_done_in_their_order() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    host.read();
    assert!(server.awaits(1));
    let region = host.memory.regions()[1].clone();
    let file = region.extent.file.as_fd();
    let (unmap, map) = (Request::DmaUnmap(unmap_of(&region)), Request::DmaMap(map_of(&region)));
    let all = Request::DmaUnmap(DmaUnmap::All);
    let mut tickets = Vec::new();
    for (request, fds) in
        [(&unmap, &[][..]), (&map, &[file]), (&unmap, &[]), (&map, &[file]), (&all, &[]), (&map, &[file])]
    {
        tickets.push(host.client.send(request, fds).unwrap());
    }
    assert_eq!(host.status(), 1);
    assert_eq!(host.client.under_way(), tickets.len());
    server.held.finish_all();
    tickets.into_iter().for_each(|ticket| drop(host.client.await_reply(ticket).unwrap()));
    assert_eq!(refused(host.client.dma_map(map_of(&region), Some(file))), Errno::EXIST);
    let queues = map_of(&host.memory.regions()[0]);
    host.client.dma_map(queues, Some(host.memory.regions()[0].extent.file.as_fd())).unwrap();
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
}

#[test]
fn memory_that_a_hung_store_holds_is_taken_away_from_it_and_not_written_afterwards() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    let region = host.memory.regions()[1].clone();
    let data = host.memory.slice(region.range.first(), 512).unwrap();
    data.fill(0x5a);
    host.read();
    assert!(server.awaits(1));
    let since = Instant::now();
    host.client.dma_unmap(unmap_of(&region)).unwrap();
    assert!((WITHIN..WITHIN * 10).contains(&since.elapsed()));
    assert_eq!(server.held.finish_all(), 1);
    assert!(host.reap().is_some(), "it ends, however that is called");
    let mut bytes = [0; 512];
    host.memory.slice(region.range.first(), 512).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0x5a; 512]);
    assert_eq!(host.status(), 1, "one command failed, and that was all");
}

#[test]
fn queues_in_memory_that_goes_and_comes_back_within_a_second_go_on() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    let region = host.memory.regions()[0].clone();
    host.client.dma_unmap(unmap_of(&region)).unwrap();
    host.read();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert!(server.held.pending().is_empty(), "its entry is in no memory");
    lend(&mut host.client, &region);
    assert!(server.awaits(1));
    server.held.finish_all();
    assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    assert_eq!(host.status(), 1);
}
