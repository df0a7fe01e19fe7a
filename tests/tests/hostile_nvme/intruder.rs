//! A client that can do anything: registers, queues, commands and doorbells by hand, and nothing checked but what it waits for.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Segment};
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CC, CSTS, DOORBELLS, csts};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{Capabilities, Client, ClientError, DmaFlags, DmaMap, DmaUnmap};
use mdev_tests::stage::{WATCHDOG, await_that};
use mdevd::driver::{GuestMemory, MemoryOptions, Part};
use rustix::io::Errno;

use super::house::{IN_MEMORY, PAIRS};

pub const PAGE: u64 = 4096;
/// Bytes of a logical block.
pub const BLOCK: u64 = 512;
pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;
/// Entries of its I/O queues.
pub const ENTRIES: u32 = 64;
const ADMIN_ENTRIES: u32 = 16;
/// Enabled, entries of 64 and 16 bytes.
pub const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// Where its memory is: that of its queues, and that of its data, which is another file.
pub const QUEUES_AT: u64 = 1 << 20;
pub const DATA_AT: u64 = 256 << 20;
const REGION: u64 = 8 << 20;
/// An address where it has no memory.
pub const NOWHERE: u64 = 1 << 40;

/// A pair of queues, as the host sees it.
pub struct Ring {
    pub qid: u16,
    pub entries: u32,
    pub submissions: Part,
    pub completions: Part,
    pub tail: u32,
    head: u32,
    phase: bool,
}

impl Ring {
    fn new(memory: &mut GuestMemory, qid: u16, entries: u32) -> Ring {
        let mut room = |bytes: u64| memory.allocate(bytes.max(PAGE), PAGE).expect("room");
        let (submissions, completions) = (room(u64::from(entries) * 64), room(u64::from(entries) * 16));
        Ring { qid, entries, submissions, completions, tail: 0, head: 0, phase: true }
    }

    fn begin_anew(&mut self) {
        self.completions.slice().expect("a part").fill(0);
        (self.tail, self.head, self.phase) = (0, 0, true);
    }

    /// Writes a command at the tail, whatever is there.
    pub fn push(&mut self, command: &Command) {
        let entries = self.submissions.slice().expect("a part");
        entries.write(self.tail as usize * Command::LEN, *command).expect("an entry");
        self.tail = (self.tail + 1) % self.entries;
    }

    fn reap(&mut self) -> Vec<Completion> {
        let entries = self.completions.slice().expect("a part");
        let mut found = Vec::new();
        while found.len() < self.entries as usize {
            let at = self.head as usize * Completion::LEN;
            let last = entries.load_u32(at + Completion::LAST_OFFSET, Ordering::Acquire).expect("an entry");
            if (last >> 16 & 1 != 0) != self.phase {
                break;
            }
            found.push(entries.read(at).expect("an entry"));
            self.head = (self.head + 1) % self.entries;
            self.phase ^= self.head == 0;
        }
        found
    }
}

/// See the [module](self).
pub struct Intruder {
    pub client: Client,
    pub memory: GuestMemory,
    pub admin: Ring,
    pub rings: Vec<Ring>,
    /// Room in the file of the queues.
    pub scratch: Part,
    /// Room for lists and for data, in the other file.
    pub lists: Part,
    pub data: Part,
    /// Pairs of queues that were created since it was enabled.
    pairs: usize,
    cid: u16,
    /// Completions of the admin queue that nobody has asked for.
    heard: Vec<Completion>,
    /// The doorbells, where they can be mapped.
    pub page: Option<Segment>,
}

impl Intruder {
    /// A client of the controller at `path` that has lent its memory.
    pub fn connect(path: &Path) -> Intruder {
        let mut client = Client::connect(path, WATCHDOG).expect("somebody listens");
        client.negotiate(Capabilities::default()).expect("a version");
        Intruder::over(client)
    }

