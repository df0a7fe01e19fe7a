//! A device of this host's kernel, on the vDPA bus, that a daemon in this process serves.
use super::disk;
use crate::daemon::{Endpoint, KernelDoor};
use crate::device::blk::{BlkConfig, BlkDevice};
use crate::device::net::{self, NetConfig, NetDevice};
use crate::device::{QueueCounters, QueueNames, VirtioDevice, blk};
use crate::driver::vdpa::{BusDevice, VdpaFrontEnd};
use crate::link::LinkKind;
use crate::regress::hosted::Hosted;
use crate::regress::scenario::{Failure, Outcome, expect_equal};
use crate::regress::socket::device::{Grip, HeldDevice};
use crate::regress::space::{LONG, await_that};
use crate::session::SessionOptions;
use crate::store::StoreKind;
use crate::store::held::Held;
use mdev_protocol::vduse::{Control, DEVICE_FOLDER, DeviceName};
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What this host lacks, if it cannot play these scenarios.
pub fn missing() -> Option<String> {
    let control = Control::open().map(drop).map_err(|error| error.to_string());
    control.and_then(|()| BusDevice::check().map_err(|error| error.to_string())).err()
}

/// A name that no other device has, and a folder for what is recorded of it.
pub struct Place {
    /// The device's.
    pub name: DeviceName,
    /// Goes with it.
    pub folder: PathBuf,
}

impl Place {
    /// One more of this process.
    pub fn new() -> Result<Place, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mdevd-regress-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder)?;
        Ok(Place { name: name.parse()?, folder })
    }

    /// Whether the kernel has the device.
    pub fn is_there(&self) -> bool {
        Path::new(DEVICE_FOLDER).join(self.name.as_str()).exists()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left in the folder of the temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A device on the bus, and the daemon that serves it. Front-ends must be gone when it goes.
pub struct KernelServer {
    bus: BusDevice,
    daemon: Hosted,
    device: Arc<dyn VirtioDevice>,
    queues: QueueNames,
    /// The features that its drivers want.
    wanted: u64,
    place: Place,
}

impl KernelServer {
    /// A loopback device.
    pub fn start() -> Result<KernelServer, Failure> {
        let name = "net".to_owned();
        let config = NetConfig { name, queue_pairs: 1, mac: None, mtu: None, link: LinkKind::Loopback };
        KernelServer::of(Arc::new(NetDevice::new(config)?), net::QUEUE_NAMES, VIRTIO_NET_F_MRG_RXBUF)
    }

    /// A disk in memory.
    pub fn disk() -> Result<KernelServer, Failure> {
        let store = StoreKind::Memory { size: disk::SIZE };
        let config = BlkConfig { name: "disk".to_owned(), store, queues: 1, read_only: false, serial: None };
        KernelServer::of(Arc::new(BlkDevice::new(config)?), blk::QUEUE_NAMES, 0)
    }

    /// A device on this store, with so many queues.
    pub fn held(held: &Held, queues: u16, grip: Grip) -> Result<KernelServer, Failure> {
        KernelServer::of(Arc::new(HeldDevice::new(held.clone(), queues, grip)?), blk::QUEUE_NAMES, 0)
    }

    fn of(device: Arc<dyn VirtioDevice>, queues: QueueNames, wanted: u64) -> Result<KernelServer, Failure> {
        let place = Place::new()?;
        let daemon = serve(device.clone(), queues, &place)?;
        let appeared = await_that("the kernel has the device", || place.is_there() || daemon.has_ended());
        if daemon.has_ended() {
            daemon.end()?;
            return Err(Failure::new("the daemon ended before it served"));
        }
        appeared?;
        let bus = BusDevice::add(&place.name, LONG)?;
        Ok(KernelServer { bus, daemon, device, queues, wanted, place })
    }

    /// The file of the front-end.
    pub fn path(&self) -> &Path {
        self.bus.path()
    }

    /// The only front-end, once those before have gone.
    pub fn open(&self) -> Result<VdpaFrontEnd, Failure> {
        self.open_with(0)
    }

    /// The same with more features.
    pub fn open_with(&self, features: u64) -> Result<VdpaFrontEnd, Failure> {
        Ok(VdpaFrontEnd::open(self.path(), self.wanted | features, 0)?)
    }

    /// Ends the daemon, does `between`, and starts another one of a device that knows nothing of the one before.
    pub fn restart(
        self,
        device: Arc<dyn VirtioDevice>,
        between: impl FnOnce() -> Outcome,
    ) -> Result<KernelServer, Failure> {
        let KernelServer { bus, daemon, queues, wanted, place, .. } = self;
        daemon.end()?;
        between()?;
        let daemon = serve(device.clone(), queues, &place)?;
        Ok(KernelServer { bus, daemon, device, queues, wanted, place })
    }

    /// The counters of a queue.
    pub fn counters(&self, queue: u16) -> QueueCounters {
        self.device.queue_stats(queue).map(|stats| stats.counters()).unwrap_or_default()
    }

    /// Fails if a queue has failed or was ever without its memory.
    pub fn is_clean(&self) -> Outcome {
        for queue in 0..self.device.queue_count() {
            let counters = self.counters(queue);
            expect_equal((counters.errors, counters.parks), (0, 0), "errors and parks of the other device")?;
        }
        Ok(())
    }

    /// Frames that the device has taken so far.
    pub fn taken(&self) -> u64 {
        self.counters(1).packets
    }

    /// Takes the device off the bus and ends the daemon, which must have nothing to complain about: neither may the kernel have
    /// given the device up, nor may anything of it be left there.
    pub fn end(self) -> Outcome {
        let KernelServer { bus, daemon, place, .. } = self;
        bus.remove()?;
        daemon.end()?;
        await_that("the kernel's device goes", || !place.is_there())
    }
}

fn serve(device: Arc<dyn VirtioDevice>, queues: QueueNames, place: &Place) -> Result<Hosted, Failure> {
    let door = KernelDoor {
        name: place.name.clone(),
        keep: false,
        state_dir: place.folder.clone(),
        own_bounce: false,
    };
    Hosted::start(device.into(), Endpoint::Kernel(door), queues, SessionOptions::default())
}
