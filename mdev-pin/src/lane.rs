//! A worker's read side of an access.

use std::marker::PhantomData;

use crate::{
    access::AccessCore,
    burst::Burst,
    sync::{Arc, per_thread},
    sys::published::Reader,
};

/// One queue's right to resolve IOVAs of an access; moves with its queue, is used by one thread at a time.
///
/// Outside a burst a lane is offline: no control operation ever waits for it, however long its worker sleeps.
pub struct Lane {
    pub(crate) reader: Reader,
    /// Keeps the access (and through it the space) alive.
    _access: Arc<AccessCore>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

impl Lane {
    pub(crate) fn new(access: Arc<AccessCore>, reader: Reader) -> Self {
        Lane { reader, _access: access, _not_sync: PhantomData }
    }

    /// Opens a burst. Costs a store and a fence; never blocks.
    #[inline(always)]
    pub fn enter(&mut self) -> Burst<'_> {
        Burst::new(self)
    }
}

per_thread! {
    DEPTH: u32 = 0
}

/// Counts the bursts of this thread, so that a control operation can refuse to wait for itself.
#[inline(always)]
pub fn burst_entered() {
    DEPTH.with(|depth| depth.set(depth.get().wrapping_add(1)));
}

/// See [`burst_entered`].
#[inline(always)]
pub fn burst_left() {
    DEPTH.with(|depth| depth.set(depth.get().wrapping_sub(1)));
}

/// Whether the calling thread is inside a burst.
pub fn inside_burst() -> bool {
    DEPTH.with(|depth| depth.get() != 0)
}