    /// The same on a connection that has agreed on a version.
    pub fn over(mut client: Client) -> Intruder {
        let (info, file) = client.region_info(BAR0).expect("a region");
        assert_eq!(info.size, 0x2000);
        let options = |first| MemoryOptions { size: REGION, first: Iova(first), ..MemoryOptions::default() };
        let mut memory = GuestMemory::new(options(QUEUES_AT)).expect("memory");
        let admin = Ring::new(&mut memory, 0, ADMIN_ENTRIES);
        let rings = (1..=PAIRS).map(|qid| Ring::new(&mut memory, qid, ENTRIES)).collect();
        let scratch = memory.allocate(1 << 20, PAGE).expect("room");
        memory.add_region(options(DATA_AT)).expect("memory");
        let lists = memory.allocate(64 * PAGE, PAGE).expect("room");
        let data = memory.allocate(4 << 20, PAGE).expect("room");
        let page = file.map(|file| {
            let file = BackingFile::new(file, &FilePolicy::default()).expect("a memory file");
            let range = IovaRange::with_len(Iova(0), PAGE).expect("a page");
            let extent = FileExtent { file, offset: info.offset + u64::from(DOORBELLS) };
            let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
            memory.windows().segments(&area).expect("a page").pop().expect("a segment")
        });
        let (pairs, cid, heard) = (0, 0, Vec::new());
        let mut intruder =
            Intruder { client, memory, admin, rings, scratch, lists, data, pairs, cid, heard, page };
        intruder.lend();
        intruder
    }

    /// The same, enabled and with so many pairs of queues, which work.
    pub fn at_work(path: &Path, pairs: usize) -> Intruder {
        let mut intruder = Intruder::connect(path);
        intruder.enable();
        intruder.create_pairs(pairs);
        intruder.must_work("at the beginning");
        intruder
    }

    /// Lends all its memory.
    pub fn lend(&mut self) {
        for region in self.memory.regions() {
            let (address, size) = (region.range.first().0, region.size());
            let flags = DmaFlags::READ | DmaFlags::WRITE;
            let map = DmaMap { flags, offset: region.extent.offset, address, size };
            self.client.dma_map(map, Some(region.extent.file.as_fd())).expect("memory can be lent");
        }
    }

    /// Takes all memory back, forgets it, and lends other memory.
    pub fn renew_memory(&mut self) {
        self.client.dma_unmap(DmaUnmap::All).expect("memory can be taken back");
        let options = |first| MemoryOptions { size: REGION, first: Iova(first), ..MemoryOptions::default() };
        let mut memory = GuestMemory::new(options(QUEUES_AT)).expect("memory");
        self.admin = Ring::new(&mut memory, 0, ADMIN_ENTRIES);
        self.rings = (1..=PAIRS).map(|qid| Ring::new(&mut memory, qid, ENTRIES)).collect();
        self.scratch = memory.allocate(1 << 20, PAGE).expect("room");
        memory.add_region(options(DATA_AT)).expect("memory");
        self.lists = memory.allocate(64 * PAGE, PAGE).expect("room");
        self.data = memory.allocate(4 << 20, PAGE).expect("room");
        self.memory = memory;
        self.lend();
    }

    // Registers.

    pub fn read32(&mut self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(BAR0, offset.into(), &mut bytes).expect("a register");
        u32::from_le_bytes(bytes)
    }

    pub fn write32(&mut self, offset: u32, value: u32) {
        self.client.region_write(BAR0, offset.into(), &value.to_le_bytes()).expect("a register");
    }

    pub fn write64(&mut self, offset: u32, value: u64) {
        self.client.region_write(BAR0, offset.into(), &value.to_le_bytes()).expect("a register");
    }

    pub fn csts(&mut self) -> u32 {
        self.read32(CSTS)
    }

    pub fn is_fatal(&mut self) -> bool {
        self.csts() & csts::FATAL != 0
    }

    /// Waits until the controller says that only a reset helps.
    pub fn must_be_fatal(&mut self, what: &str) {
        await_that(&format!("{what}: CSTS.CFS"), || self.is_fatal());
    }

    // Life.

