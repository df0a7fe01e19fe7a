//! What a device may be called.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::DEVICE_FOLDER;
use crate::sys::vduse::NAME_FIELD;

/// The name of a VDUSE device: that of its file in `/dev/vduse`, and by which it is added to the vDPA bus. It has 1 to
/// [`DeviceName::MAX`] bytes, none of them a zero, a slash or an exclamation mark, and is not `control`, `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

/// Why something is no name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no bytes, or too many.
    #[error("a VDUSE device's name has 1 to {max} bytes, not {len}", max = DeviceName::MAX)]
    Length {
        /// Its bytes.
        len: usize,
    },
    /// It could not be the name of a file in `/dev/vduse`.
    #[error("a VDUSE device cannot be called {name:?}: its name is that of a file in {DEVICE_FOLDER}")]
    NoFile {
        /// What was to be the name.
        name: String,
    },
}

impl DeviceName {
    /// The most bytes of a name (`VDUSE_NAME_MAX` counts the zero behind it).
    pub const MAX: usize = NAME_FIELD - 1;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device's file.
    pub fn path(&self) -> PathBuf {
        [DEVICE_FOLDER, self.as_str()].iter().collect()
    }

    /// The name as the kernel is told it, zeroes behind it.
    pub(super) fn field(&self) -> [u8; NAME_FIELD] {
        let mut field = [0; NAME_FIELD];
        field.iter_mut().zip(self.0.bytes()).for_each(|(place, byte)| *place = byte);
        field
    }
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > Self::MAX {
            return Err(NameError::Length { len: name.len() });
        }
        // The kernel turns slashes into exclamation marks and those into folders.
        if name.contains(['\0', '/', '!']) || matches!(name, "control" | "." | "..") {
            return Err(NameError::NoFile { name: name.into() });
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
