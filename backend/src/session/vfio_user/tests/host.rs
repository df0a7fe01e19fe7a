//! A host that enables the controller, and has one pair of I/O queues.

use std::time::Instant;

use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{Client, LentMemory};
use rustix::io::{pread, pwrite};

use super::{ANSWER, lend, map_of};
use crate::driver::{GuestMemory, MemoryOptions, Part, Region};

const ENTRIES: u32 = 16;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Enabled, with entries of 64 and 16 bytes.
const ENABLED: u32 = 0x0046_0001;

/// One pair of queues.
struct Pair {
    qid: u16,
    sq: Part,
    cq: Part,
    tail: u32,
    head: u32,
    phase: bool,
}

pub struct Host {
    pub client: Client,
    /// The queues are in the first region, data in the second.
    pub memory: GuestMemory,
    admin: Pair,
    io: Pair,
    next: u16,
}

impl Host {
    /// Enables the controller and makes a pair of queues.
    pub fn new(client: Client) -> Host {
        Host::with(client, |client, memory| memory.regions().iter().for_each(|region| lend(client, region)))
    }

    /// The same without giving the device any file: it has to ask for every byte.
    pub fn keeping(client: Client) -> Host {
        Host::with(client, |client, memory| {
            for region in memory.regions() {
                client.dma_map(map_of(region), None).unwrap();
            }
            client.lend(Box::new(Kept(memory.regions().to_vec())));
        })
    }

    fn with(mut client: Client, lend: impl FnOnce(&mut Client, &GuestMemory)) -> Host {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let mut pair = |qid| Pair {
            qid,
            sq: memory.allocate(4096, 4096).unwrap(),
            cq: memory.allocate(4096, 4096).unwrap(),
            tail: 0,
            head: 0,
            phase: true,
        };
        let (admin, io) = (pair(0), pair(1));
        memory
            .add_region(MemoryOptions { first: mdev_dma::Iova(1 << 32), ..MemoryOptions::default() })
            .unwrap();
        lend(&mut client, &memory);
        let mut host = Host { client, memory, admin, io, next: 0 };
        host.enable();
        host.create();
        host
    }

    pub fn enable(&mut self) {
        let last = ENTRIES - 1;
        self.write(AQA, &(last << 16 | last).to_le_bytes());
        let (asq, acq) = (self.admin.sq.at.0, self.admin.cq.at.0);
        self.write(ASQ, &asq.to_le_bytes());
        self.write(ACQ, &acq.to_le_bytes());
        self.write(CC, &ENABLED.to_le_bytes());
        assert_eq!(self.status(), 1, "ready");
    }

    fn create(&mut self) {
        let size = (ENTRIES - 1) << 16 | 1;
        let cq = Command {
            dptr: [self.io.cq.at.0, 0],
            cdw10: size,
            cdw11: 1,
            ..Command::new(admin::CREATE_CQ, 0, 0)
        };
        assert_eq!(self.admin(cq), Status::SUCCESS);
        let sq = Command {
            dptr: [self.io.sq.at.0, 0],
            cdw10: size,
            cdw11: 1 << 16 | 1,
            ..Command::new(admin::CREATE_SQ, 0, 0)
        };
        assert_eq!(self.admin(sq), Status::SUCCESS);
    }

    /// The register CSTS.
    pub fn status(&mut self) -> u32 {
        let mut status = [0; 4];
        self.client.region_read(0, CSTS, &mut status).unwrap();
        u32::from_le_bytes(status)
    }

    pub fn write(&mut self, at: u64, data: &[u8]) {
        self.client.region_write(0, at, data).unwrap();
    }

    /// Has an admin command carried out.
    pub fn admin(&mut self, command: Command) -> Status {
        let Host { client, admin, .. } = self;
        admin.submit(client, command);
        admin.reap(client).expect("the command ends").status()
    }

