//! Doorbells: how far the host got in its queues (base specification, section 3.1.3).
//!
//! The registers are a page of a sealed memory file, which the client may map: engines read there what it writes, without
//! anybody in between. A client that does not map it has its writes trapped, and the control thread stores them in the same page.
//! The file has the layout of the controller's first BAR, in which a page of registers comes first, so that a client can map
//! it at the offset where it sees the doorbells. Nobody looks at that first page.
//!
//! A host may write its doorbells to memory of its own instead, by Doorbell Buffer Config (section 5.8, annex B.5), and touch the
//! register only when it passes the event index that it is given. Once it does, that memory is what counts. The doorbells of
//! the admin queues stay registers, since drivers do not put them there.
//!
//! Everything here is written by the other side at any time: a value means nothing before it was checked against its queue.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Segment, Windows};
use mdev_pin::{Burst, KeptSlice, ResolveError};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

/// Bytes of the page.
const PAGE: u64 = 4096;
/// Queue pairs whose doorbells lie in it, with a stride of four bytes.
const PAIRS: u16 = 512;

/// Where in the page the tail of a submission queue is.
const fn tail_offset(qid: u16) -> u64 {
    (qid as u64).wrapping_mul(8)
}

/// Where in the page the head of a completion queue is.
const fn head_offset(qid: u16) -> u64 {
    tail_offset(qid).wrapping_add(4)
}

/// Memory of the host that stands for the registers: a page each, laid out as the registers are.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// What the host writes.
    pub doorbells: Iova,
    /// What the controller writes: where the host has to touch a register.
    pub events: Iova,
}

/// The doorbells of a controller.
pub struct Doorbells {
    file: Arc<BackingFile>,
    page: Segment,
    shadow: Mutex<Option<Shadow>>,
    /// Differs whenever the shadow differs.
    generation: AtomicU64,
}

impl Doorbells {
    /// Where the doorbells are, in the file and in the first BAR.
    pub const OFFSET: u64 = PAGE;
    /// Bytes that they take.
    pub const LEN: u64 = PAGE;

