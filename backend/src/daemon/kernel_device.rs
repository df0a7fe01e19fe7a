//! Devices of the host's own kernel (VDUSE): how they are made, taken over, and removed.

use std::path::PathBuf;
use std::sync::Arc;

use mdev_protocol::vduse::{
    API_VERSION, Control, ControlError, Device, DeviceConfig, DeviceError, DeviceKind, DeviceName, Groups,
    VduseFeatures, VqSetup,
};
use thiserror::Error;

use crate::device::VirtioDevice;
use crate::session::vduse::{Records, RecordsError, features, space};

/// Where requests in flight are recorded unless the operator says otherwise: it goes with the kernel's devices.
pub const DEFAULT_STATE_DIR: &str = "/run/mdevd";

/// The alignment of the parts of a ring for drivers of the old layout, which are not served.
const QUEUE_ALIGN: u32 = 4096;

/// Entries of a ring at most. Drivers make their rings as large as they may be, and virtio-net fills the one for what it receives: all
/// of a device's buffers must fit in the kernel's bounce pages, which are 64 MiB, and a packet has up to 64 KiB.
const MAX_RING: u16 = 256;

/// A device of the kernel that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDoor {
    /// What it is called.
    pub name: DeviceName,
    /// It stays when it is not served any more.
    pub keep: bool,
    /// The folder of the file in which its requests in flight are recorded.
    pub state_dir: PathBuf,
    /// The kernel is given memory for the bounce pages of its drivers.
    pub own_bounce: bool,
}

/// Why a device of the kernel cannot be served.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say it
pub enum KernelDeviceError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error("this kind of device cannot be served to the kernel")]
    Kind,
    #[error(
        "the kernel's VDUSE has no control queue, so that a network device has one pair of queues; give --queue-pairs 1"
    )]
    Pairs,
    #[error(
        "there is a VDUSE device {0} already, and it has another number of queues or another configuration: choose another name, \
         serve the device as before, or take it off the bus (vdpa dev del {0}) so that its daemon removes it"
    )]
    Other(DeviceName),
    #[error("the configuration space cannot be read: {0}")]
    Space(String),
}

/// A device of the kernel that is served. When it goes the kernel's device goes too, unless it is to stay or is in use.
#[derive(Debug)]
pub(super) struct KernelDevice {
    door: KernelDoor,
    device: Option<Arc<Device>>,
    records: Option<Records>,
}

impl KernelDoor {
    /// Makes the kernel's device, or takes over one that nobody serves.
    ///
    /// # Errors
    /// No VDUSE here or no right to it, a name in use, another device of that name, no place for the records.
    pub(super) fn open(&self, device: &dyn VirtioDevice) -> Result<KernelDevice, KernelDeviceError> {
        let kind = DeviceKind::from_id(device.device_id()).ok_or(KernelDeviceError::Kind)?;
        if kind == DeviceKind::Net && device.queue_count() > 2 {
            return Err(KernelDeviceError::Pairs);
        }
        let control = Control::open()?;
        let version = control.api_version()?.min(API_VERSION);
        control.set_api_version(version)?;
        control.set_features(control.features()? & (VduseFeatures::QUEUE_READY | VduseFeatures::SUSPEND))?;
        let config = DeviceConfig {
            name: self.name.clone(),
            kind,
            vendor_id: 0,
            features: features(device),
            queues: device.queue_count().into(),
            queue_align: QUEUE_ALIGN,
            groups: (version > 0).then_some(Groups { groups: 1, address_spaces: 1 }),
            space: space(device).map_err(KernelDeviceError::Space)?,
        };
        let mut fresh = match control.create(&config) {
            Ok(()) => true,
            Err(ControlError::Exists(_)) => false,
            Err(error) => return Err(error.into()),
        };
        // From here on it goes again if something is wrong with it.
        let mut served = KernelDevice { door: self.clone(), device: None, records: None };
        served.door.keep |= !fresh;
        let mut file = Device::open(&self.name)?;
        let fit = if fresh { Ok(()) } else { fits(&file, &config) };
        match fit {
            Ok(()) => {}
            // Nobody was there when its driver wanted something. Off the bus it can be replaced.
            Err(DeviceError::Broken { .. }) => {
                drop(file);
                control.destroy(&self.name)?;
                control.create(&config)?;
                log::info!("{}: the kernel had given the device up; it is made anew", self.name);
                (fresh, served.door.keep) = (true, self.keep);
                file = Device::open(&self.name)?;
            }
            Err(_) => return Err(KernelDeviceError::Other(self.name.clone())),
        }
        for index in 0..config.queues {
            let set_up = file.set_up_queue(VqSetup {
                index,
                max_size: device.max_ring_size().min(MAX_RING),
                group: 0,
            });
            // A device that a driver uses has been set up.
            if let (Err(error), true) = (set_up, fresh) {
                return Err(error.into());
            }
        }
        served.device = Some(Arc::new(file));
        if device.tracks_in_flight() {
            served.records = Some(Records::open(&self.state_dir, &self.name, fresh)?);
        }
        served.door.keep = self.keep;
        if !fresh {
            log::info!("{}: the kernel has the device already; it is taken over", self.name);
        }
        Ok(served)
    }
}

/// Whether a device that is there has as many queues and as large a configuration space, which then is what it should be.
fn fits(file: &Device, config: &DeviceConfig) -> Result<(), DeviceError> {
    let misfit = || DeviceError::Absent(config.name.clone());
    let len = u32::try_from(config.space.len()).map_err(|_| misfit())?;
    if file.queue(config.queues, false).is_ok() || file.set_config(len, &[0]).is_ok() {
        return Err(misfit());
    }
    file.queue(config.queues.saturating_sub(1), false)?;
    file.set_config(0, &config.space)
}

impl KernelDevice {
    /// The kernel's side of it.
    pub(super) fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// Whether the kernel is given memory for bounce pages.
    pub(super) fn own_bounce(&self) -> bool {
        self.door.own_bounce
    }

    /// Where its requests in flight are recorded.
    pub(super) fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }
}

impl Drop for KernelDevice {
    fn drop(&mut self) {
        self.device = None;
        let name = &self.door.name;
        if self.door.keep {
            return;
        }
        match Control::open().and_then(|control| control.destroy(name)) {
            Ok(()) => {
                if let Some(records) = &self.records {
                    records.remove();
                }
            }
            Err(ControlError::Busy(_)) => log::warn!(
                "{name}: the kernel's device stays, because it is on the vDPA bus: its driver waits until it is served again \
                 by this name. To be rid of it, take it off the bus (vdpa dev del {name}) while it is served, and stop"
            ),
            Err(error) => log::warn!("{name}: the kernel's device stays: {error}"),
        }
    }
}
