//! A device's attachment to an address space.

use std::time::Duration;

use mdev_dma::IovaRange;

use crate::{
    attachment::Attachment,
    change::Change,
    error::AccessError,
    ioas::Ioas,
    lane::Lane,
    pages::{Control, Holds},
    sync::{Arc, Backoff, Cell, Deadline, Mutex, lock, per_thread},
    sys::published::{Published, Retired},
    table::Table,
    transfer::Transfers,
};

/// What a device promises to an address space (`struct iommufd_access_ops`).
pub trait AccessOps: Send + Sync {
    /// Bytes of `range` are about to leave the space. The device lets its pins on them go soon; the unmapper waits
    /// for them. Called without any lock of this crate, possibly for ranges that the device does not use. It must
    /// not block: in particular not for the owner, for the caller, or for a close of this access. It may unpin, and
    /// take a lock that its device holds while it pins and records: nothing waits under that one.
    fn on_unmap(&self, range: IovaRange);

    /// Bytes of `range` that the device still holds, although the deadline of the change has passed, are to be revoked
    /// ([`crate::Past::Revoke`]). Answers whether no I/O that the kernel does is left on them: what there was has been
    /// cancelled, and is over. Accesses by the processor need no mention; they are diverted. Called under the same rules
    /// as `on_unmap`, after it; in particular it does not wait for I/O that takes its time, but answers `false`, as a
    /// device does that says nothing else. Then nothing is revoked.
    fn cancel(&self, _range: IovaRange) -> bool {
        false
    }
}

/// For devices that hold no pin beyond a burst, and give no guest memory to the kernel: nothing is to be done.
pub struct IgnoreUnmap;

impl AccessOps for IgnoreUnmap {
    fn on_unmap(&self, _range: IovaRange) {}

    fn cancel(&self, _range: IovaRange) -> bool {
        true
    }
}

/// How long a close waits for a callback into the device (`iommufd_object_remove` waits as long).
const CALLBACK_BOUND: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

per_thread! {
    /// Whether this thread is inside a callback, which a close must not wait for.
    IN_CALLBACK: bool = false
}

/// One device's attachment to an address space, and its own pointer to the published table.
///
/// Cloning shares it. Dropping the last clone closes it; what its device still holds then keeps the space alive.
#[derive(Clone)]
pub struct Access {
    owner: Arc<Owner>,
}

struct Owner {
    core: Arc<AccessCore>,
}

/// What lanes, spaces and changes share of an access.
pub struct AccessCore {
    /// First: its pins refer to counters of `published`.
    pub(crate) control: Control,
    pub(crate) transfers: Transfers,
    pub(crate) published: Arc<Published>,
    ops: std::sync::Arc<dyn AccessOps>,
    pub(crate) attachment: Mutex<Attachment>,
    callbacks: Mutex<Callbacks>,
}

#[derive(Default)]
struct Callbacks {
    running: u32,
    closed: bool,
}

impl Access {
    /// The access of a device that pins in bursts ([`crate::Burst::pin`]) and does not use [`Access::pin_pages`], attached
    /// to nothing. It is content with areas at any byte. While it is attached, all areas of its space are charged to
    /// their owner, because it may pin any of them without asking.
    pub fn new(ops: std::sync::Arc<dyn AccessOps>) -> Access {
        Access::create(ops, Holds::Pins)
    }

    /// The access of a device that holds nothing beyond a burst, attached to nothing: it pins neither in bursts nor pages,
    /// and nothing is charged for it.
    pub fn without_pins(ops: std::sync::Arc<dyn AccessOps>) -> Access {
        Access::create(ops, Holds::Nothing)
    }

    /// The access of a device that pins pages (`needs_pin_pages`), attached to nothing. While it is attached, areas
    /// of its space are aligned to pages. `ops` must let go of them
    /// when it is told: an access with [`IgnoreUnmap`] makes every unmap of a pinned range fail.
    pub fn pinning(ops: std::sync::Arc<dyn AccessOps>) -> Access {
        Access::create(ops, Holds::Pages)
    }

