//! What a refusal of the kernel means for whoever runs the daemon.

use rustix::io::Errno;

use super::{API_VERSION, CONTROL_PATH, ConfigError, DEVICE_FOLDER, DeviceName};

/// Why something could not be done through `/dev/vduse/control`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no VDUSE here.
    #[error(
        "there is no {CONTROL_PATH}; load the kernel module with `modprobe vduse`, and in a container share {DEVICE_FOLDER}"
    )]
    Absent,
    /// The file may not be opened.
    #[error(
        "{CONTROL_PATH} may not be opened ({0}); run as root or give this user the right to read and write it"
    )]
    Denied(Errno),
    /// The kernel does not speak this version.
    #[error("the kernel does not speak version {0} of VDUSE (this program speaks up to {API_VERSION})")]
    Version(u64),
    /// The kernel lacks features.
    #[error("the kernel's VDUSE lacks some of the features {0:#x}")]
    Features(u64),
    /// No device can be made of that.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel does not want this device, and does not say why.
    #[error(
        "the kernel refused to make the VDUSE device {0} (EINVAL); does its configuration fit the version that was set?"
    )]
    Refused(DeviceName),
    /// The device is there already.
    #[error("there is a VDUSE device {0} already; if no daemon serves it, open it or destroy it")]
    Exists(DeviceName),
    /// Network devices need a capability.
    #[error("the VDUSE device {0} may not be made; network devices need CAP_NET_ADMIN")]
    NotPermitted(DeviceName),
    /// The device is in use.
    #[error(
        "the VDUSE device {0} is in use; remove it from the bus with `vdpa dev del {0}` and stop the daemon that serves it"
    )]
    Busy(DeviceName),
    /// There is no such device.
    #[error("there is no VDUSE device {0}")]
    NoDevice(DeviceName),
    /// Anything else.
    #[error("{call} failed on {CONTROL_PATH}: {errno}")]
    Failed {
        /// What was asked.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl ControlError {
    /// What this errno of opening the file means.
    pub(super) fn of_open(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Self::Absent,
            Errno::ACCESS | Errno::PERM => Self::Denied(errno),
            errno => Self::Failed { call: "open", errno },
        }
    }

    /// What this errno of making a device means.
    pub(super) fn of_create(name: &DeviceName, errno: Errno) -> Self {
        match errno {
            Errno::EXIST => Self::Exists(name.clone()),
            Errno::PERM => Self::NotPermitted(name.clone()),
            Errno::INVAL => Self::Refused(name.clone()),
            errno => Self::Failed { call: "VDUSE_CREATE_DEV", errno },
        }
    }

    /// What this errno of unmaking a device means.
    pub(super) fn of_destroy(name: &DeviceName, errno: Errno) -> Self {
        match errno {
            Errno::BUSY => Self::Busy(name.clone()),
            Errno::INVAL => Self::NoDevice(name.clone()),
            errno => Self::Failed { call: "VDUSE_DESTROY_DEV", errno },
        }
    }
}

/// Why something could not be done with a device's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device.
    #[error(
        "there is no VDUSE device {0} in {DEVICE_FOLDER}; create it first, and in a container share that folder"
    )]
    Absent(DeviceName),
    /// The file may not be opened.
    #[error(
        "the VDUSE device {name} may not be opened ({errno}); run as root or give this user the right to read and write its file"
    )]
    Denied {
        /// Which device.
        name: DeviceName,
        /// What the kernel said.
        errno: Errno,
    },
    /// Somebody serves it.
    #[error("the VDUSE device {0} is served by another process; one daemon at a time may open it")]
    Busy(DeviceName),
    /// The kernel has given the device up, for ever.
    #[error(
        "{call}: the kernel has given this VDUSE device up, because a request was not answered in time or not done; remove it from the bus (`vdpa dev del`), destroy it and create it again"
    )]
    Broken {
        /// What was asked.
        call: &'static str,
    },
    /// The kernel does not know the call, or not for devices of this version.
    #[error("{call} is unknown to this kernel, or to devices of version 0 of VDUSE")]
    Unsupported {
        /// What was asked.
        call: &'static str,
    },
    /// The arguments or the moment are wrong.
    #[error("{call} was refused: {why}")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// What the kernel minds.
        why: &'static str,
    },
    /// Anything else.
    #[error("{call} failed on a VDUSE device: {errno}")]
    Failed {
        /// What was asked.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl DeviceError {
    /// What this errno of opening the file means.
    pub(super) fn of_open(name: &DeviceName, errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Self::Absent(name.clone()),
            Errno::ACCESS | Errno::PERM => Self::Denied { name: name.clone(), errno },
            Errno::BUSY => Self::Busy(name.clone()),
            errno => Self::Failed { call: "open", errno },
        }
    }
}

/// A call of a device's file, and what it means when the kernel says `EINVAL` to it.
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) invalid: &'static str,
}

impl Call {
    /// What this errno means for this call.
    pub(super) fn refused(&self, errno: Errno) -> DeviceError {
        let call = self.name;
        match errno {
            Errno::PERM => DeviceError::Broken { call },
            Errno::NOTTY => DeviceError::Unsupported { call },
            Errno::INVAL => DeviceError::Refused { call, why: self.invalid },
            errno => DeviceError::Failed { call, errno },
        }
    }
}
