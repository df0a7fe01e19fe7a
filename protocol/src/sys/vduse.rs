//! UNSAFETY: the table of VDUSE's ioctls, which vouches that each number stands beside the structure that the kernel copies.
//!
//! Source: `linux/vduse.h` of Linux 7.3, and `vduse_ioctl` and `vduse_dev_ioctl` of its `drivers/vdpa/vdpa_user/vduse_dev.c`.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::ioctl::Direction;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Number, Shown};

/// Bytes of the field that holds a device's name, the zero at its end included.
pub(crate) const NAME_FIELD: usize = 256;

const fn number<T>(direction: Direction, number: u8) -> Number<T> {
    // SAFETY: this makes the constants below and no others. Each has the structure that the two functions named above copy
    // from the caller and to it. They copy what lies behind it only for those called by `Number::with_tail`.
    unsafe { Number::new(direction, 0x81, number) }
}

// Of /dev/vduse/control.
pub(crate) const GET_API_VERSION: Number<u64> = number(Direction::Read, 0x00);
pub(crate) const SET_API_VERSION: Number<u64> = number(Direction::Write, 0x01);
const CREATE_DEV: Number<DevConfig> = number(Direction::Write, 0x02);
pub(crate) const DESTROY_DEV: Number<[u8; NAME_FIELD]> = number(Direction::Write, 0x03);
pub(crate) const GET_FEATURES: Number<u64> = number(Direction::Read, 0x04);
pub(crate) const SET_FEATURES: Number<u64> = number(Direction::Write, 0x05);

// Of a device's file.
const IOTLB_GET_FD: Number<IotlbEntry> = number(Direction::ReadWrite, 0x10);
pub(crate) const DEV_GET_FEATURES: Number<u64> = number(Direction::Read, 0x11);
const DEV_SET_CONFIG: Number<ConfigData> = number(Direction::Write, 0x12);
pub(crate) const DEV_INJECT_CONFIG_IRQ: Number<()> = number(Direction::None, 0x13);
pub(crate) const VQ_SETUP: Number<VqConfig> = number(Direction::Write, 0x14);
pub(crate) const VQ_GET_INFO: Number<VqInfo> = number(Direction::ReadWrite, 0x15);
const VQ_SETUP_KICKFD: Number<VqEventFd> = number(Direction::Write, 0x16);
pub(crate) const VQ_INJECT_IRQ: Number<u32> = number(Direction::Write, 0x17);
const IOTLB_REG_UMEM: Number<IovaUmem> = number(Direction::Write, 0x18);
const IOTLB_DEREG_UMEM: Number<IovaUmem> = number(Direction::Write, 0x19);
pub(crate) const IOTLB_GET_INFO: Number<IovaInfo> = number(Direction::ReadWrite, 0x1a);
const IOTLB_GET_FD2: Number<IotlbEntryV2> = number(Direction::ReadWrite, 0x1b);

/// `struct vduse_dev_config` without the configuration space behind it.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct DevConfig {
    pub(crate) name: [u8; NAME_FIELD],
    pub(crate) vendor_id: u32,
    pub(crate) device_id: u32,
    pub(crate) features: u64,
    pub(crate) vq_num: u32,
    pub(crate) vq_align: u32,
    pub(crate) ngroups: u32,
    pub(crate) nas: u32,
    pub(crate) reserved: [u32; 11],
    /// Set by [`create_dev`].
    pub(crate) config_size: u32,
}

/// `struct vduse_iotlb_entry`, with the padding that 64-bit processors have.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IotlbEntry {
    pub(crate) offset: u64,
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) perm: u8,
    pub(crate) padding: [u8; 7],
}

/// `struct vduse_iotlb_entry_v2`.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IotlbEntryV2 {
    pub(crate) v1: IotlbEntry,
    pub(crate) asid: u32,
    pub(crate) reserved: [u32; 11],
}

/// `struct vduse_config_data` without the bytes behind it.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigData {
    offset: u32,
    length: u32,
}

/// `struct vduse_vq_config`.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct VqConfig {
    pub(crate) index: u32,
    pub(crate) max_size: u16,
    pub(crate) reserved1: u16,
    pub(crate) group: u32,
    pub(crate) reserved2: [u16; 10],
}

