//! Block devices over vhost-user. A request is held for all of the phase while memory is taken from its device (`REM_MEM_REG` waits), or
//! a ring of it is stopped, or it is reset, and a second front-end adds and removes memory at the pace.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mdev_dma::Iova;
use mdev_protocol::vhost_user::{FrontendMessage, MemoryRegion, ProtocolFeatures};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdevd::daemon::{Kind, Model, Plan};
use mdevd::device::blk::{BlkConfig, BlkDevice};
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, Region, RingFds, RingOptions, SplitQueue};
use mdevd::store::held::Held;
use mdevd::store::{Store, StoreKind};

use super::{ANSWER, BLOCK, Outcome, PHASE, SIZE, Scene, hold};

/// A front-end with one ring.
pub struct Guest {
    memory: GuestMemory,
    queue: BlkQueue<SplitQueue>,
    fds: RingFds,
    front: FrontEnd,
}

impl Guest {
    /// One whose ring does not run yet.
    fn share(path: &Path) -> Outcome<Guest> {
        let mut memory = GuestMemory::new(MemoryOptions::default())?;
        let options = BlkQueueOptions { ring: RingOptions::plain(16), requests: 4, capacity: BLOCK };
        let queue = BlkQueue::new(&mut memory, options)?;
        let protocol = FrontEnd::usual_protocol() | ProtocolFeatures::STATUS | ProtocolFeatures::RESET_DEVICE;
        let mut front = FrontEnd::connect(path, ANSWER, VIRTIO_F_VERSION_1, 0, protocol)?;
        front.share(&memory)?;
        Ok(Guest { memory, queue, fds: RingFds::new()?, front })
    }

    fn start(&mut self) -> Outcome {
        Ok(self.front.start(0, &self.queue.queue, &self.fds, &self.memory)?)
    }

    fn submit(&mut self) -> Outcome {
        self.queue.submit_one(Request::Read { sector: 0, len: BLOCK })?;
        if self.queue.publish() {
            self.fds.kick.signal();
        }
        Ok(())
    }
}

fn named(region: &Region) -> MemoryRegion {
    MemoryRegion {
        guest_addr: region.range.first().0,
        size: region.size(),
        user_addr: region.user.0,
        mmap_offset: region.extent.offset,
    }
}

/// Holds a request for a phase, and lets something wait for it.
fn wait_for_it(path: &Path, held: &Held, done: &str) -> Outcome {
    let mut guest = Guest::connect(path)?;
    guest.submit()?;
    let begun = hold(held)?;
    match done {
        "unmap" => {
            let region = guest.memory.regions().first().map(named).ok_or("no memory")?;
            guest.front.client().remove_mem_region(region)?;
        }
        "stop" => {
            guest.front.stop(0)?;
        }
        _ => {
            guest.front.client().call(&FrontendMessage::ResetDevice, &[])?;
        }
    }
    if begun.elapsed() < PHASE { Err("nothing has waited for the request".into()) } else { Ok(()) }
}

/// Adds and removes memory on the first device, once in each `pace`, until it is told to end. How often.
fn churn(path: &Path, pace: Duration, over: &AtomicBool) -> Outcome<u32> {
    let mut guest = Guest::share(path)?;
    let first = Iova(1 << 32);
    guest.memory.add_region(MemoryOptions { first, ..MemoryOptions::default() })?;
    let mut rounds = 0;
    while !over.load(Ordering::Relaxed) {
        let Guest { memory, front, .. } = &mut guest;
        let region = memory.regions().last().ok_or("no memory")?;
        front.client().add_mem_region(named(region), region.extent.file.as_fd())?;
        front.client().remove_mem_region(named(region))?;
        rounds += 1;
        std::thread::sleep(pace);
    }
    Ok(rounds)
}

impl Scene for Guest {
    const DONE: [&str; 3] = ["unmap", "stop", "reset"];

    fn kind(name: &str) -> Kind {
        let store = StoreKind::Null { size: SIZE };
        Kind::Blk(BlkConfig { name: name.to_owned(), store, queues: 1, read_only: false, serial: None })
    }

    fn make(plan: &Plan, held: &Held) -> Result<Model, String> {
        let Kind::Blk(config) = &plan.kind else { return Err("a block device is wanted".to_owned()) };
        let store = match plan.name.as_str() {
            "held" => Store::Held(held.clone()),
            _ => Store::open(&config.store).map_err(|error| error.to_string())?,
        };
        BlkDevice::on(config.clone(), store).map(Model::from).map_err(|error| error.to_string())
    }

    fn connect(path: &Path) -> Outcome<Guest> {
        let mut guest = Guest::share(path)?;
        guest.start()?;
        Ok(guest)
    }

    fn read(&mut self) -> Outcome {
        self.submit()?;
        while self.queue.reap(1, |_, _| {})? == 0 {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn disturb(path: &Path, held: &Held, done: &str, pace: Duration) -> Outcome<u32> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let churner = scope.spawn(|| churn(path, pace, &over));
            let waited = wait_for_it(path, held, done);
            over.store(true, Ordering::Relaxed);
            let rounds = churner.join().map_err(|_| "the unmaps failed")??;
            waited.map(|()| rounds)
        })
    }
}
