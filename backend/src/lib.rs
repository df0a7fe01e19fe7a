//! Software mediated devices served from userspace.
//!
//! A session (one connection of a front-end) configures a device; workers run the device's queues; the daemon's one
//! control thread ties both together.

pub mod cli;
pub mod daemon;
pub mod device;
pub mod driver;
pub mod limit;
pub mod link;
pub mod perf;
pub mod report;
pub mod ring;
pub mod session;
pub mod sys;
pub mod worker;
