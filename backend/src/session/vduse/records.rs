//! The file in which a device's rings record what they have in flight.
//!
//! It lies beside the kernel's device, which outlives this process too: a process that is killed leaves both, and the next one
//! finishes what is recorded. The file is a log for each ring, one behind the other, each with room for the largest ring of
//! either layout. It goes with the device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mdev_dma::{BackingFile, FileError, FileExtent, FilePolicy, Iova, IovaRange, Windows};
use mdev_protocol::vduse::DeviceName;
use thiserror::Error;

use crate::device::VirtioDevice;
use crate::ring::RingLog;
use crate::session::logs::{Logs, LogsError};

/// The file of one device.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: File,
}

/// Why requests in flight cannot be recorded.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say it
pub enum RecordsError {
    #[error("cannot keep requests in flight in {path:?}: {source}; choose another --state-dir")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} has {have:#x} bytes, but the device's rings need {need:#x}: another device was served by this name. Serve it \
         as before, or take it off the bus (vdpa dev del) and remove that file"
    )]
    Length { path: PathBuf, have: u64, need: u64 },
    #[error("cannot map {path:?}: {source}; choose another --state-dir")]
    Map { path: PathBuf, source: FileError },
    #[error("cannot map {path:?}: {source}")]
    Logs {
        path: PathBuf,
        #[source]
        source: Unmapped,
    },
    #[error("cannot reach memory: {0}")]
    Attach(String),
}

/// Why the file is not mapped.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct Unmapped(LogsError);

impl Records {
    /// Opens the file of a device in a folder, which is made if it is not there. `fresh`: the kernel's device was just made, and
    /// what the file says is of an earlier one.
    ///
    /// # Errors
    /// [`RecordsError::File`].
    pub fn open(folder: &Path, name: &DeviceName, fresh: bool) -> Result<Records, RecordsError> {
        let path = folder.join(format!("vduse-{name}.inflight"));
        let open = || {
            fs::create_dir_all(folder)?;
            if fresh
                && let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)
        };
        match open() {
            Ok(file) => Ok(Records { path, file }),
            Err(source) => Err(RecordsError::File { path, source }),
        }
    }

    /// The file goes with its device.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {:?}: {error}", self.path);
        }
    }

    /// The logs of a device's rings. A file that is empty gets room for them.
    pub(super) fn logs(
        &self,
        device: &dyn VirtioDevice,
        windows: Arc<Windows>,
    ) -> Result<Logs, RecordsError> {
        let path = || self.path.clone();
        let failed = |source| RecordsError::File { path: path(), source };
        let (rings, entries) = (device.queue_count(), device.max_ring_size());
        let stride = RingLog::len_of(false, entries).max(RingLog::len_of(true, entries)) as u64;
        let need = stride.saturating_mul(rings.into());
        match self.file.metadata().map_err(failed)?.len() {
            0 => self.file.set_len(need).map_err(failed)?,
            have if have == need => {}
            have => return Err(RecordsError::Length { path: path(), have, need }),
        }
        // The operator has chosen where it lies.
        let policy = FilePolicy { allow_other_filesystems: true, ..FilePolicy::default() };
        let fd = self.file.try_clone().map_err(failed)?.into();
        let file =
            BackingFile::new(fd, &policy).map_err(|source| RecordsError::Map { path: path(), source })?;
        let range = IovaRange::with_len(Iova(0), need)
            .map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        Logs::new(FileExtent { file, offset: 0 }, range, rings, stride, entries, windows)
            .map_err(|source| RecordsError::Logs { path: path(), source: Unmapped(source) })
    }
}
