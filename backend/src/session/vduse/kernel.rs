//! The kernel's side of a device, as far as it is not messages.

use std::os::fd::{AsFd, BorrowedFd};

use mdev_protocol::vduse::{Device, DeviceError, IotlbFile, VqInfo};

/// What a session asks of the kernel. [`Device`] is the kernel itself; a model of it can be anything whose descriptor carries
/// the messages. Nothing here waits for a driver.
pub trait Kernel: AsFd + Send + Sync {
    /// The virtio features that the driver has acknowledged.
    ///
    /// # Errors
    /// As [`Device::driver_features`].
    fn driver_features(&self) -> Result<u64, DeviceError>;

    /// How the driver has set a queue up.
    ///
    /// # Errors
    /// As [`Device::queue`].
    fn queue(&self, index: u16, packed: bool) -> Result<VqInfo, DeviceError>;

    /// Sets the eventfd of a queue's kicks, or takes it away.
    ///
    /// # Errors
    /// As [`Device::set_kick`].
    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> Result<(), DeviceError>;

    /// Interrupts the driver for a queue.
    ///
    /// # Errors
    /// As [`Device::inject_irq`].
    fn interrupt(&self, index: u16) -> Result<(), DeviceError>;

    /// Tells the driver that the configuration space has changed. Refused before `DRIVER_OK` and after a suspension.
    ///
    /// # Errors
    /// As [`Device::inject_config_irq`].
    fn interrupt_config(&self) -> Result<(), DeviceError>;

    /// Changes the configuration space that drivers read.
    ///
    /// # Errors
    /// As [`Device::set_config`].
    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError>;

    /// The memory that the lowest mapped one of these IOVAs belongs to; `None` if there is none.
    ///
    /// # Errors
    /// As [`Device::iotlb_file`].
    fn memory(&self, first: u64, last: u64) -> Result<Option<IotlbFile>, DeviceError>;
}

/// The address space of all queues: there is one group of them, since without a control queue none needs an address space of
/// its own.
const ADDRESS_SPACE: u32 = 0;

impl Kernel for Device {
    fn driver_features(&self) -> Result<u64, DeviceError> {
        Device::driver_features(self)
    }

    fn queue(&self, index: u16, packed: bool) -> Result<VqInfo, DeviceError> {
        Device::queue(self, u32::from(index), packed)
    }

    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        Device::set_kick(self, u32::from(index), kick)
    }

    fn interrupt(&self, index: u16) -> Result<(), DeviceError> {
        self.inject_irq(u32::from(index))
    }

    fn interrupt_config(&self) -> Result<(), DeviceError> {
        self.inject_config_irq()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        Device::set_config(self, offset, bytes)
    }

    fn memory(&self, first: u64, last: u64) -> Result<Option<IotlbFile>, DeviceError> {
        self.iotlb_file(ADDRESS_SPACE, first, last)
    }
}
