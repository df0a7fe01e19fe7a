//! UNSAFETY: why this file exists: lanes read the current table through a raw pointer, without a reference count,
//! because a count shared by all workers costs more than everything else on the path. What makes it sound is kept
//! in this file alone: a table is freed only by [`Retired`], after every lane that may have loaded it has left.

use std::{cell::Cell, mem::ManuallyDrop, ptr::NonNull};

use mdev_dma::{Iova, Perm, poison_epoch};

use crate::{
    error::ResolveError,
    parked::{Miss, Place, Waiters},
    revoke::Void,
    shard::{Count, Grace, Shard},
    slot::Slot,
    sync::{Arc, AtomicPtr, Mutex, Ordering, lock},
    sys::piece::{Found, Hint},
    table::Table,
};

/// An access's pointer to its table, and the lanes that read through it.
pub struct Published {
    /// From `Arc::into_raw`; owns one count of the table.
    current: AtomicPtr<Table>,
    /// Queues that wait for another table.
    pub waiters: Waiters,
    shards: Mutex<Vec<Arc<Shard>>>,
    /// What void pins need. Taken before `shards`.
    void: Mutex<Vec<Void>>,
}

impl Published {
    pub fn new(table: Arc<Table>) -> Arc<Self> {
        let current = AtomicPtr::new(Arc::into_raw(table).cast_mut());
        Arc::new(Published {
            current,
            waiters: Waiters::default(),
            shards: Mutex::new(Vec::new()),
            void: Mutex::new(Vec::new()),
        })
    }

    /// A new lane's end of this pointer, which counts pins or refuses them.
    pub fn reader(this: &Arc<Self>, may_pin: bool) -> Reader {
        let shard = Arc::new(Shard::new());
        let mut shards = lock(&this.shards);
        shards.retain(in_use);
        shards.push(shard.clone());
        drop(shards);
        Reader {
            published: this.clone(),
            shard,
            may_pin,
            sequence: 0,
            remembered: Cell::new(Remembered::NOTHING),
            recent: Recent::new(),
            counted: Cell::new(None),
            missed: Cell::new(None),
            touched: Cell::new(0),
        }
    }

    /// Publishes `table`. The caller serialises publications (they all happen under the mutex of the space).
    ///
    /// A reader that is created after the shards were copied takes the lock after this thread did, and so loads
    /// `table` or a later one.
    pub fn replace(&self, table: Arc<Table>) -> Retired {
        let old = self.current.swap(Arc::into_raw(table.clone()).cast_mut(), Ordering::AcqRel);
        self.waiters.look(&table);
        let mut shards = lock(&self.shards);
        shards.retain(in_use);
        let grace = Grace::begin(shards.iter().cloned());
        drop(shards);
        // SAFETY: `old` came from `Arc::into_raw` in `new` or in an earlier call, and the swap took it out of
        // `current`, so this is the only place that turns its count back into an `Arc`.
        let table = unsafe { Arc::from_raw(old) };
        Retired { table: ManuallyDrop::new(table), grace, freed: false }
    }

    /// Pins out on `slot`, over all lanes.
    pub fn pins_on(&self, slot: u32) -> u64 {
        lock(&self.shards).iter().map(|shard| shard.pins_on(slot)).sum()
    }

    /// Whether pins are out on one of `slots`.
    pub fn pins_on_any(&self, slots: &[Slot]) -> bool {
        slots.iter().any(|slot| self.pins_on(slot.number()) > 0)
    }

    /// Pins out on all slots, over all lanes, that are not void.
    pub fn pins(&self) -> u64 {
        let void = lock(&self.void);
        let slots = void.iter().flat_map(Void::slots).collect();
        lock(&self.shards).iter().map(|shard| shard.pins_beside(&slots)).sum()
    }

    /// Void pins out, over all lanes.
    pub fn voided(&self) -> u64 {
        let void = lock(&self.void);
        void.iter().flat_map(Void::slots).map(|slot| self.pins_on(slot)).sum()
    }

    /// Whether something is kept for void pins, or for lanes that may still take some.
    pub fn has_void(&self) -> bool {
        !lock(&self.void).is_empty()
    }

    /// Keeps what void pins need until [`Published::sweep`] finds the last one gone.
    pub fn keep(&self, void: Void) {
        lock(&self.void).push(void);
        self.sweep();
    }

    /// Releases what no void pin needs any more.
    pub fn sweep(&self) {
        let mut void = lock(&self.void);
        let mut gone = Vec::new();
        for mut each in std::mem::take(&mut *void) {
            let over = each.over(|slot| self.pins_on(slot));
            if over { gone.push(each) } else { void.push(each) }
        }
        drop(void);
        // Outside the lock: this may unmap windows.
        drop(gone);
    }

    /// The lanes of this access that still read one of these tables.
    pub fn late(&self, tables: &[Retired]) -> Grace {
        let shards = lock(&self.shards);
        let mut late = Grace::default();
        tables.iter().for_each(|table| late.join(&table.grace, &shards));
        late
    }
}

