//! Two spaces and three accesses under operations of somebody's choice, as a plain function of bytes: for libFuzzer and
//! for `cargo test`.
//!
//! Every operation is made on the real spaces and on a naive list of areas. Outcomes or error numbers must agree,
//! and so must areas, bytes, permissions and pins after each. One of the two files loses and regains pages; what lies in
//! it may answer with an error, and nothing else may.

mod device;
mod naive;
mod script;

use std::{sync::Arc, time::Duration};

#[cfg(not(miri))]
use mdev_dma::FilePolicy;
use mdev_dma::{Area, BackingFile, FileExtent, Iova, IovaRange, Perm, Windows};
use rustix::fs::ftruncate;
#[cfg(not(miri))]
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{Access, AccessError, Change, IgnoreUnmap, Ioas, Place, ResolveError, Rw};
use device::Device;
use naive::{FILE, Naive, NaiveArea, Outcome};
use script::Script;

/// Operations of one script: more would only repeat themselves.
const LONGEST: usize = 64;
/// The file that loses pages.
const LOSES: usize = 1;
const FOREVER: Duration = Duration::MAX;

/// Runs `script`: operations by a byte each, followed by what they need. A script that ends early is filled with zeros.
pub fn fuzz_operations(script: &[u8]) {
    // Out of descriptors or memory is nothing that was to be tried.
    let Some(mut world) = World::new() else { return };
    let mut script = Script::new(script);
    // Most scripts use all devices, at once or later.
    let which = script.below(8);
    for (device, space) in [(0, 0), (1, 1), (2, which % 2)].into_iter().take(which % 4) {
        world.attach(device, space);
    }
    for _ in 0..LONGEST {
        if script.is_empty() {
            break;
        }
        world.step(&mut script);
        world.agree();
    }
    world.end();
}

struct World {
    windows: Arc<Windows>,
    files: [Arc<BackingFile>; 2],
    spaces: [Ioas; 2],
    /// One for each space, to look through.
    eyes: [Access; 2],
    /// The last one pins pages.
    devices: [Device; 3],
    naive: Naive,
}

/// The error number of an outcome, which the naive side says too.
fn of<T, E: Into<AccessError>>(done: Result<T, E>) -> Outcome<T> {
    done.map_err(|error| error.into().errno())
}

impl World {
    fn new() -> Option<World> {
        let windows = Windows::new().ok()?;
        let naive = Naive::new();
        #[cfg(miri)]
        let file = |bytes: &Vec<u8>| {
            let file = BackingFile::of_heap(bytes.len())?;
            let range = IovaRange::with_len(Iova(0), FILE).ok()?;
            let extent = FileExtent { file: file.clone(), offset: 0 }.into();
            let all = Area { range, extent, perm: Perm::WRITE, log: None };
            let segment = windows.segments(&all).ok()?.pop()?;
            (segment.slice(Iova(0), bytes.len())?.copy_from(bytes) == bytes.len()).then_some(file)
        };
        #[cfg(not(miri))]
        let file = |bytes: &Vec<u8>| {
            let fd = memfd_create("mdev-pin-fuzz", MemfdFlags::CLOEXEC).ok()?;
            ftruncate(&fd, FILE).ok()?;
            let written = rustix::io::pwrite(&fd, bytes, 0).ok()?;
            (written == bytes.len()).then_some(())?;
            BackingFile::new(fd, &FilePolicy::default()).ok()
        };
        let [kept, loses] = &naive.files;
        let spaces = [Ioas::new(windows.clone()), Ioas::new(windows.clone())];
        let eyes = [(); 2].map(|()| Access::new(Arc::new(IgnoreUnmap)));
        for (eye, ioas) in eyes.iter().zip(&spaces) {
            eye.attach(ioas).ok()?;
        }
        let devices = [Device::new(false), Device::new(false), Device::new(true)];
        Some(World {
            files: [file(&kept.bytes)?, file(&loses.bytes)?],
            windows,
            spaces,
            eyes,
            devices,
            naive,
        })
    }

    fn area(&self, area: &NaiveArea) -> Option<Area> {
        Some(Area {
            range: area.range()?,
            extent: FileExtent { file: self.files.get(area.file)?.clone(), offset: area.offset }.into(),
            perm: area.perm,
            log: None,
        })
    }

