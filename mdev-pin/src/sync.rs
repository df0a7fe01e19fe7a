//! The primitives of the protocols, exchanged for loom's when `cfg(loom)` explores them.
//!
//! Only what takes part in a protocol goes through here: the counts of objects that hold its atomics, too, since
//! loom must see that they are freed after their last use. Counts of immutable data stay `std::sync::Arc`.

use std::time::{Duration, Instant};

#[cfg(loom)]
pub use loom::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, fence},
    },
};
#[cfg(not(loom))]
pub use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, fence},
    },
};

/// A thread-local cell, of loom's threads under loom (whose macro takes no `const` block).
macro_rules! per_thread {
    ($(#[$doc:meta])* $name:ident: $of:ty = $init:expr) => {
        #[cfg(loom)]
        loom::thread_local! { $(#[$doc])* static $name: crate::sync::Cell<$of> = crate::sync::Cell::new($init); }
        #[cfg(not(loom))]
        std::thread_local! {
            $(#[$doc])* static $name: crate::sync::Cell<$of> = const { crate::sync::Cell::new($init) };
        }
    };
}
pub(crate) use per_thread;

/// Takes a lock. A panic of another holder leaves data that every operation here re-validates, so poison is ignored.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A point in time after which a change gives up. Loom has no time: there it is never reached.
#[derive(Copy, Clone, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// The instant `within` from now; never, if that is beyond what the clock can express.
    pub fn within(within: Duration) -> Self {
        if cfg!(loom) { Deadline(None) } else { Deadline(Instant::now().checked_add(within)) }
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }
}

/// How a control thread waits for a worker: about 10 us of spinning, then short sleeps. It never yields: since Linux 6.18
/// a yield forfeits a whole slice, and some hundred of them starve their thread beside one that spins.
#[derive(Default)]
pub struct Backoff {
    rounds: u32,
}

impl Backoff {
    /// Waits a little, longer each time.
    pub fn pause(&mut self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        match self.rounds {
            0..=255 => std::hint::spin_loop(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
        self.rounds = self.rounds.saturating_add(1);
    }
}