/// A shard is dropped from the list when its lane is gone (only the list holds it) and no pin refers to it.
fn in_use(shard: &Arc<Shard>) -> bool {
    Arc::strong_count(shard) > 1 || shard.pins() > 0
}

impl Drop for Published {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Acquire);
        // A pin refers to its shard, and to memory that a table holds, or `void` if it was revoked. An access that is dropped has been detached
        // and drained; should that ever be wrong, the memory is leaked rather than freed under the pin.
        let shards = std::mem::take(&mut *lock(&self.shards));
        if shards.iter().any(|shard| shard.pins() > 0) {
            log::error!("an access was dropped with pins out; its memory is never released");
            std::mem::forget((shards, std::mem::take(&mut *lock(&self.void))));
            return;
        }
        // SAFETY: the count that `new` or `replace` put into `current`. No reader is left: each holds an `Arc` of
        // this object.
        drop(unsafe { Arc::from_raw(current) });
    }
}

/// A table that was replaced: freed when no lane can still be reading it, leaked if dropped before that is known.
pub struct Retired {
    table: ManuallyDrop<Arc<Table>>,
    grace: Grace,
    freed: bool,
}

impl Retired {
    /// Frees the table if the grace is over; `true` then and ever after.
    pub fn poll(&mut self) -> bool {
        if !self.freed && self.grace.over() {
            self.freed = true;
            // SAFETY: dropped once, `freed` guards it, and not touched afterwards.
            unsafe { ManuallyDrop::drop(&mut self.table) };
        }
        self.freed
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        self.poll();
    }
}

/// A lane's right to read the published table.
pub struct Reader {
    published: Arc<Published>,
    shard: Arc<Shard>,
    /// Whether pins may be counted on it.
    may_pin: bool,
    /// The value last stored in the shard.
    sequence: u64,
    remembered: Cell<Remembered>,
    recent: Recent,
    counted: Cell<Option<Counted>>,
    /// Where a section looked last for what is not there.
    missed: Cell<Option<Miss>>,
    /// The windows that the section resolved from, see `Piece::window_bit`; a collision can only make
    /// `Burst::poisoned` too careful.
    touched: Cell<u64>,
}

/// The counter that was used last. It is one of the reader's shard, which never moves or drops one.
#[derive(Copy, Clone)]
struct Counted {
    slot: u32,
    count: NonNull<Count>,
}

// SAFETY: `Count` is `Sync`, and the reader that holds this moves with the shard it points into.
unsafe impl Send for Counted {}

/// The piece hit last, with what makes it still good in a later section: the same table, and no page lost since.
#[derive(Copy, Clone)]
struct Remembered {
    table: u64,
    epoch: u64,
    hint: Hint<'static>,
}

impl Remembered {
    /// No table has the id 0.
    const NOTHING: Self = Remembered { table: 0, epoch: 0, hint: Hint::NONE };
}

/// How many pages' pieces are remembered beside the one hit last.
const RECENT: usize = if cfg!(any(loom, miri)) { 4 } else { 512 };

/// Pieces hit of late, each in the place that the page it was hit in has: what an IOMMU's many small mappings, or a guest
/// with several regions, would else search the table for.
struct Recent {
    pieces: Box<[Cell<RecentPiece>]>,
    /// Which pieces are still good: those that were remembered since it was counted up.
    stamp: Cell<u64>,
}

/// A line of the cache, since each of them is met alone.
#[derive(Copy, Clone)]
#[repr(align(64))]
struct RecentPiece {
    page: u64,
    stamp: u64,
    hint: Hint<'static>,
}

impl Recent {
    fn new() -> Self {
        let nothing = RecentPiece { page: 0, stamp: 0, hint: Hint::NONE };
        Recent { pieces: (0..RECENT).map(|_| Cell::new(nothing)).collect(), stamp: Cell::new(1) }
    }

    /// Forgets all of them.
    fn forget(&self) {
        // It would take centuries to wrap.
        self.stamp.set(self.stamp.get().wrapping_add(1));
    }

    /// The page of an address, and its place.
    #[inline(always)]
    fn place(&self, iova: Iova) -> Option<(u64, &Cell<RecentPiece>)> {
        let page = iova.0 >> 12;
        // Fibonacci hashing: neighbours and multiples of a power of two spread alike.
        let hash = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Some((page, self.pieces.get(hash as usize % RECENT)?))
    }

    #[inline(always)]
    fn remember(&self, iova: Iova, hint: Hint<'static>) {
        if let Some((page, place)) = self.place(iova) {
            place.set(RecentPiece { page, stamp: self.stamp.get(), hint });
        }
    }

    #[inline(always)]
    fn recall(&self, iova: Iova) -> Option<Hint<'static>> {
        let (page, place) = self.place(iova)?;
        let recent = place.get();
        (recent.page == page && recent.stamp == self.stamp.get()).then_some(recent.hint)
    }
}