    pub fn disable(&mut self) {
        self.write32(CC, 0);
        await_that("the controller is disabled", || self.csts() & csts::READY == 0);
    }

    pub fn enable(&mut self) {
        self.enable_with(ADMIN_ENTRIES, [self.admin.submissions.at.0, self.admin.completions.at.0]);
        await_that("the controller is ready", || self.csts() & (csts::READY | csts::FATAL) != 0);
        assert!(!self.is_fatal(), "CSTS is {:#x}", self.csts());
    }

    /// Enables it with admin queues of so many entries at these addresses, and does not wait.
    pub fn enable_with(&mut self, entries: u32, [submissions, completions]: [u64; 2]) {
        self.disable();
        self.admin.begin_anew();
        (self.pairs, self.cid) = (0, 0);
        self.heard.clear();
        let entries = entries - 1;
        self.write32(AQA, entries | entries << 16);
        self.write64(ASQ, submissions);
        self.write64(ACQ, completions);
        self.write32(CC, ENABLED);
    }

    /// A reset by the host, after which all works as it did.
    pub fn must_recover(&mut self, what: &str) {
        self.enable();
        self.create_pairs(1);
        self.must_work(what);
    }

    /// What is written is read, on the first pair of queues.
    pub fn must_work(&mut self, what: &str) {
        self.data.range(0, 8 * BLOCK).expect("room").fill(0x5a);
        let command = |opcode, at: u64| Command {
            dptr: [at, 0],
            cdw10: 16,
            cdw12: 7,
            ..Command::new(opcode, 0, IN_MEMORY)
        };
        let at = self.data.at.0;
        for (opcode, at) in [(nvm::WRITE, at), (nvm::READ, at + 2 * PAGE)] {
            let status = self.io(0, command(opcode, at)).status();
            assert!(status.is_success(), "{what}: it does not work: {status:?}");
        }
        let mut bytes = [0; 8 * BLOCK as usize];
        self.data.range(2 * PAGE, bytes.len() as u64).expect("room").copy_to(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "{what}: it reads something else");
    }

    // Commands.

    fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    /// Submits an admin command, and says what it goes by.
    pub fn submit_admin(&mut self, command: Command) -> u16 {
        let cid = self.next_cid();
        self.admin.push(&with_cid(command, cid));
        self.bell(0, false, self.admin.tail);
        cid
    }

    /// The completion of an admin command, if it has come.
    pub fn heard(&mut self, cid: u16) -> Option<Completion> {
        let more = self.admin.reap();
        if !more.is_empty() {
            self.heard.extend(more);
            self.bell(0, true, self.admin.head);
        }
        let at = self.heard.iter().position(|completion| completion.cid == cid)?;
        Some(self.heard.swap_remove(at))
    }

    /// Waits for the completion of an admin command.
    pub fn await_admin(&mut self, cid: u16) -> Completion {
        let mut answer = None;
        await_that(&format!("the end of admin command {cid}"), || {
            answer = self.heard(cid);
            answer.is_some()
        });
        answer.expect("it has come")
    }

    pub fn admin(&mut self, command: Command) -> Completion {
        let cid = self.submit_admin(command);
        self.await_admin(cid)
    }

    /// An event request: [`Intruder::await_admin`] has the event.
    pub fn listen(&mut self) -> u16 {
        self.submit_admin(Command::new(admin::ASYNC_EVENT, 0, 0))
    }

    pub fn create_completion(&mut self, qid: u16, entries: u32, at: u64) -> Status {
        self.admin(creation(admin::CREATE_CQ, qid, entries, at, 1)).status()
    }

    pub fn create_submission(&mut self, qid: u16, entries: u32, at: u64, completion: u16) -> Status {
        self.admin(creation(admin::CREATE_SQ, qid, entries, at, 1 | u32::from(completion) << 16)).status()
    }

    pub fn delete(&mut self, opcode: u8, qid: u16) -> Status {
        self.admin(Command { cdw10: qid.into(), ..Command::new(opcode, 0, 0) }).status()
    }

