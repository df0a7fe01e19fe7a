//! A daemon in this process.
use super::device::{Grip, HeldDevice};
use crate::daemon::{Endpoint, Model};
use crate::device::net::{self, NetConfig, NetDevice};
use crate::device::nvme::{self, Namespace, NamespaceConfig, NvmeConfig, NvmeDevice};
use crate::device::{Device, QueueCounters, QueueNames, blk};
use crate::link::LinkKind;
use crate::regress::hosted::Hosted;
use crate::regress::scenario::{Failure, Outcome, expect_equal};
use crate::regress::space::LONG;
use crate::session::SessionOptions;
use crate::store::held::Held;
use crate::store::{Store, StoreKind};
use mdev_protocol::{vfio_user, vhost_user};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The name of controllers.
const NVME: &str = "nvme";

/// A device that front-ends can reach at a socket with a name but no file.
pub struct Server {
    address: SocketAddrUnix,
    device: Arc<dyn Device>,
    daemon: Hosted,
}

impl Server {
    /// Starts a loopback device.
    pub fn start() -> Result<Server, Failure> {
        let config = NetConfig {
            name: "net".to_owned(),
            queue_pairs: 1,
            mac: None,
            mtu: None,
            link: LinkKind::Loopback,
        };
        let device = Arc::new(NetDevice::new(config)?);
        Server::of(device, net::QUEUE_NAMES, SessionOptions::default())
    }

    /// Starts an NVMe controller on a store of this kind.
    pub fn nvme(store: StoreKind) -> Result<Server, Failure> {
        let config = NamespaceConfig::new(1, store);
        let namespace = Namespace::open(NVME, &config)?;
        Server::of_namespace(namespace, SessionOptions::default())
    }

    /// The same on this store, that may keep memory for `barrier` when it is taken away.
    pub fn nvme_held(held: &Held, barrier: Duration) -> Result<Server, Failure> {
        let config = NamespaceConfig::new(1, StoreKind::Null { size: held.size() });
        let namespace = Namespace::on(NVME, &config, Store::Held(held.clone()));
        Server::of_namespace(namespace, SessionOptions { barrier, ..Default::default() })
    }

    fn of_namespace(namespace: Namespace, sessions: SessionOptions) -> Result<Server, Failure> {
        let config = NvmeConfig { name: NVME.to_owned(), namespaces: Vec::new(), queues: 2, serial: None };
        let device = Arc::new(NvmeDevice::with_namespaces(config, vec![(namespace, true)])?);
        Server::of(device, nvme::QUEUE_NAMES, sessions)
    }

    /// Starts a device on this store, with so many queues, that may keep memory for `barrier` when it is taken away.
    pub fn held(held: &Held, queues: u16, barrier: Duration) -> Result<Server, Failure> {
        let device = Arc::new(HeldDevice::new(held.clone(), queues, Grip::Kernel)?);
        Server::of_held(device, barrier)
    }

    /// The same with a device that cannot cancel its requests.
    pub fn stubborn(held: &Held, queues: u16, barrier: Duration) -> Result<Server, Failure> {
        let device = Arc::new(HeldDevice::new(held.clone(), queues, Grip::Stubborn)?);
        Server::of_held(device, barrier)
    }

    /// The same with one queue and a device that reaches guest memory by nothing but the processor.
    pub fn copying(held: &Held, barrier: Duration) -> Result<Server, Failure> {
        Server::of_held(Arc::new(HeldDevice::new(held.clone(), 1, Grip::Copies)?), barrier)
    }

    fn of_held(device: Arc<HeldDevice>, barrier: Duration) -> Result<Server, Failure> {
        Server::of(device, blk::QUEUE_NAMES, SessionOptions { barrier, ..Default::default() })
    }

    fn of(model: impl Into<Model>, queues: QueueNames, sessions: SessionOptions) -> Result<Server, Failure> {
        let model = model.into();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mdevd-regress-{}-{number}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
        let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        bind(&socket, &address)?;
        listen(&socket, 16)?;
        // Nobody else has this number, which was a descriptor of ours until now.
        let endpoint = Endpoint::inherited(socket.into_raw_fd())?;
        let device = model.device();
        let daemon = Hosted::start(model, endpoint, queues, sessions)?;
        Ok(Server { address, device, daemon })
    }

    /// A connection to a virtio device.
    pub fn client(&self) -> Result<vhost_user::Client, Failure> {
        Ok(vhost_user::Client::new(self.socket()?, LONG))
    }

    /// A connection to a controller.
    pub fn vfio_client(&self) -> Result<vfio_user::Client, Failure> {
        Ok(vfio_user::Client::new(self.socket()?, LONG))
    }

    fn socket(&self) -> Result<OwnedFd, Failure> {
        let socket = stream(SocketFlags::CLOEXEC)?;
        connect(&socket, &self.address)?;
        Ok(socket)
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

    /// Ends the daemon, which must have nothing to complain about.
    pub fn end(self) -> Outcome {
        self.daemon.end()
    }
}

fn stream(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// How often guests' memory is mapped by the daemons and front-ends of this process.
pub fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains("/memfd:guest-memory")).count()
}
