//! What mdevd asks of the operating system, wrapped once: event counters, readiness, timers, inherited descriptors.
//!
//! Nothing here knows of devices, rings or messages. Only [`Poll::wait`] blocks. The one file that needs `unsafe` is
//! the one that adopts a descriptor by its number.

mod event_fd;
mod poll;
mod timer;
#[allow(unsafe_code)]
pub(crate) mod tsc;

pub use event_fd::{EventFd, Kicks};
pub use poll::{Interest, Poll, Readiness, Ready};
pub use timer::Timer;
