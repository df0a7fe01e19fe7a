//! What this crate asks of the kernel with ioctl(2) and mmap(2), wrapped once.
//!
//! An ioctl is a [`Number`]: it belongs to the structure that the kernel reads or writes, so that no other can be given to
//! it. The numbers stand in one table for each driver, [`vduse`] and [`vhost_vdpa`], with the structures as the kernel's
//! headers lay them out. What they mean is said by the modules of the same names one level up.
//!
//! A driver that is asked for what it does not have answers `ENOTTY` or `EINVAL`. No address of this process is ever
//! handed over but that of a structure for the length of a call, and that of a [`Shown`] file.
//!
//! Four files need `unsafe`: one makes the call, one maps a file and takes it out again, and the two tables vouch for the
//! structures beside their numbers.

#[allow(unsafe_code)]
mod number;
#[allow(unsafe_code)]
mod shown;
#[allow(unsafe_code)]
pub(crate) mod vduse;
#[allow(unsafe_code)]
pub(crate) mod vhost_vdpa;

pub(crate) use number::Number;

pub(crate) use shown::Shown;

#[cfg(test)]
mod tests;
