//! The guest's file system: a cpio archive in the `newc` form (kernel: `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Lab;
use super::setup::script;

/// The loader of the lab's root, which can say what a program needs.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What an entry of the archive is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A folder.
    Folder,
    /// A file that only its reader needs.
    Plain,
    /// A program.
    Program,
}

/// An initramfs in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    present: BTreeSet<String>,
    next_inode: u32,
}

impl Initramfs {
    /// The lab's guest: busybox, the modules of the devices under test, `/init`, and `guest_script` as `/guest.sh`.
    pub fn for_guest(lab: &Lab, guest_script: &str) -> std::io::Result<Initramfs> {
        let guest = lab.root().join("guest");
        let mut archive = Initramfs::default();
        archive.add("bin/busybox", FileKind::Program, &fs::read(guest.join("busybox"))?);
        archive.add("init", FileKind::Program, &fs::read(script("guest-init.sh"))?);
        archive.add("guest.sh", FileKind::Plain, guest_script.as_bytes());
        archive.add_modules(lab, "modules")?;
        Ok(archive)
    }

    /// Add the modules in this folder of the lab's guest to those that are loaded.
    pub fn add_modules(&mut self, lab: &Lab, folder: &str) -> std::io::Result<()> {
        for entry in fs::read_dir(lab.root().join("guest").join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.add(&format!("modules/{name}"), FileKind::Plain, &fs::read(&path)?);
        }
        Ok(())
    }

    /// Add a program of this machine with the shared libraries it needs, as `/bin/NAME`.
    pub fn add_program(&mut self, name: &str, program: &Path) -> std::io::Result<()> {
        self.add_with_libraries(name, program, &shared_libraries(program)?, Path::new("/"))
    }

    /// Add a program of the lab's root with the shared libraries it needs, by its own name in `/bin`. They come before programs of this
    /// machine, whose libraries are older: those work with newer ones.
    pub fn add_lab_program(&mut self, lab: &Lab, program: &str) -> std::io::Result<()> {
        let path = lab.root().join(program.trim_start_matches('/'));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let answer = lab.command(LOADER).args(["--list", program]).output()?;
        self.add_with_libraries(&name, &path, &listed(&answer.stdout), lab.root())
    }

    fn add_with_libraries(
        &mut self,
        name: &str,
        program: &Path,
        libraries: &[PathBuf],
        root: &Path,
    ) -> std::io::Result<()> {
        for library in libraries {
            let inside = library.strip_prefix("/").unwrap_or(library);
            let data = fs::read(root.join(inside))?;
            self.add(&inside.to_string_lossy(), FileKind::Program, &data);
        }
        self.add(&format!("bin/{name}"), FileKind::Program, &fs::read(program)?);
        Ok(())
    }

    /// Add an entry under its path without a leading slash, and the folders above it; what is there already stays.
    pub fn add(&mut self, path: &str, kind: FileKind, data: &[u8]) {
        if !self.present.insert(path.to_owned()) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.add(above, FileKind::Folder, &[]);
        }
        let mode = match kind {
            FileKind::Folder => 0o040_755,
            FileKind::Plain => 0o100_644,
            FileKind::Program => 0o100_755,
        };
        self.next_inode += 1;
        self.entry(path, self.next_inode, mode, data);
    }

    /// The archive, complete.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.archive
    }

    fn entry(&mut self, path: &str, inode: u32, mode: u32, data: &[u8]) {
        let size = u32::try_from(data.len()).expect("files below 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("short names");
        // magic, inode, mode, uid, gid, links, mtime, size, device, device of a device file, name's size, checksum
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.align();
        self.archive.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The shared libraries `program` is linked with and the loader that finds them, each under the path by which it is asked for.
pub fn shared_libraries(program: &Path) -> std::io::Result<Vec<PathBuf>> {
    let answer = Command::new("ldd").arg(program).output()?;
    Ok(listed(&answer.stdout))
}

/// The libraries in a loader's list: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)".
fn listed(list: &[u8]) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(list);
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stand_before_what_is_in_them_and_every_part_is_aligned() {
        let mut archive = Initramfs::default();
        archive.add("a/b/file", FileKind::Plain, b"12345");
        archive.add("a/b/other", FileKind::Program, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let at = |name: &str| text.find(&format!("{name}\0")).expect(name);
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/file") && at("a/b/file") < at("a/b/other"));
        assert!(at("a/b/other") < at("TRAILER!!!"));
        assert_eq!(text.matches("070701").count(), 5);
    }

    #[test]
    fn this_test_itself_needs_a_loader_and_the_c_library() {
        let libraries = shared_libraries(&std::env::current_exe().expect("a path")).expect("ldd runs");
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("ld-linux")), "{libraries:?}");
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }
}