    fn step(&mut self, script: &mut Script) -> Option<()> {
        match script.below(16) {
            0 | 1 => self.map(script),
            2 => self.map_anywhere(script),
            3 | 4 => self.unmap(script),
            5 => self.copy(script),
            6 => self.replace(script),
            7 => self.attach(script.below(3), script.below(2)),
            8 => self.detach(script),
            9 => self.change_space(script),
            10 => self.pin(script),
            11 => self.pin_pages(script),
            12 => self.unpin(script),
            13 => self.rw(script),
            14 => self.resize(script),
            _ => self.behave(script),
        }
    }

    fn map(&mut self, script: &mut Script) -> Option<()> {
        let space = script.below(2);
        let area = script.area();
        let done = of(self.spaces.get(space)?.map(self.area(&area)?));
        assert_eq!(done, self.naive.map(space, area));
        Some(())
    }

    fn map_anywhere(&mut self, script: &mut Script) -> Option<()> {
        let space = script.below(2);
        let area = script.area();
        let extent = FileExtent { file: self.files.get(area.file)?.clone(), offset: area.offset };
        match of(self.spaces.get(space)?.map_anywhere(extent, area.len, area.perm)) {
            Ok(at) => {
                assert!(at.0 >= naive::PAGE && at.0 % naive::PAGE == area.offset % naive::PAGE, "{at}");
                assert_eq!(self.naive.map(space, NaiveArea { first: at.0, ..area }), Ok(()), "at {at}");
            }
            // Demands alignment, or the file ends before it.
            Err(errno) => {
                let fits = self.naive.source_aligned(space, &area) && self.naive.in_file(&area);
                assert!(errno == 22 && !fits, "{errno} for {area:?}");
            }
        }
        Some(())
    }

    fn unmap(&mut self, script: &mut Script) -> Option<()> {
        let space = script.below(2);
        let range = match script.below(8) {
            0 => IovaRange::FULL,
            1 => script.area().range()?,
            which => self.naive.spaces.get(space)?.areas.get(which)?.range()?,
        };
        let expected = self.naive.unmap(space, range);
        let give_up = script.below(4) == 0;
        let Ok(change) = of(self.spaces.get(space)?.begin_unmap(range, FOREVER)).map_err(|errno| {
            assert_eq!(Err(errno), expected);
        }) else {
            return Some(());
        };
        if give_up {
            // What is not over is given up: areas stay, gated, until an unmap succeeds.
            drop(change);
            self.let_go();
            let left = of(self.spaces.get(space)?.unmap(range, FOREVER));
            assert!(
                matches!(left, Ok(bytes) if expected.is_ok_and(|all| bytes <= all)) || left == Err(2),
                "{left:?}"
            );
            return Some(());
        }
        assert_eq!(self.finish(change), expected);
        Some(())
    }

    /// The end of a change. It may wait for pins only, and ends when they are gone.
    fn finish(&self, mut change: Change) -> Outcome<u64> {
        let done = change.poll().or_else(|| {
            let pins: u64 = self.spaces.iter().map(Ioas::pins).sum();
            assert!(pins > 0, "a change waits for nobody");
            self.let_go();
            change.poll()
        });
        assert!(done.is_some(), "a change waits though no pin is out");
        of(done.unwrap_or(Ok(0)))
    }

    /// Every device lets go of what it holds.
    fn let_go(&self) {
        self.devices.iter().for_each(Device::let_go);
    }

    fn copy(&mut self, script: &mut Script) -> Option<()> {
        let (to_space, from_space) = (script.below(2), script.below(2));
        let source = script.area();
        let perm = source.perm;
        let place = (script.below(2) == 0).then(|| script.place());
        let at = place.map_or(Place::Anywhere, |at| Place::At(Iova(at)));
        let (to, from) = (self.spaces.get(to_space)?, self.spaces.get(from_space)?);
        let done = of(to.copy_from(from, Iova(source.first), source.len, at, perm));
        // Where there is room is not the naive side's business.
        let at = done.ok().map(|at| at.0).or(place);
        let expected = self.naive.copy((from_space, &source), to_space, at);
        match place {
            Some(_) => assert_eq!(done.map(|at| at.0), expected),
            None => assert!(done.map(|at| at.0) == expected || done == Err(22), "{done:?}, not {expected:?}"),
        }
        Some(())
    }

