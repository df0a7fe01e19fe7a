//! UNSAFETY: the table of vhost-vdpa's ioctls, which vouches that each number stands beside the structure that the kernel
//! copies.
//!
//! vhost-net and its kin share some of these numbers, and take addresses of this process where vhost-vdpa takes those of the
//! device. Whoever opens a file asks it for its `GET_DEVICE_ID` first, which only vhost-vdpa has.
//!
//! Source: `linux/vhost.h` and `linux/vhost_types.h` of Linux 7.3, and `vhost_vdpa_unlocked_ioctl` of its
//! `drivers/vhost/vdpa.c`.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::Direction;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Number;

const fn number<T>(direction: Direction, number: u8) -> Number<T> {
    // SAFETY: this makes the constants below and no others. Each has the structure that the function named above and those
    // that it calls copy from the caller and to it. They copy what lies behind it only for those called by
    // `Number::with_tail`.
    unsafe { Number::new(direction, 0xaf, number) }
}

// Of all of vhost.
pub(crate) const GET_FEATURES: Number<u64> = number(Direction::Read, 0x00);
pub(crate) const SET_FEATURES: Number<u64> = number(Direction::Write, 0x00);
pub(crate) const SET_OWNER: Number<()> = number(Direction::None, 0x01);
pub(crate) const SET_VRING_NUM: Number<VringState> = number(Direction::Write, 0x10);
pub(crate) const SET_VRING_ADDR: Number<VringAddr> = number(Direction::Write, 0x11);
pub(crate) const SET_VRING_BASE: Number<VringState> = number(Direction::Write, 0x12);
pub(crate) const GET_VRING_BASE: Number<VringState> = number(Direction::ReadWrite, 0x12);
const SET_VRING_KICK: Number<VringFile> = number(Direction::Write, 0x20);
const SET_VRING_CALL: Number<VringFile> = number(Direction::Write, 0x21);
const SET_VRING_ERR: Number<VringFile> = number(Direction::Write, 0x22);
pub(crate) const SET_BACKEND_FEATURES: Number<u64> = number(Direction::Write, 0x25);
pub(crate) const GET_BACKEND_FEATURES: Number<u64> = number(Direction::Read, 0x26);

// Of vhost-vdpa alone.
pub(crate) const GET_DEVICE_ID: Number<u32> = number(Direction::Read, 0x70);
pub(crate) const GET_STATUS: Number<u8> = number(Direction::Read, 0x71);
pub(crate) const SET_STATUS: Number<u8> = number(Direction::Write, 0x72);
const GET_CONFIG: Number<ConfigHead> = number(Direction::Read, 0x73);
const SET_CONFIG: Number<ConfigHead> = number(Direction::Write, 0x74);
pub(crate) const SET_VRING_ENABLE: Number<VringState> = number(Direction::Write, 0x75);
pub(crate) const GET_VRING_NUM: Number<u16> = number(Direction::Read, 0x76);
const SET_CONFIG_CALL: Number<i32> = number(Direction::Write, 0x77);
pub(crate) const GET_IOVA_RANGE: Number<IovaRange> = number(Direction::Read, 0x78);
pub(crate) const GET_CONFIG_SIZE: Number<u32> = number(Direction::Read, 0x79);
pub(crate) const GET_AS_NUM: Number<u32> = number(Direction::Read, 0x7a);
pub(crate) const GET_VRING_GROUP: Number<VringState> = number(Direction::ReadWrite, 0x7b);
pub(crate) const SET_GROUP_ASID: Number<VringState> = number(Direction::Write, 0x7c);
pub(crate) const SUSPEND: Number<()> = number(Direction::None, 0x7d);
pub(crate) const RESUME: Number<()> = number(Direction::None, 0x7e);
pub(crate) const GET_VQS_COUNT: Number<u32> = number(Direction::Read, 0x80);
pub(crate) const GET_GROUP_NUM: Number<u32> = number(Direction::Read, 0x81);

/// `struct vhost_vring_state`: a queue, or a group, and a number.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct VringState {
    pub(crate) index: u32,
    pub(crate) num: u32,
}

/// `struct vhost_vring_file`.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct VringFile {
    index: u32,
    fd: i32,
}

/// `struct vhost_vring_addr`.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct VringAddr {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    pub(crate) log: u64,
}

/// `struct vhost_vdpa_config` without the bytes behind it.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigHead {
    offset: u32,
    len: u32,
}

/// `struct vhost_vdpa_iova_range`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct IovaRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// What an eventfd of a queue is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Kick,
    Call,
    Err,
}

/// `VHOST_SET_VRING_KICK` and its kin; no descriptor takes away the one there is.
pub(crate) fn set_vring_fd(
    fd: BorrowedFd<'_>,
    wire: Wire,
    index: u32,
    event: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let number = match wire {
        Wire::Kick => SET_VRING_KICK,
        Wire::Call => SET_VRING_CALL,
        Wire::Err => SET_VRING_ERR,
    };
    number.set(fd, VringFile { index, fd: number_of(event) })
}

/// `VHOST_VDPA_SET_CONFIG_CALL`; no descriptor takes away the one there is.
pub(crate) fn set_config_call(fd: BorrowedFd<'_>, event: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    SET_CONFIG_CALL.set(fd, number_of(event))
}

fn number_of(event: Option<BorrowedFd<'_>>) -> i32 {
    event.map_or(-1, |event| event.as_raw_fd())
}

/// `VHOST_VDPA_GET_CONFIG`: fills `bytes` from `offset` on.
pub(crate) fn get_config(fd: BorrowedFd<'_>, offset: u32, bytes: &mut [u8]) -> Result<(), Errno> {
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::TOOBIG)?;
    // SAFETY: behind the structure the kernel writes as many bytes as `len` says, which is what `bytes` has.
    unsafe { GET_CONFIG.with_tail(fd, &ConfigHead { offset, len }, bytes) }
}

/// `VHOST_VDPA_SET_CONFIG`: these bytes from `offset` on.
pub(crate) fn set_config(fd: BorrowedFd<'_>, offset: u32, bytes: &[u8]) -> Result<(), Errno> {
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::TOOBIG)?;
    // SAFETY: behind the structure the kernel reads as many bytes as `len` says, which is what `bytes` has.
    unsafe { SET_CONFIG.with_tail(fd, &ConfigHead { offset, len }, &mut bytes.to_vec()) }
}

#[cfg(test)]
pub(super) mod tests;
