//! `/dev/vduse/control`: making devices and unmaking them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bitflags::bitflags;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::{CONTROL_PATH, ControlError, DeviceConfig, DeviceName};
use crate::sys::vduse as ioctl;

bitflags! {
    /// What the kernel asks of a daemon beyond what all daemons know. Bits nobody here knows are kept as they came.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VduseFeatures: u64 {
        /// It tells when a queue is enabled or disabled: [`RequestKind::SetVqReady`](super::RequestKind::SetVqReady).
        const QUEUE_READY = 1 << 0;
        /// It may suspend the device: [`RequestKind::Suspend`](super::RequestKind::Suspend).
        const SUSPEND = 1 << 1;

        const _ = !0;
    }
}

/// The open `/dev/vduse/control`. Version and features are those of this opening, for the devices that it makes.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// [`ControlError::Absent`], [`ControlError::Denied`], or [`ControlError::Failed`].
    pub fn open() -> Result<Self, ControlError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = open(CONTROL_PATH, flags, Mode::empty()).map_err(ControlError::of_open)?;
        Ok(Self { fd })
    }

    /// The version that is set: of the newest kernels the newest they speak, before another is set. Older ones tell 0 even if
    /// they can do more, so try [`Control::set_api_version`] instead, from [`API_VERSION`](super::API_VERSION) downwards.
    ///
    /// # Errors
    /// [`ControlError::Failed`].
    pub fn api_version(&self) -> Result<u64, ControlError> {
        let failed = |errno| ControlError::Failed { call: "VDUSE_GET_API_VERSION", errno };
        ioctl::GET_API_VERSION.get(self.fd.as_fd()).map_err(failed)
    }

    /// Sets the version of the devices to come.
    ///
    /// # Errors
    /// [`ControlError::Version`]: the kernel does not speak it. [`ControlError::Failed`].
    pub fn set_api_version(&self, version: u64) -> Result<(), ControlError> {
        ioctl::SET_API_VERSION.set(self.fd.as_fd(), version).map_err(|errno| match errno {
            Errno::INVAL => ControlError::Version(version),
            errno => ControlError::Failed { call: "VDUSE_SET_API_VERSION", errno },
        })
    }

    /// What the kernel can ask of daemons. Kernels that do not know this call can ask nothing more than they always did.
    ///
    /// # Errors
    /// [`ControlError::Failed`].
    pub fn features(&self) -> Result<VduseFeatures, ControlError> {
        match ioctl::GET_FEATURES.get(self.fd.as_fd()) {
            Ok(bits) => Ok(VduseFeatures::from_bits_retain(bits)),
            Err(Errno::INVAL | Errno::NOTTY) => Ok(VduseFeatures::empty()),
            Err(errno) => Err(ControlError::Failed { call: "VDUSE_GET_FEATURES", errno }),
        }
    }

    /// Sets what the daemons of the devices to come can be asked.
    ///
    /// # Errors
    /// [`ControlError::Features`]: the kernel has not all of them. [`ControlError::Failed`].
    pub fn set_features(&self, features: VduseFeatures) -> Result<(), ControlError> {
        ioctl::SET_FEATURES.set(self.fd.as_fd(), features.bits()).map_err(|errno| match errno {
            Errno::INVAL | Errno::NOTTY => ControlError::Features(features.bits()),
            errno => ControlError::Failed { call: "VDUSE_SET_FEATURES", errno },
        })
    }

    /// Makes a device. Its file appears in `/dev/vduse`. It outlives this program: [`Control::destroy`] ends it.
    ///
    /// # Errors
    /// [`ControlError::Config`], [`ControlError::Exists`], [`ControlError::NotPermitted`], [`ControlError::Refused`],
    /// [`ControlError::Failed`].
    pub fn create(&self, config: &DeviceConfig) -> Result<(), ControlError> {
        config.check()?;
        ioctl::create_dev(self.fd.as_fd(), &config.fields(), &config.space)
            .map_err(|errno| ControlError::of_create(&config.name, errno))
    }

    /// Unmakes a device that is neither open nor on the vDPA bus.
    ///
    /// # Errors
    /// [`ControlError::Busy`], [`ControlError::NoDevice`], [`ControlError::Failed`].
    pub fn destroy(&self, name: &DeviceName) -> Result<(), ControlError> {
        ioctl::DESTROY_DEV
            .set(self.fd.as_fd(), name.field())
            .map_err(|errno| ControlError::of_destroy(name, errno))
    }

    /// Some file as if it were the control file.
    #[cfg(test)]
    pub(super) fn over(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