    fn create(ops: std::sync::Arc<dyn AccessOps>, holds: Holds) -> Access {
        let core = AccessCore {
            control: Control::new(holds),
            transfers: Transfers::default(),
            published: Published::new(Table::detached()),
            ops,
            attachment: Mutex::new(Attachment::None),
            callbacks: Mutex::new(Callbacks::default()),
        };
        Access { owner: Arc::new(Owner { core: Arc::new(core) }) }
    }

    /// Attaches to a space: its table is published to the lanes of this access.
    ///
    /// # Errors
    ///
    /// `Attached` \[EINVAL\], `Busy` during a detach, `Void` \[EBUSY\] with void pins out, `Closed`; `Space` if the
    /// space does not take it, \[ENOMEM\] if its areas cannot be charged.
    pub fn attach(&self, ioas: &Ioas) -> Result<(), AccessError> {
        let core = &self.owner.core;
        let mut attachment = lock(&core.attachment);
        match *attachment {
            Attachment::None => {}
            Attachment::Attached(_) => return Err(AccessError::Attached),
            Attachment::Changing { .. } => return Err(AccessError::Busy),
            Attachment::Closed => return Err(AccessError::Closed),
        }
        core.has_no_void()?;
        // Under the lock, so that no detach comes between the two.
        ioas.join(core, core.control.alignment())?;
        *attachment = Attachment::Attached(ioas.clone());
        Ok(())
    }

    /// Detaches, waiting up to `within` for lanes and pins; see [`Access::begin_detach`].
    pub fn detach(&self, within: Duration) -> Result<(), AccessError> {
        self.begin_detach(within)?.wait().map(drop).map_err(|_| AccessError::Deadlock)
    }

    /// Begins a detach: from here on every lookup and pin answers `ENOENT`, those of a burst that had begun before
    /// excepted. The change ends when no lane is inside such a burst and no pin of this access is out. Past the
    /// deadline the access stays in this state, and a detach may be begun again.
    ///
    /// # Errors
    ///
    /// `Detached` \[ENOENT\], `Closed`, `WouldWaitForItself` \[EDEADLK\], `Busy` if another detach is under way.
    pub fn begin_detach(&self, within: Duration) -> Result<Change, AccessError> {
        AccessCore::begin_detach(&self.owner.core, within)
    }

    /// Goes over to another space, waiting up to `within` for lanes and pins; see [`Access::begin_replace`].
    pub fn replace(&self, ioas: &Ioas, within: Duration) -> Result<(), AccessError> {
        match self.begin_replace(ioas, within)? {
            Some(change) => change.wait().map(drop).map_err(|_| AccessError::Deadlock),
            None => Ok(()),
        }
    }

    /// Begins to go over to another space (`iommufd_access_replace`); `None` if that is the space it is attached
    /// to: nothing changes, but that an access which a detach left closed at its deadline is open again. Meanwhile every lookup and pin answers `ENOENT`. The device is told that all its
    /// ranges go; when its pins are gone and no lane is in an earlier burst, the access leaves the old space and is
    /// shown the table of the new one. Past the deadline nothing is replaced: it is still attached to the old space,
    /// open again, with the pins that its device kept.
    ///
    /// # Errors
    ///
    /// `Detached` and `Closed` \[ENOENT\], `Busy` \[EBUSY\] if another change of it is under way, `Void` \[EBUSY\],
    /// `WouldWaitForItself`; `Space` if the new space does not take it, \[EADDRINUSE\] if its areas are not aligned
    /// as the access needs them. After an error nothing has changed.
    pub fn begin_replace(&self, ioas: &Ioas, within: Duration) -> Result<Option<Change>, AccessError> {
        AccessCore::begin_replace(&self.owner.core, ioas, within)
    }

