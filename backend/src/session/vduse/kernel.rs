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

    /// Whether these IOVAs are the bounce pages of a driver of the host, of which there need not be any.
    ///
    /// # Errors
    /// As [`Device::iotlb_info`].
    fn is_bounce(&self, _first: u64, _last: u64) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// Gives the kernel `size` bytes of a file for its bounce pages.
    ///
    /// # Errors
    /// As [`Device::register_memory`].
    fn give_bounce(&self, _file: BorrowedFd<'_>, _size: u64) -> Result<(), DeviceError> {
        Ok(())
    }
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

    fn is_bounce(&self, first: u64, last: u64) -> Result<bool, DeviceError> {
        let info = self.iotlb_info(ADDRESS_SPACE, first, last)?;
        Ok(info.is_some_and(|info| info.bounce && info.first == first && info.last == last))
    }

    fn give_bounce(&self, file: BorrowedFd<'_>, size: u64) -> Result<(), DeviceError> {
        self.register_memory(ADDRESS_SPACE, file, 0, size)
    }
}
