//! Who writes into a guest's memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use mdevd::driver::Region;

/// No byte of a pattern's beginning.
const MARK: u8 = 0xa5;
/// Bytes that are looked at in one go.
const PIECE: usize = 1 << 20;
/// What the memory files of guests are called.
const NAME: &str = "/memfd:guest-memory";

/// Memory files of a guest into which nobody is to write any more. Every byte of them is watched, not only those of requests.
#[derive(Debug, Default)]
pub struct Watched {
    files: Vec<File>,
}

impl Watched {
    /// The files of these regions.
    ///
    /// # Panics
    /// No descriptors left.
    pub fn of<'r>(regions: impl IntoIterator<Item = &'r Region>) -> Watched {
        let own = |region: &Region| region.extent.file.as_fd().try_clone_to_owned().expect("a descriptor");
        Watched { files: regions.into_iter().map(|region| File::from(own(region))).collect() }
    }

    /// The files of the guests that a process of ours has: they outlive it.
    pub fn of_process(pid: u32) -> Watched {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Watched::default() };
        let paths = descriptors.flatten().map(|entry| entry.path());
        let of_guest = paths.filter(|path| {
            std::fs::read_link(path).is_ok_and(|name| name.to_string_lossy().starts_with(NAME))
        });
        // One that is gone by now has ended.
        Watched {
            files: of_guest
                .filter_map(|path| OpenOptions::new().read(true).write(true).open(path).ok())
                .collect(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Fills them with bytes that nobody but a late writer changes.
    ///
    /// # Panics
    /// A file cannot be written.
    pub fn mark(&self) {
        let mark = vec![MARK; PIECE];
        self.each_piece(|file, at, len| {
            file.write_all_at(&mark[..len], at).expect("a file that can be written")
        });
    }

    /// Whether all bytes are still those of [`Watched::mark`].
    ///
    /// # Panics
    /// A file cannot be read.
    pub fn is_marked(&self) -> bool {
        let mut bytes = vec![0; PIECE];
        let mut all = true;
        self.each_piece(|file, at, len| {
            let bytes = &mut bytes[..len];
            file.read_exact_at(bytes, at).expect("a file that can be read");
            all &= bytes.iter().all(|byte| *byte == MARK);
        });
        all
    }

    fn each_piece(&self, mut each: impl FnMut(&File, u64, usize)) {
        // The last one is that of the data, where writers are most likely: it comes first.
        for file in self.files.iter().rev() {
            let size = file.metadata().expect("a file").len();
            for at in (0..size).step_by(PIECE) {
                each(file, at, (size - at).min(PIECE as u64) as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdevd::driver::{GuestMemory, MemoryOptions};

    #[test]
    fn one_byte_that_is_written_is_found_and_no_byte_is_not() {
        let size = 3 * PIECE as u64 / 2;
        let memory = GuestMemory::new(MemoryOptions { size, ..Default::default() }).expect("memory");
        let region = &memory.regions()[0];
        let watched = Watched::of([region]);
        assert!(!watched.is_empty() && !watched.is_marked());
        watched.mark();
        assert!(watched.is_marked());
        memory.slice(region.range.last(), 1).expect("a byte").fill(0);
        assert!(!watched.is_marked());
    }
}