/// `struct vduse_vq_info`. What `state` means depends on the layout of the ring.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct VqInfo {
    pub(crate) index: u32,
    pub(crate) num: u32,
    pub(crate) desc_addr: u64,
    pub(crate) driver_addr: u64,
    pub(crate) device_addr: u64,
    pub(crate) state: [u16; 4],
    pub(crate) ready: u8,
    pub(crate) padding: [u8; 7],
}

/// `struct vduse_vq_eventfd`.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct VqEventFd {
    index: u32,
    fd: i32,
}

/// `struct vduse_iova_umem`.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IovaUmem {
    uaddr: u64,
    iova: u64,
    size: u64,
    asid: u32,
    reserved: [u32; 5],
}

/// `struct vduse_iova_info`.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IovaInfo {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) capability: u64,
    pub(crate) asid: u32,
    pub(crate) reserved: [u32; 5],
}

/// `VDUSE_CREATE_DEV`, with this configuration space.
pub(crate) fn create_dev(fd: BorrowedFd<'_>, device: &DevConfig, space: &[u8]) -> Result<(), Errno> {
    let config_size = u32::try_from(space.len()).map_err(|_| Errno::TOOBIG)?;
    let device = DevConfig { config_size, ..*device };
    // SAFETY: behind the structure the kernel reads as many bytes as `config_size` says, which is what `space` has.
    unsafe { CREATE_DEV.with_tail(fd, &device, &mut space.to_vec()) }
}

/// `VDUSE_DEV_SET_CONFIG`: these bytes from `offset` on.
pub(crate) fn dev_set_config(fd: BorrowedFd<'_>, offset: u32, bytes: &[u8]) -> Result<(), Errno> {
    let length = u32::try_from(bytes.len()).map_err(|_| Errno::TOOBIG)?;
    // SAFETY: behind the structure the kernel reads as many bytes as `length` says, which is what `bytes` has.
    unsafe { DEV_SET_CONFIG.with_tail(fd, &ConfigData { offset, length }, &mut bytes.to_vec()) }
}

/// `VDUSE_IOTLB_GET_FD`: fills in the entry and returns the file behind it.
pub(crate) fn iotlb_get_fd(fd: BorrowedFd<'_>, entry: &mut IotlbEntry) -> Result<OwnedFd, Errno> {
    let received = IOTLB_GET_FD.update(fd, entry)?;
    // SAFETY: the call succeeded, so its result is a descriptor that it has made for us.
    own(unsafe { OwnedFd::from_raw_fd(received) })
}

/// `VDUSE_IOTLB_GET_FD2`: the same, with an address space.
pub(crate) fn iotlb_get_fd2(fd: BorrowedFd<'_>, entry: &mut IotlbEntryV2) -> Result<OwnedFd, Errno> {
    let received = IOTLB_GET_FD2.update(fd, entry)?;
    // SAFETY: as above.
    own(unsafe { OwnedFd::from_raw_fd(received) })
}

/// The kernel makes these descriptors inheritable, and nobody's child has use for the memory of a guest.
fn own(received: OwnedFd) -> Result<OwnedFd, Errno> {
    fcntl_setfd(&received, FdFlags::CLOEXEC)?;
    Ok(received)
}

/// `VDUSE_VQ_SETUP_KICKFD`: which eventfd a queue's kicks go to, if any.
pub(crate) fn vq_setup_kickfd(
    fd: BorrowedFd<'_>,
    index: u32,
    kick: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    VQ_SETUP_KICKFD.set(fd, VqEventFd { index, fd: kick.map_or(-1, |kick| kick.as_raw_fd()) })
}

/// `VDUSE_IOTLB_REG_UMEM`: has the bounce pages of an address space in a file from now on. The kernel keeps its pages, not
/// the mapping.
pub(crate) fn iotlb_reg_umem(fd: BorrowedFd<'_>, asid: u32, memory: &Shown) -> Result<(), Errno> {
    let umem = IovaUmem { uaddr: memory.address(), iova: 0, size: memory.len(), asid, ..IovaUmem::default() };
    IOTLB_REG_UMEM.set(fd, umem)
}

/// `VDUSE_IOTLB_DEREG_UMEM`: takes back the `size` bytes that [`iotlb_reg_umem`] gave.
pub(crate) fn iotlb_dereg_umem(fd: BorrowedFd<'_>, asid: u32, size: u64) -> Result<(), Errno> {
    IOTLB_DEREG_UMEM.set(fd, IovaUmem { size, asid, ..IovaUmem::default() })
}

#[cfg(test)]
pub(super) mod tests;
