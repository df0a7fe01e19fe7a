//! What mdevd asks of the operating system, wrapped once: event counters, readiness, timers, inherited
//! descriptors.
//!
//! Nothing here knows of devices, rings or messages. Only [`Poll::wait`] blocks, and [`OwnerProcess`] waits for the
//! process that it is; dropping a ring waits for what is in flight. Nine files need `unsafe`: one signals a peer without
//! waiting for it, one holds signals back, one takes over a descriptor by its number, one reads the processor's time
//! stamp counter, one makes a process that owns memory, one moves frames between guest memory and a tap interface, one
//! locks bytes of a file, two give memory to an io_uring.

#[allow(unsafe_code)]
mod bell;
mod event_fd;
#[allow(unsafe_code)]
mod hold;
#[allow(unsafe_code)]
mod inherit;
#[allow(unsafe_code)]
pub(crate) mod ofd;
#[allow(unsafe_code)]
mod owner;
mod poll;
#[allow(unsafe_code)]
pub(crate) mod tap;
mod timer;
#[allow(unsafe_code)]
pub(crate) mod tsc;
#[allow(unsafe_code)]
pub(crate) mod uring;

pub use event_fd::{EventFd, Kicks};
pub use hold::with_signals_held;
pub use inherit::inherit;
pub use owner::OwnerProcess;
pub use poll::{Interest, Poll, Readiness, Ready};
pub use timer::Timer;