    /// Doorbells at zero.
    ///
    /// # Errors
    /// No memory, no descriptor, or no room for another mapping.
    pub fn new() -> io::Result<Self> {
        let fd = memfd_create("mdevd-doorbells", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let size = PAGE.saturating_mul(2);
        ftruncate(&fd, size)?;
        fallocate(&fd, FallocateFlags::empty(), 0, size)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = BackingFile::new(fd, &FilePolicy::default()).map_err(io::Error::other)?;
        let range = IovaRange::with_len(Iova(0), PAGE).map_err(io::Error::other)?;
        let extent = FileExtent { file: file.clone(), offset: PAGE };
        let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
        let page = Windows::new()?.segments(&area).map_err(io::Error::other)?.pop();
        let page = page.ok_or_else(|| io::Error::other("a page has no segment"))?;
        Ok(Self { file, page, shadow: Mutex::new(None), generation: AtomicU64::new(0) })
    }

    /// The file, for a client to map: its second page, at [`Doorbells::OFFSET`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The register of a submission queue. Anything.
    pub fn tail(&self, qid: u16) -> u32 {
        self.load(tail_offset(qid))
    }

    /// A trapped write to it.
    pub fn set_tail(&self, qid: u16, value: u32) {
        self.store(tail_offset(qid), value);
    }

    /// The register of a completion queue. Anything.
    pub fn head(&self, qid: u16) -> u32 {
        self.load(head_offset(qid))
    }

    /// A trapped write to it.
    pub fn set_head(&self, qid: u16, value: u32) {
        self.store(head_offset(qid), value);
    }

    /// All registers are zero, and the host has no memory that stands for them. While no queue runs.
    pub fn reset(&self) {
        self.set_shadow(None);
        if let Some(page) = self.page.window.slice(self.page.offset, PAGE as usize) {
            page.fill(0);
        }
    }

    /// What stands for the registers of I/O queues from now on. Engines notice it in their next burst.
    pub fn set_shadow(&self, shadow: Option<Shadow>) {
        let mut present = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        if *present != shadow {
            *present = shadow;
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The same, and first writes there what the registers of these I/O queue pairs say, since the host may never have done so. What
    /// Doorbell Buffer Config does.
    ///
    /// # Errors
    /// A page that is no memory, or must not be written. Nothing has changed.
    pub fn begin_shadow(&self, burst: &Burst<'_>, shadow: Shadow, pairs: u16) -> Result<(), ResolveError> {
        let write = Perm::READ | Perm::WRITE;
        let places = [shadow.doorbells, shadow.events].map(|at| burst.slice(at, PAGE as u32, write));
        let [doorbells, events] = places;
        let (doorbells, events) = (doorbells?, events?);
        for qid in 1..=pairs.min(PAIRS.saturating_sub(1)) {
            for offset in [tail_offset(qid), head_offset(qid)] {
                let value = self.load(offset).to_le();
                doorbells.store_u32(offset as usize, value, Ordering::Relaxed);
                events.store_u32(offset as usize, value, Ordering::Relaxed);
            }
        }
        self.set_shadow(Some(shadow));
        Ok(())
    }

    #[inline(always)]
    fn load(&self, offset: u64) -> u32 {
        let place = self.page.window.slice(self.page.offset.wrapping_add(offset), 4);
        u32::from_le(place.and_then(|place| place.load_u32(0, Ordering::Acquire)).unwrap_or_default())
    }

    fn store(&self, offset: u64, value: u32) {
        if let Some(place) = self.page.window.slice(self.page.offset.wrapping_add(offset), 4) {
            place.store_u32(0, value.to_le(), Ordering::Release);
        }
    }
}

/// One doorbell, wherever the host writes it.
pub(super) struct Doorbell {
    doorbells: Arc<Doorbells>,
    offset: u64,
    /// Of an I/O queue.
    may_have_shadow: bool,
    generation: u64,
    shadow: Option<Places>,
}

/// Where the host's memory for one doorbell is: found in the present table, and kept until it changes.
struct Places {
    value: Place,
    event: Place,
}

struct Place {
    at: Iova,
    kept: Option<KeptSlice>,
}

impl Doorbell {
    /// The tail of a submission queue.
    pub(super) fn of_tail(doorbells: Arc<Doorbells>, qid: u16) -> Self {
        Self::new(doorbells, qid, tail_offset(qid))
    }

    /// The head of a completion queue.
    pub(super) fn of_head(doorbells: Arc<Doorbells>, qid: u16) -> Self {
        Self::new(doorbells, qid, head_offset(qid))
    }

    fn new(doorbells: Arc<Doorbells>, qid: u16, offset: u64) -> Self {
        // No generation is that one: the first look finds what there is.
        Self { doorbells, offset, may_have_shadow: qid != 0, generation: u64::MAX, shadow: None }
    }

    /// Its value, if that can be had without a look at the host's memory.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> Option<u32> {
        if self.generation != self.doorbells.generation.load(Ordering::Acquire) {
            self.refresh();
        }
        match self.shadow {
            None => Some(self.doorbells.load(self.offset)),
            Some(_) => None,
        }
    }

    /// Its value.
    ///
    /// # Errors
    /// The host's memory for it is not there.
    #[inline(always)]
    pub(super) fn read(&mut self, burst: &Burst<'_>) -> Result<u32, ResolveError> {
        match self.peek() {
            Some(value) => Ok(value),
            None => self.read_shadow(burst),
        }
    }

    fn read_shadow(&mut self, burst: &Burst<'_>) -> Result<u32, ResolveError> {
        let Some(places) = &mut self.shadow else { return Ok(self.doorbells.load(self.offset)) };
        let place = places.value.slice(burst, Perm::READ)?;
        let value = u32::from_le(place.load_u32(0, Ordering::Acquire).unwrap_or_default());
        if burst.poisoned() && place.poisoned() { Err(ResolveError::Poisoned) } else { Ok(value) }
    }

    /// Asks the host to touch the register when it moves on from `value`, which is where it was seen. To be looked at again
    /// after this. Registers are always touched.
    ///
    /// # Errors
    /// As [`Doorbell::read`].
    pub(super) fn wish(&mut self, burst: &Burst<'_>, value: u32) -> Result<(), ResolveError> {
        if self.peek().is_none()
            && let Some(places) = &mut self.shadow
        {
            let place = places.event.slice(burst, Perm::READ | Perm::WRITE)?;
            place.store_u32(0, value.to_le(), Ordering::Relaxed);
            // The wish must be out before the doorbell is read again: the host writes the doorbell and then reads the wish.
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    #[cold]
    fn refresh(&mut self) {
        let present = self.doorbells.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation = self.doorbells.generation.load(Ordering::Acquire);
        let place = |page: Iova| Place { at: Iova(page.0.wrapping_add(self.offset)), kept: None };
        self.shadow = present
            .filter(|_| self.may_have_shadow)
            .map(|shadow| Places { value: place(shadow.doorbells), event: place(shadow.events) });
    }
}

impl Place {
    #[inline]
    fn slice<'s>(
        &mut self,
        burst: &'s Burst<'_>,
        perm: Perm,
    ) -> Result<mdev_dma::GuestSlice<'s>, ResolveError> {
        if let Some(slice) = self.kept.as_ref().and_then(|kept| burst.recall(kept)) {
            return Ok(slice);
        }
        let (slice, kept) = burst.slice_to_keep(self.at, 4, perm)?;
        self.kept = Some(kept);
        Ok(slice)
    }
}