    /// Offers an admin command, and does not listen to what the device asks meanwhile.
    pub fn admin_unheard(&mut self, command: Command) {
        let Host { client, admin, .. } = self;
        admin.submit(client, command);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    /// Whether a completion of the admin queue is there.
    pub fn has_admin_completion(&self) -> bool {
        self.admin.peek().is_some()
    }

    /// The next completion of the admin queue.
    pub fn reap_admin(&mut self) -> Completion {
        let Host { client, admin, .. } = self;
        admin.reap(client).expect("the command ends")
    }

    /// Offers an admin command.
    pub fn submit_admin(&mut self, command: Command) {
        let Host { client, admin, .. } = self;
        admin.submit(client, command);
    }

    /// Offers a read of one block into the data region.
    pub fn read(&mut self) {
        let data = self.memory.regions()[1].range.first().0;
        self.next += 1;
        let command = Command { dptr: [data, 0], ..Command::new(nvm::READ, self.next, 1) };
        let Host { client, io, .. } = self;
        io.submit(client, command);
    }

    /// Offers a command in the I/O queue, whatever its identifier.
    pub fn submit(&mut self, command: Command) {
        let Host { client, io, .. } = self;
        io.submit(client, command);
    }

    /// The next completion of the I/O queue.
    pub fn reap(&mut self) -> Option<Completion> {
        let Host { client, io, .. } = self;
        io.reap(client)
    }

    /// The same for one that is there, without an ear for what the device asks.
    pub fn reap_unserved(&mut self) -> Completion {
        assert!(self.has_completion());
        self.reap().unwrap()
    }

    /// Whether there is one.
    pub fn has_completion(&self) -> bool {
        self.io.peek().is_some()
    }
}

/// Memory that the client reads and writes for the device.
struct Kept(Vec<Region>);

impl Kept {
    /// Where in which file some bytes are.
    fn find(&self, address: u64, len: usize) -> Result<(&Region, u64), u32> {
        let there = |region: &&Region| {
            let first = region.range.first().0;
            address >= first && address + len as u64 <= first + region.size()
        };
        let region = self.0.iter().find(there).ok_or(14u32)?;
        Ok((region, region.extent.offset + address - region.range.first().0))
    }
}

impl LentMemory for Kept {
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), u32> {
        let (region, offset) = self.find(address, data.len())?;
        assert_eq!(pread(region.extent.file.as_fd(), &mut *data, offset).unwrap(), data.len());
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), u32> {
        let (region, offset) = self.find(address, data.len())?;
        assert_eq!(pwrite(region.extent.file.as_fd(), data, offset).unwrap(), data.len());
        Ok(())
    }
}

impl Pair {
    fn doorbell(&self, completion: bool) -> u64 {
        DOORBELLS + u64::from(self.qid) * 8 + if completion { 4 } else { 0 }
    }

    fn submit(&mut self, client: &mut Client, command: Command) {
        self.sq.slice().unwrap().write(self.tail as usize * Command::LEN, command).unwrap();
        self.tail = (self.tail + 1) % ENTRIES;
        client.region_write_posted(0, self.doorbell(false), &self.tail.to_le_bytes()).unwrap();
    }

    fn peek(&self) -> Option<Completion> {
        let entry: Completion = self.cq.slice().unwrap().read(self.head as usize * Completion::LEN).unwrap();
        (entry.phase() == self.phase).then_some(entry)
    }

    fn reap(&mut self, client: &mut Client) -> Option<Completion> {
        let since = Instant::now();
        let entry = loop {
            match self.peek() {
                Some(entry) => break entry,
                None if since.elapsed() > ANSWER => return None,
                None => {
                    // The device may want something of the client first.
                    client.serve().unwrap();
                    std::thread::yield_now();
                }
            }
        };
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        client.region_write_posted(0, self.doorbell(true), &self.head.to_le_bytes()).unwrap();
        Some(entry)
    }
}
