//! Data in memory that the client keeps: reached by messages.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::{DatasetRange, SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor};
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{
    Capabilities, Command as Message, Data, DmaFlags, DmaMap, DmaReadDone, DmaReply, DmaUnmap, Header,
    LentMemory, Request, TwinSocket,
};
use zerocopy::IntoBytes;

use super::host::Host;
use super::{SIZE, Server, soon};
use crate::store::Store;
use crate::store::held::Held;
use crate::worker::Mode;

/// Where it begins.
pub const REMOTE: u64 = 8 << 32;
/// Bytes of it: data, and a few pages for lists.
const LEN: u64 = 4 << 20;
/// Where lists are.
pub const LISTS: u64 = REMOTE + (3 << 20);
/// How long a device waits for its client, in tests.
pub const PATIENCE: Duration = Duration::from_millis(400);

#[derive(Clone)]
pub struct Lent(Arc<Mutex<Vec<u8>>>, Arc<AtomicU32>);

impl Lent {
    fn new() -> Lent {
        Lent(Arc::new(Mutex::new(vec![0; LEN as usize])), Arc::default())
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.clone().write(address, bytes).unwrap();
        self.1.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.clone().read(address, &mut bytes).unwrap();
        self.1.fetch_sub(1, Ordering::Relaxed);
        bytes
    }

    /// How often the device has asked for something, and was answered.
    pub fn asked(&self) -> u32 {
        self.1.load(Ordering::Relaxed)
    }
}

impl LentMemory for Lent {
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), u32> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let at = address.checked_sub(REMOTE).ok_or(14u32)? as usize;
        data.copy_from_slice(self.0.lock().unwrap().get(at..at + data.len()).ok_or(14u32)?);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), u32> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let at = address.checked_sub(REMOTE).ok_or(14u32)? as usize;
        self.0.lock().unwrap().get_mut(at..at + data.len()).ok_or(14u32)?.copy_from_slice(data);
        Ok(())
    }
}

pub fn map(address: u64, size: u64) -> DmaMap {
    DmaMap { flags: DmaFlags::READ | DmaFlags::WRITE, offset: 0, address, size }
}

pub fn capabilities(twin: bool) -> Capabilities {
    let twin_socket = twin.then_some(TwinSocket { supported: true, fd_index: None });
    Capabilities { twin_socket, ..Capabilities::default() }
}

/// A host that lends memory in two pieces without a file.
pub fn host(server: &Server, twin: bool) -> (Host, Lent) {
    let mut client = server.stranger();
    client.negotiate(capabilities(twin)).unwrap();
    let lent = Lent::new();
    client.lend(Box::new(lent.clone()));
    let mut host = Host::new(client);
    // Data cross the border between the two.
    let border = 20 * 4096;
    host.client.dma_map(map(REMOTE, border), None).unwrap();
    host.client.dma_map(map(REMOTE + border, LEN - border), None).unwrap();
    (host, lent)
}

/// A command on `len` bytes from the start of the store on.
pub fn command(opcode: u8, len: usize, dptr: [u64; 2]) -> Command {
    Command { dptr, cdw12: (len / 512 - 1) as u32, ..Command::new(opcode, 7, 1) }
}

/// Pointers to `len` bytes at `at`, with the list that is needed at `lists`.
pub fn prps(lent: &Lent, at: u64, len: usize) -> [u64; 2] {
    let next = (at | 4095) + 1;
    let end = at + len as u64;
    let pages: Vec<u64> = (next..end).step_by(4096).collect();
    match pages[..] {
        [] => [at, 0],
        [second] => [at, second],
        _ => {
            lent.put(LISTS, pages.as_bytes());
            [at, LISTS]
        }
    }
}

pub fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 512 + salt) as u8).collect()
}

/// Has a command carried out, with the store's and the client's help.
pub fn run(server: &Server, host: &mut Host, command: Command) -> Status {
    host.submit(command);
    assert!(soon(|| {
        host.client.serve().unwrap();
        server.held.finish_all();
        host.has_completion()
    }));
    host.reap().unwrap().status()
}

fn goes_both_ways(server: &Server, twin: bool, bytes_of: impl Fn() -> Option<Vec<u8>>) {
    let (mut host, lent) = host(server, twin);
    for (salt, (at, len)) in
        [(0, 512), (512, 4096), (4096, 8192), (512, 12288), (19 * 4096 + 512, 128 << 10), (0, 1 << 20)]
            .into_iter()
            .enumerate()
    {
        let at = REMOTE + at;
        let data = pattern(len, salt);
        lent.put(at, &data);
        let dptr = prps(&lent, at, len);
        assert_eq!(run(server, &mut host, command(nvm::WRITE, len, dptr)), Status::SUCCESS, "{len}");
        if let Some(stored) = bytes_of() {
            assert!(stored[..len] == data, "{len} bytes arrive");
        }
        assert_eq!(run(server, &mut host, command(nvm::COMPARE, len, dptr)), Status::SUCCESS, "{len}");
        lent.put(at, &vec![0xee; len + 512]);
        assert_eq!(run(server, &mut host, command(nvm::READ, len, dptr)), Status::SUCCESS, "{len}");
        assert!(lent.get(at, len) == data, "{len} bytes come back");
        assert_eq!(lent.get(at + len as u64, 512), [0xee; 512], "and no more");
    }
    assert_eq!(host.status(), 1);
}

