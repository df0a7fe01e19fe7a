//! `/dev/vduse/NAME`: serving a device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::error::Call;
use super::{DeviceError, DeviceName, VqState};
use crate::sys::{Shown, vduse as ioctl};
use crate::vhost_user::IotlbPerm;

/// The open file of a device, non-blocking. One process at a time has it open. Poll it for input (a request is there) and for
/// errors (the kernel has given the device up). When it is closed, what was asked and not answered waits for the next opener,
/// and device, rings and memory stay as they are.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

/// A queue as it is set up.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VqSetup {
    /// Which queue.
    pub index: u32,
    /// The most descriptors of its ring. A device whose queues have not all been given some cannot be put on the bus.
    pub max_size: u16,
    /// Its group; 0 in version 0.
    pub group: u32,
}

/// A queue as the driver has set it up. Addresses are IOVAs.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VqInfo {
    /// Descriptors of its ring; 0 before the driver has said so.
    pub size: u32,
    /// The descriptors (split), or the ring (packed).
    pub desc: u64,
    /// The available ring, or the driver's event suppression structure.
    pub driver: u64,
    /// The used ring, or the device's event suppression structure.
    pub device: u64,
    /// Where the driver wants it to start. What the device has done since is not in here.
    pub state: VqState,
    /// Whether the driver has enabled it.
    pub ready: bool,
}

/// Where the memory behind some IOVAs is. The file is of a guest or of the kernel, and may shrink at any time.
#[derive(Debug)]
pub struct IotlbFile {
    /// The first IOVA.
    pub first: u64,
    /// The last IOVA.
    pub last: u64,
    /// What the device may do there. It is up to the device to keep to it: the file may be open for more.
    pub perm: IotlbPerm,
    /// Where the first IOVA is in the file, in bytes.
    pub offset: u64,
    /// The file.
    pub file: OwnedFd,
}

/// What is to be known of some IOVAs.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct IotlbInfo {
    /// The first IOVA.
    pub first: u64,
    /// The last IOVA.
    pub last: u64,
    /// Whether these are the bounce pages, which the daemon may supply: [`Device::register_memory`].
    pub bounce: bool,
}

const CAP_UMEM: u64 = 1;

const GET_FEATURES: Call = Call { name: "VDUSE_DEV_GET_FEATURES", invalid: "for no known reason" };
const SET_CONFIG: Call = Call {
    name: "VDUSE_DEV_SET_CONFIG",
    invalid: "these bytes are not all in the configuration space, or there are none",
};
const INJECT_CONFIG_IRQ: Call = Call {
    name: "VDUSE_DEV_INJECT_CONFIG_IRQ",
    invalid: "the driver is not ready, or the device is suspended",
};
const VQ_SETUP: Call = Call {
    name: "VDUSE_VQ_SETUP",
    invalid: "there is no such queue or group, or the driver is using the device",
};
const VQ_GET_INFO: Call = Call { name: "VDUSE_VQ_GET_INFO", invalid: "there is no such queue" };
const VQ_SETUP_KICKFD: Call =
    Call { name: "VDUSE_VQ_SETUP_KICKFD", invalid: "there is no such queue, or this is no eventfd" };
const VQ_INJECT_IRQ: Call = Call {
    name: "VDUSE_VQ_INJECT_IRQ",
    invalid: "there is no such queue, the driver is not ready, or the device is suspended",
};
const GET_FD: Call = Call { name: "VDUSE_IOTLB_GET_FD", invalid: "there is no memory" };
const GET_FD2: Call = Call { name: "VDUSE_IOTLB_GET_FD2", invalid: "there is no memory" };
const GET_INFO: Call = Call { name: "VDUSE_IOTLB_GET_INFO", invalid: "there is no memory" };
const REG_UMEM: Call = Call {
    name: "VDUSE_IOTLB_REG_UMEM",
    invalid: "the device is not used by a driver of the host, there is no such address space, or the memory has not the size of its bounce buffer",
};
const DEREG_UMEM: Call = Call {
    name: "VDUSE_IOTLB_DEREG_UMEM",
    invalid: "there is no such address space, or the memory that was given has another size",
};

