//! The front-end's end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr, write};
use zerocopy::{FromBytes, IntoBytes};

use super::{BackendFeatures, IotlbChange, IotlbMessage, VdpaError};
use crate::sys::vhost_vdpa::{self as ioctl, VringState, Wire};
use crate::sys::{Number, Shown};
use crate::vhost_user::IotlbPerm;

/// The open `/dev/vhost-vdpa-N` of a device, which belongs to whoever has it open: one process at a time. Closing it resets
/// the device.
#[derive(Debug)]
pub struct VhostVdpa {
    fd: OwnedFd,
}

/// Where the parts of a ring are, in addresses of the device.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VdpaRing {
    /// The descriptors (split), or the ring (packed).
    pub desc: u64,
    /// The available ring, or the driver's event suppression structure.
    pub driver: u64,
    /// The used ring, or the device's event suppression structure.
    pub device: u64,
}

impl VhostVdpa {
    /// Opens a device, which resets it.
    ///
    /// # Errors
    /// [`VdpaError::Absent`], [`VdpaError::Denied`], [`VdpaError::Busy`], [`VdpaError::NotVdpa`],
    /// [`VdpaError::DeviceFailed`], [`VdpaError::Failed`].
    pub fn open(path: &Path) -> Result<Self, VdpaError> {
        let shown = || path.display().to_string();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| VdpaError::of_open(shown(), errno))?;
        Self::over(fd).map_err(|_| VdpaError::NotVdpa { path: shown() })
    }

    /// A file that is one of vhost-vdpa's. Others know some of its numbers, and mean something else.
    fn over(fd: OwnedFd) -> Result<Self, VdpaError> {
        let vdpa = Self { fd };
        vdpa.device_id().map(|_| vdpa)
    }

    /// Makes this process the owner of the device. First of all.
    ///
    /// # Errors
    /// [`VdpaError`]; `TooLate` if there is an owner.
    pub fn set_owner(&self) -> Result<(), VdpaError> {
        self.set("VHOST_SET_OWNER", ioctl::SET_OWNER, ())
    }

    /// The number of the device's kind in the virtio specification.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn device_id(&self) -> Result<u32, VdpaError> {
        self.get("VHOST_VDPA_GET_DEVICE_ID", ioctl::GET_DEVICE_ID)
    }

    /// The virtio features that the device has.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn features(&self) -> Result<u64, VdpaError> {
        self.get("VHOST_GET_FEATURES", ioctl::GET_FEATURES)
    }

    /// The virtio features that the driver has chosen.
    ///
    /// # Errors
    /// [`VdpaError`]; `TooLate` after `FEATURES_OK`.
    pub fn set_features(&self, features: u64) -> Result<(), VdpaError> {
        self.set("VHOST_SET_FEATURES", ioctl::SET_FEATURES, features)
    }

    /// What the kernel can beyond the oldest of its kind.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn backend_features(&self) -> Result<BackendFeatures, VdpaError> {
        let bits = self.get("VHOST_GET_BACKEND_FEATURES", ioctl::GET_BACKEND_FEATURES)?;
        Ok(BackendFeatures::from_bits_retain(bits))
    }

    /// Which of it is going to be used.
    ///
    /// # Errors
    /// [`VdpaError`]; `Unsupported` for what it cannot.
    pub fn set_backend_features(&self, features: BackendFeatures) -> Result<(), VdpaError> {
        self.set("VHOST_SET_BACKEND_FEATURES", ioctl::SET_BACKEND_FEATURES, features.bits())
    }

    /// The device status ([`virtio::status`](crate::virtio::status)).
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn status(&self) -> Result<u8, VdpaError> {
        self.get("VHOST_VDPA_GET_STATUS", ioctl::GET_STATUS)
    }

    /// Sets the device status; 0 resets. A status that the device did not take shows in [`VhostVdpa::status`] only.
    ///
    /// # Errors
    /// [`VdpaError`]; `Refused` if a bit is taken away, `DeviceFailed` for a reset that the device did not answer.
    pub fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        self.set("VHOST_VDPA_SET_STATUS", ioctl::SET_STATUS, status)
    }

    /// Reads the configuration space from `offset` on.
    ///
    /// # Errors
    /// [`VdpaError`]; `Refused` beyond its end and for no bytes.
    pub fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), VdpaError> {
        ioctl::get_config(self.fd.as_fd(), offset, bytes).map_err(of("VHOST_VDPA_GET_CONFIG"))
    }

    /// Writes the configuration space from `offset` on. Devices of VDUSE take no notice.
    ///
    /// # Errors
    /// As [`VhostVdpa::read_config`].
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<(), VdpaError> {
        ioctl::set_config(self.fd.as_fd(), offset, bytes).map_err(of("VHOST_VDPA_SET_CONFIG"))
    }

    /// Bytes of the configuration space.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn config_size(&self) -> Result<u32, VdpaError> {
        self.get("VHOST_VDPA_GET_CONFIG_SIZE", ioctl::GET_CONFIG_SIZE)
    }

    /// The eventfd that is signalled when the configuration space has changed, if any.
    ///
    /// # Errors
    /// [`VdpaError`]; `Refused` if it is no eventfd.
    pub fn set_config_call(&self, call: Option<BorrowedFd<'_>>) -> Result<(), VdpaError> {
        ioctl::set_config_call(self.fd.as_fd(), call).map_err(of("VHOST_VDPA_SET_CONFIG_CALL"))
    }

    /// How many queues the device has.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn queue_count(&self) -> Result<u32, VdpaError> {
        self.get("VHOST_VDPA_GET_VQS_COUNT", ioctl::GET_VQS_COUNT)
    }

    /// The most descriptors of any of its rings.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn max_ring_size(&self) -> Result<u16, VdpaError> {
        self.get("VHOST_VDPA_GET_VRING_NUM", ioctl::GET_VRING_NUM)
    }

    /// The first and the last IOVA that can be used.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn iova_range(&self) -> Result<(u64, u64), VdpaError> {
        let range = self.get("VHOST_VDPA_GET_IOVA_RANGE", ioctl::GET_IOVA_RANGE)?;
        Ok((range.first, range.last))
    }

    /// How many groups of queues there are.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn group_count(&self) -> Result<u32, VdpaError> {
        self.get("VHOST_VDPA_GET_GROUP_NUM", ioctl::GET_GROUP_NUM)
    }

    /// How many address spaces there are.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn address_space_count(&self) -> Result<u32, VdpaError> {
        self.get("VHOST_VDPA_GET_AS_NUM", ioctl::GET_AS_NUM)
    }

    /// The group of a queue.
    ///
    /// # Errors
    /// [`VdpaError`]; `NoSuchQueue`.
    pub fn group_of(&self, index: u32) -> Result<u32, VdpaError> {
        self.ask("VHOST_VDPA_GET_VRING_GROUP", ioctl::GET_VRING_GROUP, index)
    }

    /// Puts a group into an address space.
    ///
    /// # Errors
    /// [`VdpaError`]; `TooLate` after `DRIVER_OK`.
    pub fn set_group_address_space(&self, group: u32, asid: u32) -> Result<(), VdpaError> {
        self.tell("VHOST_VDPA_SET_GROUP_ASID", ioctl::SET_GROUP_ASID, group, asid)
    }

    /// How many descriptors a ring has, a power of two.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn set_ring_size(&self, index: u32, size: u16) -> Result<(), VdpaError> {
        self.tell("VHOST_SET_VRING_NUM", ioctl::SET_VRING_NUM, index, u32::from(size))
    }

    /// Where a ring is.
    ///
    /// # Errors
    /// [`VdpaError`]; `Refused` after `DRIVER_OK`, and for addresses that are not aligned.
    pub fn set_ring(&self, index: u32, ring: VdpaRing) -> Result<(), VdpaError> {
        let VdpaRing { desc, driver: avail, device: used } = ring;
        let addr = ioctl::VringAddr { index, flags: 0, desc, used, avail, log: 0 };
        self.set("VHOST_SET_VRING_ADDR", ioctl::SET_VRING_ADDR, addr)
    }

    /// Where a ring starts: for a split one the next index of the available ring, for a packed one the word of the position in
    /// the available ring, and above that (bit 16) the one in the used ring.
    ///
    /// # Errors
    /// [`VdpaError`]; `Refused` after `DRIVER_OK`.
    pub fn set_ring_base(&self, index: u32, base: u32) -> Result<(), VdpaError> {
        self.tell("VHOST_SET_VRING_BASE", ioctl::SET_VRING_BASE, index, base)
    }

    /// How far a ring is, in the same form. The device must not be running, or the answer is out of date.
    ///
    /// # Errors
    /// [`VdpaError`]; `DeviceFailed` if it does not say.
    pub fn ring_base(&self, index: u32) -> Result<u32, VdpaError> {
        self.ask("VHOST_GET_VRING_BASE", ioctl::GET_VRING_BASE, index)
    }

    /// Enables a queue or disables it.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn set_ring_enabled(&self, index: u32, enabled: bool) -> Result<(), VdpaError> {
        self.tell("VHOST_VDPA_SET_VRING_ENABLE", ioctl::SET_VRING_ENABLE, index, u32::from(enabled))
    }

    /// The eventfd by which this end kicks a queue, if any.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn set_kick(&self, index: u32, kick: Option<BorrowedFd<'_>>) -> Result<(), VdpaError> {
        ioctl::set_vring_fd(self.fd.as_fd(), Wire::Kick, index, kick).map_err(of("VHOST_SET_VRING_KICK"))
    }

    /// The eventfd by which a queue calls this end, if any.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn set_call(&self, index: u32, call: Option<BorrowedFd<'_>>) -> Result<(), VdpaError> {
        ioctl::set_vring_fd(self.fd.as_fd(), Wire::Call, index, call).map_err(of("VHOST_SET_VRING_CALL"))
    }

    /// The eventfd by which a queue tells of an error, if any.
    ///
    /// # Errors
    /// [`VdpaError`].
    pub fn set_err(&self, index: u32, err: Option<BorrowedFd<'_>>) -> Result<(), VdpaError> {
        ioctl::set_vring_fd(self.fd.as_fd(), Wire::Err, index, err).map_err(of("VHOST_SET_VRING_ERR"))
    }

    /// Stops all queues until [`VhostVdpa::resume`] or a reset.
    ///
    /// # Errors
    /// [`VdpaError`]; `Unsupported`, `DeviceFailed`.
    pub fn suspend(&self) -> Result<(), VdpaError> {
        self.set("VHOST_VDPA_SUSPEND", ioctl::SUSPEND, ())
    }

    /// Lets them go on. VDUSE cannot.
    ///
    /// # Errors
    /// [`VdpaError`]; `Unsupported`, `DeviceFailed`.
    pub fn resume(&self) -> Result<(), VdpaError> {
        self.set("VHOST_VDPA_RESUME", ioctl::RESUME, ())
    }

    /// Lends `size` bytes of a file, from `offset` on, at `iova`: all of them multiples of the file's page size.
    ///
    /// # Errors
    /// [`VdpaError::Memory`], or [`VdpaError::Failed`] with what mmap(2) answers. The file must be open for reading, and for
    /// writing if `perm` says so.
    pub fn map(
        &self,
        asid: u32,
        iova: u64,
        size: u64,
        file: (BorrowedFd<'_>, u64),
        perm: IotlbPerm,
    ) -> Result<(), VdpaError> {
        let (file, offset) = file;
        let shown =
            Shown::of_file(file, offset, size, perm.contains(IotlbPerm::WRITE)).map_err(of("mmap"))?;
        let change = IotlbChange::Update { iova, size, user_addr: shown.address(), perm };
        self.send("VHOST_IOTLB_UPDATE", IotlbMessage { asid, change })
    }

    /// Takes back what was lent among `size` bytes at `iova`.
    ///
    /// # Errors
    /// [`VdpaError::Memory`].
    pub fn unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        let change = IotlbChange::Invalidate { iova, size };
        self.send("VHOST_IOTLB_INVALIDATE", IotlbMessage { asid, change })
    }

    /// The changes that follow are told to the device by [`VhostVdpa::end_batch`], as one.
    ///
    /// # Errors
    /// [`VdpaError::Memory`].
    pub fn begin_batch(&self, asid: u32) -> Result<(), VdpaError> {
        self.send("VHOST_IOTLB_BATCH_BEGIN", IotlbMessage { asid, change: IotlbChange::BatchBegin })
    }

    /// Tells the device. The kernel does not say whether the device has taken it.
    ///
    /// # Errors
    /// [`VdpaError::Memory`].
    pub fn end_batch(&self, asid: u32) -> Result<(), VdpaError> {
        self.send("VHOST_IOTLB_BATCH_END", IotlbMessage { asid, change: IotlbChange::BatchEnd })
    }

    fn send(&self, change: &'static str, message: IotlbMessage) -> Result<(), VdpaError> {
        match retry_on_intr(|| write(&self.fd, &message.to_bytes())) {
            Ok(_) => Ok(()),
            Err(Errno::FAULT) => Err(VdpaError::Memory { change }),
            Err(errno) => Err(VdpaError::of_call(change, errno)),
        }
    }

    fn get<T: FromBytes + IntoBytes>(&self, call: &'static str, number: Number<T>) -> Result<T, VdpaError> {
        number.get(self.fd.as_fd()).map_err(of(call))
    }

    fn set<T: FromBytes + IntoBytes>(
        &self,
        call: &'static str,
        number: Number<T>,
        value: T,
    ) -> Result<(), VdpaError> {
        number.set(self.fd.as_fd(), value).map_err(of(call))
    }

    /// Hands over a number that belongs to a queue or to a group.
    fn tell(
        &self,
        call: &'static str,
        number: Number<VringState>,
        index: u32,
        num: u32,
    ) -> Result<(), VdpaError> {
        self.set(call, number, VringState { index, num })
    }

    /// Asks for a number that belongs to a queue.
    fn ask(&self, call: &'static str, number: Number<VringState>, index: u32) -> Result<u32, VdpaError> {
        let mut state = VringState { index, num: 0 };
        number.update(self.fd.as_fd(), &mut state).map_err(of(call))?;
        Ok(state.num)
    }
}

fn of(call: &'static str) -> impl FnOnce(Errno) -> VdpaError {
    move |errno| VdpaError::of_call(call, errno)
}

impl AsFd for VhostVdpa {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
