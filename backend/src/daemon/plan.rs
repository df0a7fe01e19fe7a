//! What a process is to serve, as its operator has written it down.

use std::fmt;
use std::path::PathBuf;

use crate::device::QueueNames;
use crate::device::blk::{self, BlkConfig};
use crate::device::net::{self, NetConfig};
use crate::device::nvme::{self, NvmeConfig};
use crate::link::{LinkKind, LinkName};
use crate::session::SessionOptions;
use crate::store::{FileOptions, StoreKind};

use super::endpoint::{Endpoint, EndpointError};
use super::kernel_device::KernelDoor;
use super::model::Model;

/// A device that is to be served. Nothing of it exists yet.
///
/// Two plans that are equal are the same device: it stays as it is when its file is read again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its name in logs and statistics, which no other device of the process has.
    pub name: String,
    /// Where its front-ends come from.
    pub door: Door,
    /// What it is.
    pub kind: Kind,
    /// The workers that its queues may run on, counted from 0; all if empty.
    pub workers: Vec<usize>,
    /// What each connection is served with.
    pub sessions: SessionOptions,
}

/// Where a device's front-ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// We listen.
    Listen {
        /// The socket's file, made when the device begins.
        path: PathBuf,
        /// Its permissions, if the umask is not to decide.
        mode: Option<u32>,
    },
    /// The front-end listens.
    Dial {
        /// The socket's file, which is the front-end's.
        path: PathBuf,
    },
    /// The host's own kernel has drivers for it.
    Kernel(KernelDoor),
}

/// What kind of device.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A network device.
    Net(NetConfig),
    /// A block device.
    Blk(BlkConfig),
    /// An NVMe controller.
    Nvme(NvmeConfig),
}

/// What a device has to itself in the world behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Own {
    /// An interface of the host.
    Interface(LinkName),
    /// A file that it writes.
    Image(PathBuf),
}

/// The plans of a process, which may change while it runs.
pub trait Plans: Send {
    /// The plans as they are now: names, paths and what devices have to themselves differ, workers exist.
    ///
    /// # Errors
    /// What is wrong with them, a line each. What is served then stays as it is.
    fn read(&mut self) -> Result<Vec<Plan>, Vec<String>>;

    /// Makes the device of a plan. What devices of the process share, the maker keeps.
    ///
    /// # Errors
    /// What the operator has to change.
    fn make(&mut self, plan: &Plan) -> Result<Model, String>;
}

impl Door {
    /// The socket's file, or the device's.
    pub fn path(&self) -> PathBuf {
        match self {
            Door::Listen { path, .. } | Door::Dial { path } => path.clone(),
            Door::Kernel(door) => door.name.path(),
        }
    }

    pub(super) fn open(&self) -> Result<Endpoint, EndpointError> {
        match self {
            Door::Listen { path, mode } => Endpoint::bind(path, *mode),
            Door::Dial { path } => Endpoint::dial(path),
            Door::Kernel(door) => Ok(Endpoint::Kernel(door.clone())),
        }
    }
}

impl Kind {
    /// What it has to itself.
    pub fn own(&self) -> Vec<Own> {
        match self {
            Kind::Net(NetConfig { link: LinkKind::Tap(name), .. }) => vec![Own::Interface(*name)],
            Kind::Net(_) => Vec::new(),
            Kind::Blk(config) => image(&config.store).into_iter().collect(),
            Kind::Nvme(config) => config.namespaces.iter().filter_map(|one| image(&one.store)).collect(),
        }
    }

    /// Queues that can run beside each other.
    pub fn groups(&self) -> u16 {
        match self {
            Kind::Net(config) => config.queue_pairs,
            Kind::Blk(config) => config.queues,
            Kind::Nvme(config) => config.queues,
        }
    }

    /// What its queues are called in counters.
    pub(super) fn queue_names(&self) -> QueueNames {
        match self {
            Kind::Net(_) => net::QUEUE_NAMES,
            Kind::Blk(_) => blk::QUEUE_NAMES,
            Kind::Nvme(_) => nvme::QUEUE_NAMES,
        }
    }
}

/// The file that a store writes.
fn image(store: &StoreKind) -> Option<Own> {
    match store {
        StoreKind::File(FileOptions { path, read_only: false, .. }) => {
            Some(Own::Image(std::path::absolute(path).unwrap_or_else(|_| path.clone())))
        }
        _ => None,
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Own::Interface(name) => write!(f, "interface {name}"),
            Own::Image(path) => write!(f, "file {}", path.display()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Net(_) => "a network device",
            Kind::Blk(_) => "a block device",
            Kind::Nvme(_) => "an NVMe controller",
        };
        match &self.door {
            Door::Listen { path, .. } => write!(f, "{what} on {}", path.display()),
            Door::Dial { path } => write!(f, "{what} to whoever listens on {}", path.display()),
            Door::Kernel(door) => write!(f, "{what} to the kernel, as VDUSE device {}", door.name),
        }
    }
}

impl Plan {
    /// Whether the two cannot be served at the same time.
    pub(super) fn collides(&self, other: &Plan) -> bool {
        let theirs = other.kind.own();
        self.name == other.name
            || self.door.path() == other.door.path()
            || self.kind.own().iter().any(|own| theirs.contains(own))
    }
}
