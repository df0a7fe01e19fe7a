//! The front-end: hands memory and rings to a device of the kernel's, and takes them back.
use crate::driver::{GuestMemory, Region, RingFds, Virtqueue};
use mdev_protocol::vhost_user::IotlbPerm;
use mdev_protocol::vhost_vdpa::{BackendFeatures, VdpaError, VdpaRing, VhostVdpa};
use mdev_protocol::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use mdev_protocol::virtio::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use std::os::fd::AsFd;
use std::path::Path;

/// There is one address space.
const ADDRESS_SPACE: u32 = 0;

/// What of the kernel's abilities is used, where it has them.
const USED: BackendFeatures = BackendFeatures::IOTLB_MSG_V2
    .union(BackendFeatures::IOTLB_BATCH)
    .union(BackendFeatures::IOTLB_ASID)
    .union(BackendFeatures::SUSPEND)
    .union(BackendFeatures::ENABLE_AFTER_DRIVER_OK);

/// Why a device of the kernel's cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum VdpaFrontEndError {
    /// The kernel refused something.
    #[error(transparent)]
    Vdpa(#[from] VdpaError),
    /// The device lacks features without which it cannot be driven.
    #[error("the device lacks virtio features that are needed: bits {missing:#x} of {offered:#x}")]
    Features {
        /// The masks that are missing.
        missing: u64,
        /// What the device offers.
        offered: u64,
    },
    /// The kernel does not speak the messages of today.
    #[error(
        "this kernel's vhost-vdpa takes no messages of version 2 or no batches; use Linux 5.8 or a later one"
    )]
    Kernel,
    /// The device did not take a status.
    #[error(
        "the device did not take the status {wanted:#x}, it is at {found:#x}; its daemon's log may say why"
    )]
    Status {
        /// What it was to take.
        wanted: u8,
        /// What it has.
        found: u8,
    },
    /// The device has too few queues, or too small ones.
    #[error("the device has no queue {index} of {size} descriptors: it has {queues}, of at most {greatest}")]
    Queue {
        /// The queue that is wanted.
        index: u32,
        /// Descriptors of the ring.
        size: u16,
        /// Queues of the device.
        queues: u32,
        /// Descriptors that a ring of it may have.
        greatest: u16,
    },
}