#[test]
fn data_of_any_length_go_both_ways_over_either_socket() {
    for (mode, twin) in
        [(Mode::Adaptive, false), (Mode::Adaptive, true), (Mode::Busy, true), (Mode::Event, false)]
    {
        let server = Server::start(mode);
        goes_both_ways(&server, twin, || Some(server.held.bytes()));
    }
}

#[test]
fn data_go_both_ways_where_the_store_needs_no_time() {
    let store = Store::open(&format!("mem,size={SIZE}").parse().unwrap()).unwrap();
    let server = Server::on(Mode::Adaptive, Held::new(vec![0; SIZE]), store);
    goes_both_ways(&server, false, || None);
}

#[test]
fn pieces_in_memory_of_both_kinds_make_one_command() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, false);
    let local = host.memory.regions()[1].range.first();
    let data = pattern(8192, 3);
    host.memory.slice(local, 4096).unwrap().copy_from(&data[..4096]);
    lent.put(REMOTE, &data[4096..]);
    let dptr = [local.0, REMOTE];
    assert_eq!(run(&server, &mut host, command(nvm::WRITE, 8192, dptr)), Status::SUCCESS);
    assert!(server.held.bytes()[..8192] == data);
    host.memory.slice(local, 4096).unwrap().fill(0);
    lent.put(REMOTE, &[0; 4096]);
    assert_eq!(run(&server, &mut host, command(nvm::READ, 8192, dptr)), Status::SUCCESS);
    let mut first = vec![0; 4096];
    host.memory.slice(local, 4096).unwrap().copy_to(&mut first);
    assert!([first, lent.get(REMOTE, 4096)].concat() == data);
}

#[test]
fn segments_of_an_sgl_and_ranges_to_deallocate_are_fetched() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, true);
    let data = pattern(2048, 5);
    lent.put(REMOTE + 100, &data[..512]);
    lent.put(REMOTE + 9000, &data[512..]);
    let last = SglDescriptor::new(SGL_LAST_SEGMENT, LISTS + 4096, 32);
    lent.put(LISTS, last.as_bytes());
    let block = |address, len| SglDescriptor::new(SGL_DATA_BLOCK, address, len);
    lent.put(LISTS + 4096, [block(REMOTE + 100, 512), block(REMOTE + 9000, 1536)].as_bytes());
    let words: [u64; 2] = zerocopy::transmute!(SglDescriptor::new(SGL_SEGMENT, LISTS, 16));
    let mut write = command(nvm::WRITE, 2048, words);
    write.cdw0 |= 1 << 14;
    assert_eq!(run(&server, &mut host, write), Status::SUCCESS);
    assert!(server.held.bytes()[..2048] == data);

    let range = DatasetRange { blocks: 4u32.to_le(), ..DatasetRange::default() };
    lent.put(REMOTE, range.as_bytes());
    let deallocate =
        Command { dptr: [REMOTE, 0], cdw10: 0, cdw11: 4, ..Command::new(nvm::DATASET_MANAGEMENT, 8, 1) };
    assert_eq!(run(&server, &mut host, deallocate), Status::SUCCESS);
}

