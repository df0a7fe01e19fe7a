//! Bounce pages that this process gives to the kernel.
//!
//! A driver of the host reaches the device through bounce pages: the kernel copies what it writes and reads between its own
//! memory and them. They are pages of the kernel, which are mapped here one by one as they are touched, or, if the operator
//! wants that, a file of this process: populated once, locked, and mapped in large pieces.

use std::sync::Arc;

use mdev_dma::{BackingFile, FilePolicy};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::kernel::Kernel;

/// The bounce pages of a device.
#[derive(Default)]
pub(super) enum Bounce {
    /// They are the kernel's.
    #[default]
    Kernels,
    /// They are to be ours as soon as there are some.
    Wanted,
    /// They are ours, and stay that until the device's file is closed.
    Ours(Arc<BackingFile>),
}

impl Bounce {
    /// The file of the bounce pages, if these are ours: what the kernel's table shows as its own memory from `first` to `last`
    /// lies there at the same offset. What cannot be given is told once, and stays the kernel's.
    pub(super) fn file(&mut self, kernel: &dyn Kernel, first: u64, last: u64) -> Option<Arc<BackingFile>> {
        if first != 0 || matches!(self, Bounce::Kernels) || !kernel.is_bounce(first, last).ok()? {
            return None;
        }
        if let Bounce::Wanted = self {
            *self = match give(kernel, last.saturating_add(1)) {
                Ok(file) => Bounce::Ours(file),
                Err(error) => {
                    log::warn!(
                        "the kernel does not take memory for its bounce pages, and uses its own: {error}"
                    );
                    Bounce::Kernels
                }
            };
        }
        match self {
            Bounce::Ours(file) => Some(file.clone()),
            Bounce::Kernels | Bounce::Wanted => None,
        }
    }
}

/// Gives the kernel so many bytes of a new file.
fn give(kernel: &dyn Kernel, size: u64) -> Result<Arc<BackingFile>, String> {
    // The kernel charges them to this process, whoever it runs as.
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    if current != maximum && setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum }).is_err() {
        log::warn!("cannot raise the limit of locked memory ({current:?})");
    }
    let fd = memfd_create("vduse-bounce", MemfdFlags::CLOEXEC).map_err(|errno| errno.to_string())?;
    ftruncate(&fd, size).map_err(|errno| errno.to_string())?;
    let file = BackingFile::new(fd, &FilePolicy::default()).map_err(|error| error.to_string())?;
    kernel.give_bounce(file.as_fd(), size).map_err(|error| error.to_string())?;
    Ok(file)
}