    fn replace(&mut self, script: &mut Script) -> Option<()> {
        let space = script.below(2);
        let mut wanted = Vec::new();
        for _ in 0..script.below(4) {
            // A part of what is there, or something else.
            let area = match script.below(2) {
                0 => script.area(),
                _ => self.naive.spaces.get(space)?.areas.first().cloned().map(|area| script.part(area))?,
            };
            wanted.push(area);
        }
        let areas = wanted.iter().map(|area| self.area(area)).collect::<Option<Vec<_>>>()?;
        let lost = self.naive.files.get(LOSES).is_some_and(|file| file.lost);
        match of(self.spaces.get(space)?.begin_replace(areas, FOREVER)) {
            Ok(change) => {
                let done = self.finish(change);
                assert_eq!(done, self.naive.replace(space, wanted));
            }
            // What stays of a file that became shorter is not asked for its size.
            Err(22) if lost => {}
            Err(errno) => assert_eq!(self.naive.replace(space, wanted), Err(errno)),
        }
        Some(())
    }

    fn attach(&mut self, device: usize, space: usize) -> Option<()> {
        let done = of(self.devices.get(device)?.access.attach(self.spaces.get(space)?));
        assert_eq!(done, self.naive.attach(device, space));
        Some(())
    }

    fn detach(&mut self, script: &mut Script) -> Option<()> {
        let device = script.below(3);
        let access = &self.devices.get(device)?.access;
        let done = of(access.begin_detach(FOREVER)).and_then(|change| {
            let refused = access.lane().enter().slice(Iova(0), 1, Perm::READ).map(|_| ());
            assert_eq!(refused, Err(ResolveError::Detached));
            self.finish(change).map(drop)
        });
        assert_eq!(done, self.naive.detach(device));
        Some(())
    }

    fn change_space(&mut self, script: &mut Script) -> Option<()> {
        let (device, space) = (script.below(3), script.below(2));
        let access = &self.devices.get(device)?.access;
        let done = of(access.begin_replace(self.spaces.get(space)?, FOREVER));
        let done = done.and_then(|change| change.map_or(Ok(0), |change| self.finish(change)));
        assert_eq!(done.map(drop), self.naive.change_space(device, space));
        Some(())
    }

    /// What a device touches: mostly a part of what is mapped, or what it touched before.
    fn touched(&self, script: &mut Script, device: usize) -> NaiveArea {
        let wanted = script.area();
        let again = self.devices.get(device).and_then(Device::first_pages).filter(|_| script.below(4) == 0);
        let mapped = self.naive.areas_of(device).get(script.below(8)).cloned();
        match again.or(mapped.map(|area| script.part(area))) {
            Some(area) => NaiveArea { perm: wanted.perm, ..area },
            None => wanted,
        }
    }

    fn pin(&mut self, script: &mut Script) -> Option<()> {
        let device = script.below(3);
        let wanted = self.touched(script, device);
        let places = self.naive.pin(device, &wanted);
        let pinned = self.devices.get(device)?.pin(&wanted, places.clone().unwrap_or_default());
        self.outcome(pinned, places.map(drop), &wanted, device);
        Some(())
    }

    fn pin_pages(&mut self, script: &mut Script) -> Option<()> {
        let device = script.below(8).clamp(1, 2);
        let wanted = self.touched(script, device);
        let expected = self.naive.pin_pages(device, &wanted);
        let pinned = self.devices.get(device)?.pin_pages(&wanted);
        self.outcome(pinned, expected, &wanted, device);
        Some(())
    }

    /// Memory that may have been lost may also answer that it was.
    fn outcome(&self, done: Outcome<()>, expected: Outcome<()>, wanted: &NaiveArea, device: usize) {
        let lost = self.naive.touches_lost(device, wanted) && matches!(done, Err(14 | 22));
        assert!(done == expected || lost, "{done:?}, not {expected:?}, for {wanted:?}");
    }

    fn unpin(&mut self, script: &mut Script) -> Option<()> {
        let device = self.devices.get(script.below(3))?;
        match script.below(4) {
            0 => {
                let area = script.area();
                let known = device.has_pages(area.range()?);
                let done = of(device.access.unpin_pages(Iova(area.first), area.len));
                assert_eq!(done, if known { Ok(()) } else { Err(22) });
                if known {
                    device.forget_pages(area.range()?);
                }
            }
            _ => device.unpin_one(),
        }
        Some(())
    }