/// A change of the memory that a device reaches.
#[derive(Copy, Clone)]
pub enum MemoryChange<'r> {
    /// It may reach this.
    Lend(&'r Region),
    /// It may not any more.
    TakeBack(&'r Region),
}

/// A device that this process drives. Dropping it resets the device, and waits for that.
#[derive(Debug)]
pub struct VdpaFrontEnd {
    vdpa: VhostVdpa,
    required: u64,
    optional: u64,
    features: u64,
    abilities: BackendFeatures,
}

impl VdpaFrontEnd {
    /// Opens a device's file, becomes its owner and agrees on features: the device's that are in `required` or `optional`, and
    /// those without which no device of the kernel works.
    ///
    /// # Errors
    /// [`VdpaFrontEndError`].
    pub fn open(path: &Path, required: u64, optional: u64) -> Result<Self, VdpaFrontEndError> {
        let vdpa = VhostVdpa::open(path)?;
        vdpa.set_owner()?;
        let abilities = vdpa.backend_features()? & USED;
        if !abilities.contains(BackendFeatures::IOTLB_MSG_V2 | BackendFeatures::IOTLB_BATCH) {
            return Err(VdpaFrontEndError::Kernel);
        }
        vdpa.set_backend_features(abilities)?;
        let required = required | VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM;
        let mut front = VdpaFrontEnd { vdpa, required, optional, features: 0, abilities };
        front.negotiate()?;
        Ok(front)
    }

    fn negotiate(&mut self) -> Result<(), VdpaFrontEndError> {
        self.reach(ACKNOWLEDGE)?;
        self.reach(ACKNOWLEDGE | DRIVER)?;
        let offered = self.vdpa.features()?;
        let missing = self.required & !offered;
        if missing != 0 {
            return Err(VdpaFrontEndError::Features { missing, offered });
        }
        self.features = offered & (self.required | self.optional);
        self.vdpa.set_features(self.features)?;
        self.reach(ACKNOWLEDGE | DRIVER | FEATURES_OK)
    }

    /// Sets the status, and sees whether the device has taken it.
    fn reach(&self, wanted: u8) -> Result<(), VdpaFrontEndError> {
        self.vdpa.set_status(wanted)?;
        match self.vdpa.status()? {
            found if found & wanted == wanted => Ok(()),
            found => Err(VdpaFrontEndError::Status { wanted, found }),
        }
    }

    /// The virtio features that were agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What of the kernel's abilities is used.
    pub fn abilities(&self) -> BackendFeatures {
        self.abilities
    }

    /// The device's file, for requests that are not covered here.
    pub fn vdpa(&self) -> &VhostVdpa {
        &self.vdpa
    }

    /// Lends all of the guest's memory.
    ///
    /// # Errors
    /// As [`VdpaFrontEnd::change`].
    pub fn share(&self, memory: &GuestMemory) -> Result<(), VdpaFrontEndError> {
        let all: Vec<_> = memory.regions().iter().map(MemoryChange::Lend).collect();
        self.change(&all)
    }

    /// Lends a region.
    ///
    /// # Errors
    /// As [`VdpaFrontEnd::change`].
    pub fn lend(&self, region: &Region) -> Result<(), VdpaFrontEndError> {
        self.change(&[MemoryChange::Lend(region)])
    }

    /// Takes a region back. When this returns the device does not reach it any more, unless it is broken: the kernel does not say.
    ///
    /// # Errors
    /// [`VdpaError::Memory`].
    pub fn take_back(&self, region: &Region) -> Result<(), VdpaFrontEndError> {
        Ok(self.vdpa.unmap(ADDRESS_SPACE, region.range.first().0, region.size())?)
    }

    /// Changes the device's memory all at once.
    ///
    /// # Errors
    /// [`VdpaError::Memory`]: the device reaches something at such an address already, or the changes are none. What was before it
    /// is changed.
    pub fn change(&self, changes: &[MemoryChange<'_>]) -> Result<(), VdpaFrontEndError> {
        self.vdpa.begin_batch(ADDRESS_SPACE)?;
        let changed = changes.iter().try_for_each(|change| match change {
            MemoryChange::Lend(region) => {
                let file = (region.extent.file.as_fd(), region.extent.offset);
                let both = IotlbPerm::READ | IotlbPerm::WRITE;
                self.vdpa.map(ADDRESS_SPACE, region.range.first().0, region.size(), file, both)
            }
            MemoryChange::TakeBack(region) => {
                self.vdpa.unmap(ADDRESS_SPACE, region.range.first().0, region.size())
            }
        });
        // Whatever became of it: nothing else can be changed before.
        let told = self.vdpa.end_batch(ADDRESS_SPACE);
        Ok(changed.and(told)?)
    }

    /// Describes a ring, from its own base on, and enables it. It runs from [`VdpaFrontEnd::run`] on.
    ///
    /// # Errors
    /// [`VdpaFrontEndError::Queue`], [`VdpaFrontEndError::Vdpa`].
    pub fn start(&self, index: u32, queue: &impl Virtqueue, fds: &RingFds) -> Result<(), VdpaFrontEndError> {
        let (queues, greatest) = (self.vdpa.queue_count()?, self.vdpa.max_ring_size()?);
        let size = queue.options().size;
        if index >= queues || size > greatest {
            return Err(VdpaFrontEndError::Queue { index, size, queues, greatest });
        }
        let addresses = queue.addresses();
        let ring = VdpaRing { desc: addresses.desc.0, driver: addresses.avail.0, device: addresses.used.0 };
        self.vdpa.set_ring_size(index, size)?;
        self.vdpa.set_ring_base(index, queue.base())?;
        self.vdpa.set_ring(index, ring)?;
        self.vdpa.set_call(index, Some(fds.call.as_fd()))?;
        self.vdpa.set_err(index, Some(fds.err.as_fd()))?;
        self.vdpa.set_kick(index, Some(fds.kick.as_fd()))?;
        self.vdpa.set_ring_enabled(index, true)?;
        Ok(())
    }

    /// The driver is ready: rings that are enabled run. Those that were kicked before are looked at.
    ///
    /// # Errors
    /// [`VdpaFrontEndError::Status`]: the device did not begin.
    pub fn run(&self) -> Result<(), VdpaFrontEndError> {
        self.reach(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    }

    /// Stops all rings, until a reset. What the device has taken by now is finished.
    ///
    /// # Errors
    /// [`VdpaError::Unsupported`], [`VdpaError::DeviceFailed`].
    pub fn suspend(&self) -> Result<(), VdpaFrontEndError> {
        Ok(self.vdpa.suspend()?)
    }

    /// Resets the device, and agrees on the same features. Memory stays lent; rings are to be started anew.
    ///
    /// # Errors
    /// As [`VdpaFrontEnd::open`].
    pub fn reset(&mut self) -> Result<(), VdpaFrontEndError> {
        self.vdpa.set_status(0)?;
        self.negotiate()
    }
}
