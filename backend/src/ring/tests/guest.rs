//! A guest for tests: one memory file, rings and descriptors written word by word, right or wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::ring::{self, QueueState, RingAddr, RingSetup};

/// Where guest memory begins for the device: not at 0, so that offsets and addresses cannot be mixed up.
pub(crate) const BASE: u64 = 0x10_0000;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory, mapped for a device at [`BASE`].
pub(crate) struct Guest {
    pub(crate) file: Arc<BackingFile>,
    pub(crate) ioas: Ioas,
    pub(crate) access: Access,
    segment: Segment,
    len: u64,
}

impl Guest {
    pub(crate) fn new(len: u64) -> Self {
        let fd = memfd_create("mdevd-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
        let windows = Windows::new().unwrap();
        let segment = windows.segments(&area(&file, BASE, 0, len)).unwrap().remove(0);
        let ioas = Ioas::new(windows);
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let guest = Self { file, ioas, access, segment, len };
        guest.map();
        guest
    }

    /// Maps all memory at [`BASE`].
    pub(crate) fn map(&self) {
        self.ioas.map(area(&self.file, BASE, 0, self.len)).unwrap();
    }

    /// Maps all memory in two areas that meet `at` bytes into it.
    pub(crate) fn map_in_two(&self, at: u64) {
        self.unmap();
        self.map_in_two_from_nothing(at);
    }

    /// The same where nothing is mapped.
    pub(crate) fn map_in_two_from_nothing(&self, at: u64) {
        self.ioas.map(area(&self.file, BASE, 0, at)).unwrap();
        self.ioas.map(area(&self.file, BASE + at, at, self.len - at)).unwrap();
    }

    pub(crate) fn unmap(&self) {
        let all = IovaRange::with_len(Iova(BASE), self.len).unwrap();
        self.ioas.unmap(all, std::time::Duration::from_secs(10)).unwrap();
    }

    pub(crate) fn lane(&self) -> Lane {
        self.access.lane()
    }

    /// The bytes, by offset in the file.
    pub(crate) fn memory(&self) -> GuestSlice<'_> {
        self.segment.window.slice(0, self.len as usize).unwrap()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let target = self.memory().subslice(at as usize, bytes.len()).unwrap();
        assert_eq!(target.copy_from(bytes), bytes.len());
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory().subslice(at as usize, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    pub(crate) fn word(&self, at: u64) -> u16 {
        self.memory().load_u16(at as usize, Ordering::Acquire).unwrap()
    }

    pub(crate) fn set_word(&self, at: u64, value: u16) {
        self.memory().store_u16(at as usize, value, Ordering::Release).unwrap();
    }
}

pub(crate) fn area(file: &Arc<BackingFile>, iova: u64, offset: u64, len: u64) -> Area {
    Area {
        range: IovaRange::with_len(Iova(iova), len).unwrap(),
        extent: FileExtent { file: file.clone(), offset }.into(),
        perm: Perm::READ | Perm::WRITE,
        log: None,
    }
}

/// One ring in guest memory, as the driver sees it.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// The index the device begins at.
    pub(crate) start: u16,
    /// The index to be published next.
    pub(crate) next: u16,
}

impl Ring {
    /// A ring at offset `at`, which takes at most 32 bytes per entry and a page; both indices at `start`.
    pub(crate) fn new(guest: &Guest, at: u64, size: u16, start: u16) -> Self {
        let desc = at;
        let avail = desc + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        guest.set_word(avail + 2, start);
        guest.set_word(used + 2, start);
        Self { size, desc, avail, used, start, next: start }
    }

    pub(crate) fn setup(&self, guest: &Guest) -> RingSetup {
        let at = |offset| RingAddr::Extent(FileExtent { file: guest.file.clone(), offset });
        RingSetup {
            size: self.size,
            desc: at(self.desc),
            avail: at(self.avail),
            used: at(self.used),
            event_idx: false,
            indirect: true,
            packed: false,
            in_order: false,
            state: QueueState::split(self.start),
            log: None,
        }
    }

    /// The device's side of it.
    pub(crate) fn device(&self, guest: &Guest) -> ring::Ring {
        ring::Ring::new(self.setup(guest)).unwrap()
    }

    /// Writes a descriptor, its buffer `at` an offset in the file.
    pub(crate) fn describe(&self, guest: &Guest, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = self.desc + 16 * u64::from(index);
        guest.write(place, &descriptor(BASE + at, len, flags, next));
    }

    /// Puts a chain into the available ring without publishing it.
    pub(crate) fn offer(&mut self, guest: &Guest, head: u16) {
        guest.set_word(self.avail + 4 + 2 * u64::from(self.next % self.size), head);
        self.next = self.next.wrapping_add(1);
    }

    pub(crate) fn publish(&self, guest: &Guest) {
        guest.set_word(self.avail + 2, self.next);
    }

    /// One chain of one buffer, published.
    pub(crate) fn give(&mut self, guest: &Guest, head: u16, at: u64, len: u32, flags: u16) {
        self.describe(guest, head, at, len, flags, 0);
        self.offer(guest, head);
        self.publish(guest);
    }

    pub(crate) fn used_index(&self, guest: &Guest) -> u16 {
        guest.word(self.used + 2)
    }

    /// The used entry at a free-running index: head and length.
    pub(crate) fn used(&self, guest: &Guest, index: u16) -> (u32, u32) {
        let bytes = guest.read(self.used + 4 + 8 * u64::from(index % self.size), 8);
        let half = |from: usize| u32::from_le_bytes(bytes[from..from + 4].try_into().unwrap());
        (half(0), half(4))
    }
}

/// The bytes of a descriptor.
pub(crate) fn descriptor(iova: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&iova.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
