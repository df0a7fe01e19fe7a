//! The vDPA bus: putting a device of VDUSE on it, and finding the file through which it is lent.
//!
//! Devices are put on the bus by generic netlink. The program `vdpa` of iproute2 does that, and whoever serves such devices has
//! it anyway.
use mdev_protocol::vduse::DeviceName;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where the bus shows its devices.
const DEVICES: &str = "/sys/bus/vdpa/devices";
/// Where it shows its drivers.
const DRIVERS: &str = "/sys/bus/vdpa/drivers";
/// The driver that lends devices to processes.
const DRIVER: &str = "vhost_vdpa";
/// What its files are called, before their number.
const FILE: &str = "vhost-vdpa-";
/// Where the program is, if not where programs are looked for.
const TOOLS: [&str; 3] = ["vdpa", "/usr/sbin/vdpa", "/sbin/vdpa"];
/// How often to look for a file that is about to be there.
const LOOK: Duration = Duration::from_millis(2);

/// Why a device is not on the bus, or cannot be reached there.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The program is not there.
    #[error("there is no program `vdpa`, which puts devices on the vDPA bus; install iproute2")]
    NoTool,
    /// The program could not be run.
    #[error("cannot run `vdpa`: {0}")]
    Run(#[source] io::Error),
    /// The program failed.
    #[error("`vdpa {arguments}` failed: {said}")]
    Tool {
        /// What it was told.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// There is no such driver in the kernel.
    #[error("the kernel has no driver {DRIVER}; load it with `modprobe {DRIVER}`")]
    NoDriver,
    /// The device is not on the bus.
    #[error(
        "there is no device {0} on the vDPA bus; put it there with `vdpa dev add name {0} mgmtdev vduse`"
    )]
    NotThere(DeviceName),
    /// Nobody lends the device.
    #[error(
        "the vDPA device {name} belongs to {}, not to {DRIVER}; of the drivers that are loaded the first one takes a device: \
         unload virtio_vdpa, then load {DRIVER}", .driver.as_deref().unwrap_or("no driver")
    )]
    Driver {
        /// The device.
        name: DeviceName,
        /// Whose it is.
        driver: Option<String>,
    },
    /// The file is not there.
    #[error(
        "there is no {0:?}, though the kernel has that device; does /dev come from the kernel (devtmpfs)?"
    )]
    NoFile(PathBuf),
}

/// A device that was put on the bus. Dropping it takes it off; whoever has its file open delays that, so close it first.
#[derive(Debug)]
pub struct BusDevice {
    name: DeviceName,
    path: PathBuf,
    there: bool,
}

impl BusDevice {
    /// Whether devices can be put on the bus and lent here.
    ///
    /// # Errors
    /// [`BusError::NoDriver`], [`BusError::NoTool`], [`BusError::Run`].
    pub fn check() -> Result<(), BusError> {
        if !Path::new(DRIVERS).join(DRIVER).exists() {
            return Err(BusError::NoDriver);
        }
        run(&["-V"]).map(drop)
    }

    /// Puts the VDUSE device of this name on the bus, and waits so long for its file.
    ///
    /// # Errors
    /// [`BusError`]. A device that was put there is taken off again.
    pub fn add(name: &DeviceName, within: Duration) -> Result<Self, BusError> {
        run(&["dev", "add", "name", name.as_str(), "mgmtdev", "vduse"])?;
        let mut device = BusDevice { name: name.clone(), path: PathBuf::new(), there: true };
        let deadline = Instant::now().checked_add(within);
        loop {
            let found = Self::find(name);
            match found {
                Ok(path) => {
                    device.path = path;
                    return Ok(device);
                }
                Err(error) if deadline.is_none_or(|deadline| Instant::now() >= deadline) => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// The file of a device that is on the bus: `/dev/vhost-vdpa-N`.
    ///
    /// # Errors
    /// [`BusError::NotThere`], [`BusError::Driver`], [`BusError::NoFile`].
    pub fn find(name: &DeviceName) -> Result<PathBuf, BusError> {
        let path = Path::new("/dev").join(file_in(Path::new(DEVICES), name)?);
        if path.exists() { Ok(path) } else { Err(BusError::NoFile(path)) }
    }

    /// The file through which it is lent.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it off the bus.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn remove(mut self) -> Result<(), BusError> {
        self.there = false;
        run(&["dev", "del", self.name.as_str()]).map(drop)
    }
}

impl Drop for BusDevice {
    fn drop(&mut self) {
        if self.there
            && let Err(error) = run(&["dev", "del", self.name.as_str()])
        {
            log::warn!("{}: it stays on the vDPA bus: {error}", self.name);
        }
    }
}

/// The name of a device's file, as the bus shows it.
fn file_in(devices: &Path, name: &DeviceName) -> Result<String, BusError> {
    let device = devices.join(name.as_str());
    let Ok(entries) = device.read_dir() else { return Err(BusError::NotThere(name.clone())) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let file = names
        .into_iter()
        .find(|entry| entry.strip_prefix(FILE).is_some_and(|number| number.parse::<u32>().is_ok()));
    file.ok_or_else(|| {
        let driver = device.join("driver").read_link().ok();
        let driver = driver.and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned()));
        BusError::Driver { name: name.clone(), driver }
    })
}

/// Runs the program.
fn run(arguments: &[&str]) -> Result<Output, BusError> {
    for tool in TOOLS {
        let ran = Command::new(tool).args(arguments).stdin(Stdio::null()).output();
        return match ran {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(BusError::Run(error)),
            Ok(output) if output.status.success() => Ok(output),
            Ok(output) => Err(BusError::Tool {
                arguments: arguments.join(" "),
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
        };
    }
    Err(BusError::NoTool)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, remove_dir_all};
    use std::os::unix::fs::symlink;

    fn bus(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mdevd-bus-{}-{test}", std::process::id()));
        create_dir_all(folder.join("devices/disk")).unwrap();
        folder
    }

    fn disk() -> DeviceName {
        "disk".parse().unwrap()
    }

    #[test]
    fn file_of_a_device_is_the_entry_with_a_number() {
        let bus = bus("found");
        for entry in ["vhost-vdpa-", "vhost-vdpa-x", "vhost-vdpa-12", "power"] {
            create_dir_all(bus.join("devices/disk").join(entry)).unwrap();
        }
        assert_eq!(file_in(&bus.join("devices"), &disk()).unwrap(), "vhost-vdpa-12");
        remove_dir_all(bus).unwrap();
    }

    #[test]
    fn device_of_another_driver_is_refused_and_the_driver_named() {
        let bus = bus("driver");
        let found = || file_in(&bus.join("devices"), &disk());
        assert!(matches!(found(), Err(BusError::Driver { driver: None, .. })));
        symlink("../../drivers/virtio_vdpa", bus.join("devices/disk/driver")).unwrap();
        let error = found().unwrap_err().to_string();
        assert!(error.contains("belongs to virtio_vdpa") && error.contains("vhost_vdpa"), "{error}");
        remove_dir_all(bus).unwrap();
    }

    #[test]
    fn device_that_is_not_on_the_bus_is_said_so() {
        let bus = bus("absent");
        let other = "other".parse().unwrap();
        let error = file_in(&bus.join("devices"), &other).unwrap_err();
        assert!(error.to_string().contains("vdpa dev add name other"), "{error}");
        remove_dir_all(bus).unwrap();
    }
}