#[test]
fn client_that_never_answers_loses_its_command_and_nothing_else() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, _) = host(&server, false);
    let since = Instant::now();
    host.submit(command(nvm::WRITE, 4096, [REMOTE, 0]));
    host.read();
    assert!(server.awaits(1), "a command behind it");
    server.held.finish_all();
    assert!(soon(|| host.has_completion()));
    assert!(since.elapsed() < PATIENCE, "which does not wait for it");
    assert_eq!(host.reap_unserved().status(), Status::SUCCESS);
    assert!(soon(|| host.has_completion()));
    assert!((PATIENCE..PATIENCE * 10).contains(&since.elapsed()), "{:?}", since.elapsed());
    assert_eq!(host.reap_unserved().status(), Status::DATA_TRANSFER_ERROR.do_not_retry());
    assert_eq!(host.status(), 1, "one command failed, and that was all");
    // What is answered by now is late, and dropped.
    assert_eq!(run(&server, &mut host, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
}

#[test]
fn unmap_cancels_at_once_what_is_under_way() {
    for twin in [false, true] {
        let server = Server::start(Mode::Adaptive);
        let (mut host, _) = host(&server, twin);
        host.submit(command(nvm::WRITE, 4096, [REMOTE, 0]));
        std::thread::sleep(Duration::from_millis(20));
        let since = Instant::now();
        host.client.dma_unmap(DmaUnmap::Range { address: REMOTE, size: 20 * 4096 }).unwrap();
        assert!(since.elapsed() < PATIENCE / 2);
        let status = host.reap().unwrap().status();
        assert!(twin || status == Status::DATA_TRANSFER_ERROR.do_not_retry(), "{status:?}");
        host.client.dma_map(map(REMOTE, 20 * 4096), None).unwrap();
        assert_eq!(run(&server, &mut host, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
    }
}

#[test]
fn reset_and_a_client_that_goes_wait_for_no_answer() {
    let server = Server::start(Mode::Adaptive);
    let (mut gone, _) = host(&server, false);
    gone.submit(command(nvm::WRITE, 1 << 16, [REMOTE, REMOTE + 4096]));
    gone.submit(command(nvm::WRITE, 4096, [REMOTE, 0]));
    std::thread::sleep(Duration::from_millis(20));
    let since = Instant::now();
    gone.client.reset().unwrap();
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
    drop(gone);
    let (mut next, _) = host(&server, true);
    next.submit(command(nvm::WRITE, 4096, [REMOTE, 0]));
    std::thread::sleep(Duration::from_millis(20));
    let since = Instant::now();
    drop(next);
    let (mut last, _) = host(&server, true);
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
    assert_eq!(run(&server, &mut last, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
}

#[test]
fn client_that_refuses_fails_its_command() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, _) = host(&server, false);
    // Lent, says the client, and knows nothing of it when it is asked.
    host.client.dma_map(map(1 << 40, 4096), None).unwrap();
    let status = run(&server, &mut host, command(nvm::READ, 4096, [1 << 40, 0]));
    assert_eq!(status, Status::DATA_TRANSFER_ERROR.do_not_retry());
    // Nor may what is lent for reading be written.
    host.client.dma_map(DmaMap { flags: DmaFlags::READ, ..map(2 << 40, 4096) }, None).unwrap();
    let status = run(&server, &mut host, command(nvm::READ, 4096, [2 << 40, 0]));
    assert_eq!(status, Status::DATA_TRANSFER_ERROR.do_not_retry());
    assert_eq!(host.status(), 1);
}

#[test]
fn replies_that_nobody_asked_for_hurt_nobody() {
    for twin in [false, true] {
        let server = Server::start(Mode::Adaptive);
        let (mut host, _) = host(&server, twin);
        let mut socket = UnixStream::from(host.client.as_fd().try_clone_to_owned().unwrap());
        let asked = Header::command(77, Message::DmaRead.id(), 0, false);
        socket.write_all(&DmaReply::Failed(5).to_bytes(&asked)).unwrap();
        let data = Data::new(&[1; 16]).unwrap();
        let done = DmaReply::DmaRead(DmaReadDone { address: REMOTE, data, layout: Default::default() });
        socket.write_all(&done.to_bytes(&asked)).unwrap();
        let mut garbled = done.to_bytes(&asked);
        garbled[24] = 200;
        socket.write_all(&garbled).unwrap();
        assert_eq!(run(&server, &mut host, command(nvm::WRITE, 4096, [REMOTE, 0])), Status::SUCCESS);
        assert_eq!(host.status(), 1);
    }
}

#[test]
fn second_socket_is_agreed_on_where_the_client_proposes_it() {
    let server = Server::start(Mode::Event);
    let mut client = server.stranger();
    let agreed = client.negotiate(capabilities(true)).unwrap();
    assert_eq!(agreed.capabilities.twin_socket, Some(TwinSocket { supported: true, fd_index: Some(0) }));
    drop(client);
    let mut client = server.stranger();
    let cannot = TwinSocket { supported: false, fd_index: None };
    let agreed = client.negotiate(Capabilities { twin_socket: Some(cannot), ..Default::default() }).unwrap();
    assert_eq!(agreed.capabilities.twin_socket, None, "nothing is agreed on that was not proposed");
}

#[test]
fn more_commands_than_there_is_room_for_are_all_served() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, lent) = host(&server, false);
    lent.put(REMOTE, &pattern(1 << 20, 9));
    let dptr = prps(&lent, REMOTE, 1 << 20);
    (0..6).for_each(|_| host.submit(command(nvm::WRITE, 1 << 20, dptr)));
    for _ in 0..6 {
        assert!(soon(|| {
            host.client.serve().unwrap();
            server.held.finish_all();
            host.has_completion()
        }));
        assert_eq!(host.reap().unwrap().status(), Status::SUCCESS);
    }
    assert!(server.held.bytes() == pattern(1 << 20, 9));
}

#[test]
fn map_of_remote_memory_waits_for_an_unmap_of_the_same() {
    let server = Server::start(Mode::Adaptive);
    let (mut host, _) = host(&server, false);
    let range = DmaUnmap::Range { address: REMOTE, size: 20 * 4096 };
    let unmap = host.client.send(&Request::DmaUnmap(range), &[]).unwrap();
    let map = host.client.send(&Request::DmaMap(map(REMOTE, 20 * 4096)), &[]).unwrap();
    host.client.await_reply(unmap).unwrap();
    host.client.await_reply(map).unwrap();
    assert_eq!(run(&server, &mut host, command(nvm::READ, 4096, [REMOTE, 0])), Status::SUCCESS);
}
