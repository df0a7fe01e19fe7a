//! NVMe controllers over vfio-user. A controller has one client, which holds a read of its own and does at the pace, on the same controller:
//!
//! - *maps*: it lends memory and takes it back, and rings doorbells of no queue, and with values that no queue has.
//! - *reset*: it resets the controller, which cancels the read, and sets it up anew with another.
//!
//! Or, once in a phase:
//!
//! - *unmap*: it unmaps the memory under the read, which waits for its end.

use std::path::Path;
use std::time::Duration;

use mdev_dma::Iova;
use mdev_protocol::nvme::register::{CSTS, DOORBELLS};
use mdevd::daemon::{Kind, Model, Plan};
use mdevd::device::nvme::{Namespace, NamespaceConfig, NvmeConfig, NvmeDevice};
use mdevd::driver::nvme::{
    DoorbellWay, Function, NvmeController, NvmeError, NvmeQueue, NvmeQueueOptions, NvmeRequest, Pointers,
};
use mdevd::driver::{GuestMemory, MemoryOptions};
use mdevd::store::held::Held;
use mdevd::store::{Store, StoreKind};

use super::{ANSWER, BLOCK, Outcome, PHASE, SIZE, Scene, hold};

const OPTIONS: NvmeQueueOptions = NvmeQueueOptions {
    qid: 1,
    nsid: 1,
    block: 512,
    entries: 16,
    requests: 4,
    capacity: BLOCK,
    pointers: Pointers::Prp,
};

/// A host with one pair of queues.
pub struct Host {
    queue: NvmeQueue,
    controller: NvmeController,
}

impl Host {
    fn over(path: &Path, memory: GuestMemory, way: DoorbellWay) -> Outcome<Host> {
        let mut controller = NvmeController::connect(path, ANSWER, memory, way)?;
        let queue = NvmeQueue::new(&mut controller, OPTIONS)?;
        Ok(Host { queue, controller })
    }

    fn submit(&mut self) -> Outcome {
        self.queue.submit_one(NvmeRequest::Read { block: 0, len: BLOCK })?;
        Ok(self.queue.publish()?)
    }
}

/// Doorbells of no queue, and of a queue with values that it cannot have; then what is right.
fn ring_wrongly(function: &Function) -> Result<(), NvmeError> {
    for (place, value) in [(0x40, 1), (0xff8, u32::MAX), (8, 0xffff), (12, u32::MAX), (8, 1), (12, 0)] {
        function.write32(DOORBELLS + place, value)?;
    }
    function.read32(CSTS).map(drop)
}

impl Scene for Host {
    const DONE: [&str; 3] = ["maps", "unmap", "reset"];

    fn kind(name: &str) -> Kind {
        let namespaces = vec![NamespaceConfig::new(1, StoreKind::Null { size: SIZE })];
        Kind::Nvme(NvmeConfig { name: name.to_owned(), namespaces, queues: 1, serial: None })
    }

    fn make(plan: &Plan, held: &Held) -> Result<Model, String> {
        let Kind::Nvme(config) = &plan.kind else { return Err("an NVMe controller is wanted".to_owned()) };
        let namespace = config.namespaces.first().ok_or("a namespace is wanted")?;
        let store = match plan.name.as_str() {
            "held" => Store::Held(held.clone()),
            _ => Store::open(&namespace.store).map_err(|error| error.to_string())?,
        };
        let namespaces = vec![(Namespace::on(&config.name, namespace, store), true)];
        let device = NvmeDevice::with_namespaces(config.clone(), namespaces);
        device.map(|device| Model::Nvme(device.into())).map_err(|error| error.to_string())
    }

    fn connect(path: &Path) -> Outcome<Host> {
        Host::over(path, GuestMemory::new(MemoryOptions::default())?, DoorbellWay::Mapped)
    }

    fn read(&mut self) -> Outcome {
        self.submit()?;
        while self.queue.reap(1, |_, _| {})? == 0 {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn disturb(path: &Path, held: &Held, done: &str, pace: Duration) -> Outcome<u32> {
        // Each reset takes new memory for its queues.
        let memory = GuestMemory::new(MemoryOptions { size: 1 << 30, ..MemoryOptions::default() })?;
        let mut host = Host::over(path, memory, DoorbellWay::Trapped)?;
        let function = host.controller.function().clone();
        host.submit()?;
        let begun = hold(held)?;
        if done == "unmap" {
            function.take_back(host.controller.memory())?;
            return if begun.elapsed() < PHASE {
                Err("nothing has waited for the read".into())
            } else {
                Ok(1)
            };
        }
        let first = Iova(1 << 32);
        let more = GuestMemory::new(MemoryOptions { first, ..MemoryOptions::default() })?;
        let mut rounds = 0;
        while begun.elapsed() < PHASE {
            if done == "reset" {
                host.controller.reset()?;
                host.queue = NvmeQueue::new(&mut host.controller, OPTIONS)?;
                host.submit()?;
            } else {
                function.lend(&more)?;
                ring_wrongly(&function)?;
                function.take_back(&more)?;
            }
            rounds += 1;
            std::thread::sleep(pace);
        }
        Ok(rounds)
    }
}