impl Device {
    /// Opens a device's file.
    ///
    /// # Errors
    /// [`DeviceError::Absent`], [`DeviceError::Denied`], [`DeviceError::Busy`], or [`DeviceError::Failed`].
    pub fn open(name: &DeviceName) -> Result<Self, DeviceError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd =
            open(name.path(), flags, Mode::empty()).map_err(|errno| DeviceError::of_open(name, errno))?;
        Ok(Self { fd })
    }

    /// The virtio features that the driver has written. They count from `FEATURES_OK` on.
    ///
    /// # Errors
    /// [`DeviceError::Broken`], [`DeviceError::Failed`].
    pub fn driver_features(&self) -> Result<u64, DeviceError> {
        ioctl::DEV_GET_FEATURES.get(self.fd.as_fd()).map_err(|errno| GET_FEATURES.refused(errno))
    }

    /// Changes the configuration space from `offset` on. The driver hears of it by [`Device::inject_config_irq`].
    ///
    /// # Errors
    /// [`DeviceError`]; `Refused` for no bytes and for those beyond the end.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        ioctl::dev_set_config(self.fd.as_fd(), offset, bytes).map_err(|errno| SET_CONFIG.refused(errno))
    }

    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    /// [`DeviceError`]; `Refused` before `DRIVER_OK` and after a suspension.
    pub fn inject_config_irq(&self) -> Result<(), DeviceError> {
        let number = ioctl::DEV_INJECT_CONFIG_IRQ;
        number.call(self.fd.as_fd()).map_err(|errno| INJECT_CONFIG_IRQ.refused(errno))
    }

    /// Sets a queue up, before the device is on the bus.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_up_queue(&self, queue: VqSetup) -> Result<(), DeviceError> {
        let VqSetup { index, max_size, group } = queue;
        let config = ioctl::VqConfig { index, max_size, group, ..ioctl::VqConfig::default() };
        ioctl::VQ_SETUP.set(self.fd.as_fd(), config).map_err(|errno| VQ_SETUP.refused(errno))
    }

    /// How the driver has set a queue up. `packed` says which layout it has negotiated, which is how the kernel tells the
    /// state.
    ///
    /// # Errors
    /// [`DeviceError`]; `Refused` if there is no such queue.
    pub fn queue(&self, index: u32, packed: bool) -> Result<VqInfo, DeviceError> {
        let mut info = ioctl::VqInfo { index, ..ioctl::VqInfo::default() };
        ioctl::VQ_GET_INFO.update(self.fd.as_fd(), &mut info).map_err(|errno| VQ_GET_INFO.refused(errno))?;
        Ok(VqInfo {
            size: info.num,
            desc: info.desc_addr,
            driver: info.driver_addr,
            device: info.device_addr,
            state: VqState::from_words(info.state, packed),
            ready: info.ready != 0,
        })
    }

    /// Sets the eventfd that a queue's kicks go to, or takes it away. A kick that came before there was one is not lost. A
    /// reset takes it away too.
    ///
    /// # Errors
    /// [`DeviceError`]; `Refused` if there is no such queue or this is no eventfd.
    pub fn set_kick(&self, index: u32, kick: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        ioctl::vq_setup_kickfd(self.fd.as_fd(), index, kick).map_err(|errno| VQ_SETUP_KICKFD.refused(errno))
    }

    /// Interrupts the driver for a queue.
    ///
    /// # Errors
    /// [`DeviceError`]; `Refused` before `DRIVER_OK` and after a suspension.
    pub fn inject_irq(&self, index: u32) -> Result<(), DeviceError> {
        ioctl::VQ_INJECT_IRQ.set(self.fd.as_fd(), index).map_err(|errno| VQ_INJECT_IRQ.refused(errno))
    }

    /// The memory that the lowest mapped IOVAs between `first` and `last`, both inclusive, belong to, as a whole: it may begin
    /// before `first` and end behind `last`. `None` if none of them is mapped, if `first` is above `last`, or if there is no
    /// such address space. Version 0 has address space 0 only.
    ///
    /// # Errors
    /// [`DeviceError`]; `Unsupported` for another address space than 0 in version 0.
    pub fn iotlb_file(&self, asid: u32, first: u64, last: u64) -> Result<Option<IotlbFile>, DeviceError> {
        let wanted = ioctl::IotlbEntry { start: first, last, ..ioctl::IotlbEntry::default() };
        // The older call knows address space 0 in every version.
        let (got, entry, call) = if asid == 0 {
            let mut entry = wanted;
            (ioctl::iotlb_get_fd(self.fd.as_fd(), &mut entry), entry, GET_FD)
        } else {
            let mut entry = ioctl::IotlbEntryV2 { v1: wanted, asid, ..ioctl::IotlbEntryV2::default() };
            (ioctl::iotlb_get_fd2(self.fd.as_fd(), &mut entry), entry.v1, GET_FD2)
        };
        match got {
            Ok(file) => Ok(Some(IotlbFile {
                first: entry.start,
                last: entry.last,
                perm: IotlbPerm::from_bits_truncate(entry.perm),
                offset: entry.offset,
                file,
            })),
            Err(Errno::INVAL) => Ok(None),
            Err(errno) => Err(call.refused(errno)),
        }
    }

    /// The same lookup as [`Device::iotlb_file`], without the file.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn iotlb_info(&self, asid: u32, first: u64, last: u64) -> Result<Option<IotlbInfo>, DeviceError> {
        let mut info = ioctl::IovaInfo { start: first, last, asid, ..ioctl::IovaInfo::default() };
        match ioctl::IOTLB_GET_INFO.update(self.fd.as_fd(), &mut info) {
            Ok(_) => Ok(Some(IotlbInfo {
                first: info.start,
                last: info.last,
                bounce: info.capability & CAP_UMEM != 0,
            })),
            Err(Errno::INVAL) => Ok(None),
            Err(errno) => Err(GET_INFO.refused(errno)),
        }
    }

    /// Supplies the bounce pages of an address space: `size` bytes of a file from `offset` on, which are locked in memory
    /// until [`Device::deregister_memory`] or the end of this device's file. Their contents are replaced. What
    /// [`Device::iotlb_file`] says stays as it is.
    ///
    /// # Errors
    /// [`DeviceError`]; `Failed` with `EEXIST` if there are some already, with `ENOMEM` beyond the limit of locked memory, and
    /// with what mmap(2) answers.
    pub fn register_memory(
        &self,
        asid: u32,
        file: BorrowedFd<'_>,
        offset: u64,
        size: u64,
    ) -> Result<(), DeviceError> {
        let memory = Shown::of_file(file, offset, size, true)
            .map_err(|errno| DeviceError::Failed { call: "mmap", errno })?;
        ioctl::iotlb_reg_umem(self.fd.as_fd(), asid, &memory).map_err(|errno| REG_UMEM.refused(errno))
    }

    /// Takes the bounce pages back, all `size` bytes.
    ///
    /// # Errors
    /// [`DeviceError`]; `Failed` with `ENOENT` if there are none.
    pub fn deregister_memory(&self, asid: u32, size: u64) -> Result<(), DeviceError> {
        ioctl::iotlb_dereg_umem(self.fd.as_fd(), asid, size).map_err(|errno| DEREG_UMEM.refused(errno))
    }

    /// Some file as if it were a device's.
    #[cfg(test)]
    pub(super) fn over(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
