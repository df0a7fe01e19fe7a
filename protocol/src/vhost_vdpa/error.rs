//! What a refusal of the kernel means for whoever drives the device.

use rustix::io::Errno;

/// Why something could not be done with a vDPA device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VdpaError {
    /// There is no such file.
    #[error(
        "there is no {path}; load vhost_vdpa (`modprobe vhost_vdpa`) before the device is added with `vdpa dev add`"
    )]
    Absent {
        /// The file.
        path: String,
    },
    /// The file may not be opened.
    #[error(
        "{path} may not be opened ({errno}); run as root or give this user the right to read and write it"
    )]
    Denied {
        /// The file.
        path: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// Somebody else drives it.
    #[error("{path} is in use by another process")]
    Busy {
        /// The file.
        path: String,
    },
    /// It is something else.
    #[error("{path} is no vDPA device; its path is /dev/vhost-vdpa-N")]
    NotVdpa {
        /// The file.
        path: String,
    },
    /// The device does not do what it is told.
    #[error("{call}: the device did not do it; does its daemon live, and what does its log say?")]
    DeviceFailed {
        /// What was asked.
        call: &'static str,
    },
    /// Nobody owns the device yet.
    #[error("{call} comes before VHOST_SET_OWNER, or this process does not own the device")]
    NotOwner {
        /// What was asked.
        call: &'static str,
    },
    /// The moment is wrong.
    #[error("{call}: it is too late for that; reset the device first")]
    TooLate {
        /// What was asked.
        call: &'static str,
    },
    /// There is no such queue.
    #[error("{call}: the device has no such queue, or no such group")]
    NoSuchQueue {
        /// What was asked.
        call: &'static str,
    },
    /// The device or the kernel cannot do this.
    #[error("{call} is not supported by this device or this kernel")]
    Unsupported {
        /// What was asked.
        call: &'static str,
    },
    /// The arguments are wrong.
    #[error("{call} was refused: an argument is wrong, or the device is not in a state for it")]
    Refused {
        /// What was asked.
        call: &'static str,
    },
    /// The kernel did not take a change of memory, and does not say why.
    #[error(
        "the kernel refused {change}: the addresses overlap others or are out of range, there is no such address space, or the device did not answer; the kernel's log may say more"
    )]
    Memory {
        /// What was to change.
        change: &'static str,
    },
    /// Anything else.
    #[error("{call} failed on a vDPA device: {errno}")]
    Failed {
        /// What was asked.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl VdpaError {
    /// What this errno of an ioctl means.
    pub(super) fn of_call(call: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::IO => Self::DeviceFailed { call },
            Errno::PERM => Self::NotOwner { call },
            Errno::BUSY => Self::TooLate { call },
            Errno::NOBUFS => Self::NoSuchQueue { call },
            Errno::OPNOTSUPP | Errno::NOTTY => Self::Unsupported { call },
            Errno::INVAL => Self::Refused { call },
            errno => Self::Failed { call, errno },
        }
    }

    /// What this errno of opening `path` means.
    pub(super) fn of_open(path: String, errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Self::Absent { path },
            Errno::ACCESS | Errno::PERM => Self::Denied { path, errno },
            Errno::BUSY => Self::Busy { path },
            Errno::IO => Self::DeviceFailed { call: "opening it, which resets the device" },
            errno => Self::Failed { call: "open", errno },
        }
    }
}