impl Reader {
    /// Opens a read-side section. A section that was forgotten (`mem::forget`) never ends for those who wait, but
    /// can be followed by another one.
    #[inline(always)]
    pub fn enter(&mut self) -> Section<'_> {
        // From even to the next odd number; from odd (a forgotten section) to the odd number after it.
        let odd = self.sequence.wrapping_add(1) | 1;
        self.shard.enter(odd);
        self.sequence = odd.wrapping_add(1);
        let table = self.published.current.load(Ordering::Acquire);
        // SAFETY: `table` came from `Arc::into_raw` and is freed only by a `Retired` whose grace began after the
        // pointer was replaced. That grace waits for this shard, which is in `published.shards` because `reader()`
        // put it there and `in_use` keeps it while `self.shard` lives: either the grace saw `odd` and waits for
        // `Section` to be dropped, or this load came after its fence and saw the replacement.
        let table = unsafe { &*table };
        // After the announcement: a page that is lost from here on differs from this.
        let epoch = poison_epoch();
        let remembered = self.remembered.get();
        if remembered.table != table.id || remembered.epoch != epoch {
            self.remembered.set(Remembered { table: table.id, epoch, hint: Hint::NONE });
            self.recent.forget();
        }
        // What an earlier section remembered may be hit without a search.
        self.touched.set(self.remembered.get().hint.window_bit);
        Section { inside: Inside { table, reader: self } }
    }

    /// The note that the last miss left, once.
    pub fn take_miss(&mut self) -> Option<Miss> {
        self.missed.take()
    }

    /// What it reads.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }
}

/// A read-side section; it ends when this is dropped.
pub struct Section<'r> {
    inside: Inside<'r>,
}

impl Section<'_> {
    /// The inside, for not longer than the section: the borrow is of `self`.
    #[inline(always)]
    pub fn inside(&self) -> Inside<'_> {
        self.inside
    }
}

impl Drop for Section<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let reader = self.inside.reader;
        reader.shard.leave(reader.sequence);
    }
}

/// Inside a read-side section. Passed by value, so that a burst can stay in registers: what is behind a reference must be
/// loaded again after every access to guest memory.
#[derive(Copy, Clone)]
pub struct Inside<'r> {
    table: &'r Table,
    reader: &'r Reader,
}

impl<'r> Inside<'r> {
    #[inline(always)]
    pub fn table(self) -> &'r Table {
        self.table
    }

    /// The piece that was remembered last.
    #[inline(always)]
    pub fn hint(self) -> Hint<'r> {
        // SAFETY: `enter` cleared what was not remembered in `self.table`, which is read during `'r`, and had what was
        // hit of late forgotten; `remember` took the rest from a piece of it, and `recall` what `remember` has left since.
        unsafe { self.reader.remembered.get().hint.for_section() }
    }

    /// Remembers a piece that was hit at `iova`, if it is of this section's table.
    #[inline(always)]
    pub fn remember(self, found: Found<'_>, iova: Iova) {
        if std::ptr::eq(found.inside().table, self.table) {
            // SAFETY: it is used again only while a section reads the table with this id.
            let hint = unsafe { Hint::of(found).for_section() };
            self.reader.remembered.set(Remembered { hint, ..self.reader.remembered.get() });
            self.reader.recent.remember(iova, hint);
        }
    }

    /// Makes the piece that was hit in the page of `iova` of late, in this table, the one hit last.
    #[inline(always)]
    pub fn recall(self, iova: Iova) -> bool {
        let Some(hint) = self.reader.recent.recall(iova) else { return false };
        self.reader.remembered.set(Remembered { hint, ..self.reader.remembered.get() });
        true
    }

    /// Counts windows in among those that the section resolved from.
    #[inline(always)]
    pub fn touch(self, windows: u64) {
        self.reader.touched.set(self.reader.touched.get() | windows);
    }

    /// The windows that the section resolved from.
    pub fn touched(self) -> u64 {
        self.reader.touched.get()
    }

    /// Leaves a note of a place that is not there.
    #[cold]
    pub fn missed(self, place: Place, perm: Perm) {
        self.reader.missed.set(Some(Miss { place, perm, answer: self.table.answer(place, perm) }));
    }

    /// The poison epoch at which the section was opened.
    #[inline(always)]
    pub fn epoch(self) -> u64 {
        self.reader.remembered.get().epoch
    }

    /// The lane's counter for pins on `slot`; `None` if it cannot be counted. Its shard is registered, and so kept while a
    /// pin is counted on it.
    #[inline(always)]
    pub fn counter(self, slot: u32) -> Option<&'r Count> {
        match self.reader.counted.get() {
            // SAFETY: of the reader's own shard, which the reader keeps.
            Some(last) if last.slot == slot => Some(unsafe { last.count.as_ref() }),
            _ => self.other_counter(slot),
        }
    }

    #[inline(never)]
    fn other_counter(self, slot: u32) -> Option<&'r Count> {
        if !self.reader.may_pin {
            return None;
        }
        let count = self.reader.shard.counter(slot)?;
        self.reader.counted.set(Some(Counted { slot, count: NonNull::from(count) }));
        Some(count)
    }

    /// Why [`Inside::counter`] has none.
    pub fn uncounted(self) -> ResolveError {
        if self.reader.may_pin { ResolveError::Overflow } else { ResolveError::NotPinning }
    }
}