    /// Creates pairs of queues until there are so many.
    pub fn create_pairs(&mut self, pairs: usize) {
        for number in self.pairs..pairs {
            self.rings[number].begin_anew();
            let Ring { qid, entries, submissions, completions, .. } = &self.rings[number];
            let (qid, entries, base) = (*qid, *entries, [submissions.at.0, completions.at.0]);
            assert!(self.create_completion(qid, entries, base[1]).is_success());
            assert!(self.create_submission(qid, entries, base[0], qid).is_success());
        }
        self.pairs = self.pairs.max(pairs);
    }

    /// Submits a command on a pair of queues, and says what it goes by.
    pub fn submit(&mut self, ring: usize, command: Command) -> u16 {
        let cid = self.next_cid();
        self.rings[ring].push(&with_cid(command, cid));
        self.ring(ring);
        cid
    }

    /// Rings for what was pushed.
    pub fn ring(&mut self, ring: usize) {
        let Ring { qid, tail, .. } = self.rings[ring];
        self.bell(qid, false, tail);
    }

    /// What has ended on a pair of queues.
    pub fn reap(&mut self, ring: usize) -> Vec<Completion> {
        let found = self.rings[ring].reap();
        if !found.is_empty() {
            let Ring { qid, head, .. } = self.rings[ring];
            self.bell(qid, true, head);
        }
        found
    }

    /// Waits for so many completions on a pair of queues.
    pub fn await_io(&mut self, ring: usize, count: usize) -> Vec<Completion> {
        let mut found = Vec::new();
        let deadline = Instant::now() + WATCHDOG;
        while found.len() < count {
            found.extend(self.reap(ring));
            assert!(Instant::now() < deadline, "{count} commands do not end, only {}", found.len());
            std::thread::sleep(Duration::from_micros(20));
        }
        found
    }

    /// Waits for the end of a command that is alone.
    pub fn io(&mut self, ring: usize, command: Command) -> Completion {
        let cid = self.submit(ring, command);
        let found = self.await_io(ring, 1);
        assert_eq!((found.len(), found[0].cid), (1, cid));
        found[0]
    }

    /// A doorbell, by a message that is not answered.
    pub fn bell(&mut self, qid: u16, is_head: bool, value: u32) {
        let offset = u64::from(DOORBELLS) + u64::from(qid) * 8 + if is_head { 4 } else { 0 };
        let posted = self.client.region_write_posted(BAR0, offset, &value.to_le_bytes());
        posted.expect("the connection stays");
    }

    /// The same in the page that is mapped.
    pub fn store_bell(&self, qid: u16, is_head: bool, value: u32) {
        let page = self.page.as_ref().expect("doorbells that are mapped");
        let offset = page.offset + u64::from(qid) * 8 + if is_head { 4 } else { 0 };
        let place = page.window.slice(offset, 4).expect("a doorbell");
        place.store_u32(0, value.to_le(), Ordering::Release).expect("it is aligned");
    }
}

/// A command with another identifier.
pub fn with_cid(command: Command, cid: u16) -> Command {
    Command { cdw0: command.cdw0 & 0xffff | u32::from(cid) << 16, ..command }
}

/// The creation of a queue.
pub fn creation(opcode: u8, qid: u16, entries: u32, at: u64, cdw11: u32) -> Command {
    let cdw10 = u32::from(qid) | entries.wrapping_sub(1) << 16;
    Command { dptr: [at, 0], cdw10, cdw11, ..Command::new(opcode, 0, 0) }
}

/// A transfer of so many blocks from the first on, by PRP entries.
pub fn transfer(opcode: u8, dptr: [u64; 2], blocks: u32) -> Command {
    Command { dptr, cdw12: blocks.wrapping_sub(1), ..Command::new(opcode, 0, IN_MEMORY) }
}

/// Why a message was refused.
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Errno {
    match outcome {
        Err(ClientError::Refused { errno, .. }) => Errno::from_raw_os_error(errno as i32),
        other => panic!("it was not refused: {other:?}"),
    }
}