    fn rw(&mut self, script: &mut Script) -> Option<()> {
        let device = script.below(3);
        let wanted = self.touched(script, device);
        let len = usize::try_from(wanted.len).ok()?;
        let access = &self.devices.get(device)?.access;
        if wanted.perm.contains(Perm::WRITE) {
            let bytes = vec![script.byte(); len];
            let done = of(access.rw(Iova(wanted.first), Rw::Write(&bytes)));
            let expected = self.naive.write(device, &wanted, &bytes);
            self.outcome(done, expected, &wanted, device);
            if self.naive.touches_lost(device, &wanted) {
                // How far it came is not known.
                let (file, naive) = (self.files.first()?, self.naive.files.first_mut()?);
                let read = rustix::io::pread(file.as_fd(), &mut naive.bytes, 0);
                assert_eq!(read, usize::try_from(FILE).map_err(|_| rustix::io::Errno::OVERFLOW));
            }
        } else {
            let mut bytes = vec![0; len];
            let done = of(access.rw(Iova(wanted.first), Rw::Read(&mut bytes)));
            let expected = self.naive.read(device, &wanted);
            if done.is_ok() && !self.naive.touches_lost(device, &wanted) {
                assert!(expected.as_ref() == Ok(&bytes), "other bytes at {:#x}", wanted.first);
            }
            self.outcome(done, expected.map(drop), &wanted, device);
        }
        Some(())
    }

    fn resize(&mut self, script: &mut Script) -> Option<()> {
        let len = script.place() % (FILE + 1);
        if cfg!(miri) {
            return None;
        }
        let file = self.naive.files.get_mut(LOSES)?;
        if ftruncate(self.files.get(LOSES)?.as_fd(), len).is_ok() {
            // Whether a window met the hole is not the naive side's business.
            file.lost |= len < FILE;
            file.len = len;
        }
        Some(())
    }

    /// A device begins or ceases to ignore what it is told; or an operation is tried where it is refused.
    fn behave(&mut self, script: &mut Script) -> Option<()> {
        let device = self.devices.get(script.below(3))?;
        match script.below(2) {
            0 => device.set_stubborn(script.below(2) == 1),
            _ => {
                let mut lane = device.access.lane();
                let burst = lane.enter();
                for ioas in &self.spaces {
                    assert_eq!(of(ioas.unmap_all(FOREVER)), Err(35));
                    assert_eq!(of(ioas.replace_table(Vec::new(), FOREVER)), Err(35));
                }
                assert_eq!(of(device.access.detach(FOREVER)), Err(35));
                drop(burst);
            }
        }
        Some(())
    }

    /// Both sides say the same of everything there is.
    fn agree(&self) {
        let spaces = self.spaces.iter().zip(&self.eyes).zip(&self.naive.spaces);
        for ((ioas, eye), naive) in spaces {
            let mut expected: Vec<_> = naive.areas.iter().filter_map(NaiveArea::range).collect();
            expected.sort_by_key(|range| range.first());
            assert_eq!(ioas.areas().iter().map(|area| area.range).collect::<Vec<_>>(), expected);
            assert_eq!(ioas.iova_alignment(), naive.alignment());
            let mut lane = eye.lane();
            let burst = lane.enter();
            for area in &naive.areas {
                for at in [area.first.wrapping_sub(1), area.first, area.last(), area.last().wrapping_add(1)] {
                    let found = naive.at(at);
                    let slice = burst.slice(Iova(at), 1, Perm::READ);
                    let lost = found.is_some_and(|area| self.naive.is_lost(area.file));
                    let poisoned = matches!(slice, Err(ResolveError::Poisoned));
                    let seen = slice.ok().and_then(|slice| slice.read::<u8>(0));
                    if lost && (poisoned || seen.is_some() == self.naive.byte(found, at).is_some()) {
                        continue;
                    }
                    assert_eq!(seen, self.naive.byte(found, at), "at {at:#x} of {area:?}");
                    let writable = found.is_some_and(|area| area.perm.contains(Perm::WRITE));
                    assert_eq!(burst.slice(Iova(at), 1, Perm::WRITE).is_ok(), writable, "at {at:#x}");
                }
            }
        }
        for (number, device) in self.devices.iter().enumerate() {
            device.agree(number, &self.naive);
        }
    }

    /// Everything goes, and nothing is left.
    fn end(self) {
        self.let_go();
        for device in &self.devices {
            assert_eq!(of(device.access.close(FOREVER)), Ok(()));
            assert_eq!(device.access.pins(), 0);
        }
        for (ioas, eye) in self.spaces.iter().zip(&self.eyes) {
            assert!(of(ioas.unmap_all(FOREVER)).is_ok());
            assert_eq!(of(eye.close(FOREVER)), Ok(()));
            assert_eq!((ioas.pins(), of(ioas.destroy())), (0, Ok(0)));
        }
        assert_eq!(self.windows.live(), 0);
        // Copies are charged where they come from, so after both.
        assert!(self.spaces.iter().all(|ioas| ioas.account().pinned() == 0), "a page is still charged");
        for file in &self.files {
            assert_eq!(Arc::strong_count(file), 1, "a file is still open");
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
