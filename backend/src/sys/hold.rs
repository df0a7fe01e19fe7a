//! UNSAFETY: why this file exists: a thread's mask of signals has no safe wrapper.
//!
//! Signals that wait until the calling thread is ready for them.

use std::mem::MaybeUninit;
use std::ptr;

/// Runs `section` while the calling thread takes none of `signals`. What comes meanwhile is delivered afterwards, unless
/// another thread of the process takes it.
pub fn with_signals_held<T>(signals: &[i32], section: impl FnOnce() -> T) -> T {
    let _held = Held::begin(signals);
    section()
}

/// The mask of the thread as it was, restored on drop.
struct Held(libc::sigset_t);

impl Held {
    fn begin(signals: &[i32]) -> Held {
        let mut held = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are ours and large enough; `sigemptyset` initialises the first before it is used, and the
        // only error of `pthread_sigmask` is an unknown `how`, so it initialises the second. An unknown number of a
        // signal is left out by `sigaddset`.
        unsafe {
            libc::sigemptyset(held.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(held.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, held.as_ptr(), before.as_mut_ptr());
            Held(before.assume_init())
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the set was initialised by `pthread_sigmask`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use signal_hook::consts::SIGWINCH;
    use signal_hook::{flag, low_level};

    use super::with_signals_held;

    #[test]
    fn signal_that_comes_meanwhile_is_taken_afterwards() {
        let seen = Arc::new(AtomicBool::new(false));
        flag::register(SIGWINCH, seen.clone()).unwrap();
        with_signals_held(&[SIGWINCH], || {
            // To this thread alone.
            low_level::raise(SIGWINCH).unwrap();
            assert!(!seen.load(Ordering::SeqCst));
        });
        assert!(seen.load(Ordering::SeqCst));
    }
}
