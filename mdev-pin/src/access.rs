//! A device's attachment to an address space.

use std::time::Duration;

use mdev_dma::IovaRange;

use crate::{
    change::{Change, Work},
    error::{AccessError, IoasError},
    ioas::Ioas,
    lane::{self, Lane},
    pages::Control,
    sync::{Arc, Backoff, Cell, Deadline, Mutex, lock, per_thread},
    sys::published::{Published, Retired},
    table::Table,
};

/// What a device promises to an address space (`struct iommufd_access_ops`).
pub trait AccessOps: Send + Sync {
    /// Bytes of `range` are about to leave the space. The device lets its pins on them go soon; the unmapper waits
    /// for them. Called without any lock of this crate, possibly for ranges that the device does not use. It must
    /// not block: in particular not for the owner, for the caller, or for a close of this access.
    fn on_unmap(&self, range: IovaRange);
}

/// For devices that hold no pin beyond a burst: nothing is to be done.
pub struct IgnoreUnmap;

impl AccessOps for IgnoreUnmap {
    fn on_unmap(&self, _range: IovaRange) {}
}

/// How long a close waits for a callback into the device (`iommufd_object_remove` waits as long).
const CALLBACK_BOUND: Duration = Duration::from_secs(60);

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
    pub(crate) published: Arc<Published>,
    ops: std::sync::Arc<dyn AccessOps>,
    attachment: Mutex<Attachment>,
    callbacks: Mutex<Callbacks>,
}

/// `Attached` and `Leaving` hold the space: an access keeps it alive after everything else is gone.
enum Attachment {
    None,
    Attached(Ioas),
    Leaving(Ioas),
    Closed,
}

#[derive(Default)]
struct Callbacks {
    running: u32,
    closed: bool,
}

impl Access {
    /// The access of a device that does not use [`Access::pin_pages`], attached to nothing. It is content with areas
    /// at any byte.
    pub fn new(ops: std::sync::Arc<dyn AccessOps>) -> Access {
        Access::create(ops, false)
    }

    /// The access of a device that pins pages (`needs_pin_pages`), attached to nothing. While it is attached, areas
    /// of its space are aligned to pages. `ops` must let go of them
    /// when it is told: an access with [`IgnoreUnmap`] makes every unmap of a pinned range fail.
    pub fn pinning(ops: std::sync::Arc<dyn AccessOps>) -> Access {
        Access::create(ops, true)
    }

    fn create(ops: std::sync::Arc<dyn AccessOps>, pinning: bool) -> Access {
        let core = AccessCore {
            control: Control::new(pinning),
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
    /// `Attached` \[EINVAL\], `Busy` during a detach, `Closed`; `Space` if the space does not take it.
    pub fn attach(&self, ioas: &Ioas) -> Result<(), AccessError> {
        let core = &self.owner.core;
        let mut attachment = lock(&core.attachment);
        match *attachment {
            Attachment::None => {}
            Attachment::Attached(_) => return Err(AccessError::Attached),
            Attachment::Leaving(_) => return Err(AccessError::Busy),
            Attachment::Closed => return Err(AccessError::Closed),
        }
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

    /// Detaches if attached, then waits for callbacks in flight. After success no callback runs or starts.
    ///
    /// # Errors
    ///
    /// As [`Access::detach`]; `CallbackStuck` \[EBUSY\] if a callback does not return within 60 s.
    pub fn close(&self, within: Duration) -> Result<(), AccessError> {
        if IN_CALLBACK.with(Cell::get) {
            return Err(AccessError::WouldWaitForItself);
        }
        match self.detach(within) {
            Ok(()) | Err(AccessError::Detached | AccessError::Closed) => {}
            Err(error) => return Err(error),
        }
        let core = &self.owner.core;
        *lock(&core.attachment) = Attachment::Closed;
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
        let reader = Published::reader(&core.published);
        Lane::new(core, reader)
    }

    /// Pins of this access that are out.
    pub fn pins(&self) -> u64 {
        self.owner.core.published.pins()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Nobody is left who could unpin them.
        self.core.control.unpin_all();
        let attached = matches!(&*lock(&self.core.attachment), Attachment::Attached(_));
        if !attached {
            return;
        }
        let left = AccessCore::begin_detach(&self.core, Duration::from_secs(1)).map(|change| change.wait());
        if !matches!(left, Ok(Ok(_))) {
            // The space and the access hold each other, so nothing that a pin refers to is released.
            log::error!("an access was dropped while its device holds guest memory, which is kept for ever");
        }
    }
}

impl AccessCore {
    fn begin_detach(this: &Arc<Self>, within: Duration) -> Result<Change, AccessError> {
        if lane::inside_burst() {
            return Err(AccessError::WouldWaitForItself);
        }
        let mut attachment = lock(&this.attachment);
        let ioas = match &*attachment {
            Attachment::Attached(ioas) => ioas.clone(),
            Attachment::Leaving(_) => return Err(AccessError::Busy),
            Attachment::None => return Err(AccessError::Detached),
            Attachment::Closed => return Err(AccessError::Closed),
        };
        *attachment = Attachment::Leaving(ioas.clone());
        drop(attachment);
        Ok(Change::begin(ioas, Deadline::within(within), Box::new(Detach { core: this.clone() })))
    }

    /// Publishes `table` to the lanes of this access. Under the mutex of the space.
    pub(crate) fn publish(&self, table: Arc<Table>) -> Retired {
        self.published.replace(table)
    }

    /// Tells the device, unless it is closed; a close waits for it.
    pub(crate) fn notify(&self, range: IovaRange) {
        {
            let mut callbacks = lock(&self.callbacks);
            if callbacks.closed {
                return;
            }
            callbacks.running = callbacks.running.saturating_add(1);
        }
        let outer = IN_CALLBACK.with(|inside| inside.replace(true));
        self.ops.on_unmap(range);
        IN_CALLBACK.with(|inside| inside.set(outer));
        let mut callbacks = lock(&self.callbacks);
        callbacks.running = callbacks.running.saturating_sub(1);
    }

    /// Ends a detach, or puts it back to where it can be begun again.
    fn detach_ended(&self, done: bool) {
        let mut attachment = lock(&self.attachment);
        let before = std::mem::replace(&mut *attachment, Attachment::None);
        *attachment = match before {
            Attachment::Leaving(_) if done => Attachment::None,
            Attachment::Leaving(ioas) => Attachment::Attached(ioas),
            other => other,
        };
    }
}

/// The order of `iommufd_access_change_ioas`: no new pins, notify, drain, leave the list, drop the space.
struct Detach {
    core: Arc<AccessCore>,
}

impl Work for Detach {
    fn begin(&mut self, ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>> {
        ioas.leaving(&self.core).map(|retired| Ok(vec![retired]))
    }

    fn notify(&mut self, _ioas: &Ioas) {
        self.core.notify(IovaRange::FULL);
    }

    fn drained(&self, _ioas: &Ioas) -> bool {
        self.core.published.pins() == 0
    }

    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired> {
        ioas.left(&self.core);
        self.core.detach_ended(true);
        Vec::new()
    }

    fn fail(&mut self, _ioas: &Ioas) -> IovaRange {
        self.core.detach_ended(false);
        IovaRange::FULL
    }
}