    /// Detaches if attached, then waits for callbacks in flight. After success no callback runs or starts.
    ///
    /// # Errors
    ///
    /// As [`Access::detach`]; `CallbackStuck` \[EBUSY\] if a callback does not return within 60 s.
    pub fn close(&self, within: Duration) -> Result<(), AccessError> {
        if IN_CALLBACK.with(Cell::get) {
            return Err(AccessError::WouldWaitForItself);
        }
        let core = &self.owner.core;
        loop {
            match self.detach(within) {
                Ok(()) | Err(AccessError::Detached | AccessError::Closed) => {}
                Err(error) => return Err(error),
            }
            let mut attachment = lock(&core.attachment);
            // Unless somebody attached it again meanwhile.
            if let Attachment::None | Attachment::Closed = *attachment {
                *attachment = Attachment::Closed;
                break;
            }
        }
        lock(&core.callbacks).closed = true;
        let deadline = Deadline::within(CALLBACK_BOUND);
        let mut backoff = Backoff::default();
        while lock(&core.callbacks).running > 0 {
            if deadline.passed() {
                return Err(AccessError::CallbackStuck);
            }
            backoff.pause();
        }
        Ok(())
    }

    pub(crate) fn core(&self) -> &Arc<AccessCore> {
        &self.owner.core
    }

    /// A read side for one queue.
    pub fn lane(&self) -> Lane {
        let core = self.owner.core.clone();
        let reader = Published::reader(&core.published, core.control.pins_in_bursts());
        Lane::new(core, reader)
    }

    /// Pins of this access that are out, void ones not counted.
    pub fn pins(&self) -> u64 {
        self.owner.core.published.pins()
    }

    /// Void pins of this access that are out: the guest's memory was taken away from them ([`crate::Past::Revoke`]).
    /// Until they are dropped the access can be detached and closed, but not attached again. What they needed is
    /// released by the next change of the space, or here.
    pub fn voided(&self) -> u64 {
        self.owner.core.published.sweep();
        self.owner.core.published.voided()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Nobody is left who could unpin them.
        self.core.control.unpin_all();
        match &mut *lock(&self.core.attachment) {
            Attachment::Attached(_) => {}
            Attachment::Changing { orphaned } => {
                *orphaned = true;
                return;
            }
            Attachment::None | Attachment::Closed => return,
        }
        let left = AccessCore::begin_detach(&self.core, Duration::from_secs(1)).map(|change| change.wait());
        if !matches!(left, Ok(Ok(_))) {
            // The space and the access hold each other, so nothing that a pin refers to is released.
            log::error!("an access was dropped while its device holds guest memory, which is kept for ever");
        }
    }
}

impl AccessCore {
    /// Publishes `table` to the lanes of this access. Under the mutex of the space.
    pub(crate) fn publish(&self, table: Arc<Table>) -> Retired {
        self.published.replace(table)
    }

    /// Cancels transfers and tells the device, unless it is closed; a close waits for it.
    pub(crate) fn notify(&self, range: IovaRange) {
        self.transfers.cancel(range);
        self.call(|ops| ops.on_unmap(range));
    }

    /// Asks the device to take what it holds back from the kernel.
    pub(crate) fn cancel(&self, range: IovaRange) -> bool {
        self.call(|ops| ops.cancel(range)).unwrap_or(false)
    }

    fn call<R>(&self, callback: impl FnOnce(&dyn AccessOps) -> R) -> Option<R> {
        {
            let mut callbacks = lock(&self.callbacks);
            if callbacks.closed {
                return None;
            }
            callbacks.running = callbacks.running.saturating_add(1);
        }
        let outer = IN_CALLBACK.with(|inside| inside.replace(true));
        let done = callback(&*self.ops);
        IN_CALLBACK.with(|inside| inside.set(outer));
        let mut callbacks = lock(&self.callbacks);
        callbacks.running = callbacks.running.saturating_sub(1);
        Some(done)
    }
}
