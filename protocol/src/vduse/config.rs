//! What a device is made of.

use super::{DeviceName, MAX_ADDRESS_SPACES, MAX_CONFIG, MAX_GROUPS, MAX_QUEUES};
use crate::sys::vduse::DevConfig;
use crate::virtio::blk::VIRTIO_BLK_F_CONFIG_WCE;
use crate::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use crate::virtio::net::VIRTIO_NET_F_CTRL_VQ;

/// The kinds of devices that the kernel lets a process be.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A network card.
    Net,
    /// A disk.
    Block,
    /// A file system. The vDPA bus takes none.
    FileSystem,
}

impl DeviceKind {
    /// Its number in the virtio specification (section 5).
    pub fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::FileSystem => 26,
        }
    }

    /// The kind with this number, if a process may be one.
    pub fn from_id(id: u32) -> Option<Self> {
        [Self::Net, Self::Block, Self::FileSystem].into_iter().find(|kind| kind.id() == id)
    }
}

/// How many groups of queues and address spaces a device of version 1 has, each at least one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Groups of queues; those of one group are in the same address space.
    pub groups: u32,
    /// Address spaces. All groups start in the first.
    pub address_spaces: u32,
}

/// What a device is made of (`struct vduse_dev_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// What it is called.
    pub name: DeviceName,
    /// What it is.
    pub kind: DeviceKind,
    /// Its vendor, whatever that means.
    pub vendor_id: u32,
    /// The virtio features it has. [`VIRTIO_F_ACCESS_PLATFORM`] must be among them, and for [`DeviceKind::Net`]
    /// [`VIRTIO_F_VERSION_1`].
    pub features: u64,
    /// How many queues it has, at most [`MAX_QUEUES`].
    pub queues: u32,
    /// The alignment of the parts of a ring in bytes, for drivers of the old layout: a power of two from 4 to 4096.
    pub queue_align: u32,
    /// Groups and address spaces. `None` for version 0 and only there.
    pub groups: Option<Groups>,
    /// Its configuration space, at most [`MAX_CONFIG`] bytes. Drivers cannot write to it.
    pub space: Vec<u8>,
}

/// Why no device can be made of this. The kernel would say `EINVAL` to each.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It has too many queues.
    #[error("a VDUSE device has at most {MAX_QUEUES} queues, not {0}")]
    Queues(u32),
    /// The alignment is none.
    #[error("queues of a VDUSE device are aligned to a power of two from 4 to 4096 bytes, not to {0}")]
    Align(u32),
    /// The configuration space is too large.
    #[error("the configuration space of a VDUSE device has at most {MAX_CONFIG} bytes, not {0}")]
    Space(usize),
    /// Too many or too few groups or address spaces.
    #[error("a VDUSE device has 1 to {MAX_GROUPS} groups and address spaces, not {} and {}", .0.groups, .0.address_spaces)]
    Groups(Groups),
    /// It offers no translated addresses.
    #[error("a VDUSE device must offer VIRTIO_F_ACCESS_PLATFORM")]
    NoAccessPlatform,
    /// It is of the old kind.
    #[error("a VDUSE network device must offer VIRTIO_F_VERSION_1")]
    NoVersion1,
    /// It offers what needs a configuration space that drivers write to, or queues that VDUSE has not.
    #[error("a VDUSE device cannot offer {0}; leave it out")]
    Feature(&'static str),
}

impl DeviceConfig {
    /// Whether the kernel would make a device of this (`vduse_validate_config`).
    ///
    /// # Errors
    /// [`ConfigError`]: it would not.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.queues > MAX_QUEUES {
            return Err(ConfigError::Queues(self.queues));
        }
        if !self.queue_align.is_power_of_two() || !(4..=4096).contains(&self.queue_align) {
            return Err(ConfigError::Align(self.queue_align));
        }
        if self.space.len() > MAX_CONFIG {
            return Err(ConfigError::Space(self.space.len()));
        }
        if let Some(wanted) = self.groups
            && (!(1..=MAX_GROUPS).contains(&wanted.groups)
                || !(1..=MAX_ADDRESS_SPACES).contains(&wanted.address_spaces))
        {
            return Err(ConfigError::Groups(wanted));
        }
        let offers = |feature| self.features & feature != 0;
        if !offers(VIRTIO_F_ACCESS_PLATFORM) {
            return Err(ConfigError::NoAccessPlatform);
        }
        match self.kind {
            DeviceKind::Block if offers(VIRTIO_BLK_F_CONFIG_WCE) => {
                Err(ConfigError::Feature("VIRTIO_BLK_F_CONFIG_WCE"))
            }
            DeviceKind::Net if offers(VIRTIO_NET_F_CTRL_VQ) => {
                Err(ConfigError::Feature("VIRTIO_NET_F_CTRL_VQ"))
            }
            DeviceKind::Net if !offers(VIRTIO_F_VERSION_1) => Err(ConfigError::NoVersion1),
            _ => Ok(()),
        }
    }

    /// The structure that the kernel is given, without the configuration space.
    pub(super) fn fields(&self) -> DevConfig {
        let groups = self.groups.unwrap_or(Groups { groups: 0, address_spaces: 0 });
        DevConfig {
            name: self.name.field(),
            vendor_id: self.vendor_id,
            device_id: self.kind.id(),
            features: self.features,
            vq_num: self.queues,
            vq_align: self.queue_align,
            ngroups: groups.groups,
            nas: groups.address_spaces,
            reserved: [0; 11],
            config_size: 0,
        }
    }
}
