//! `mdevd perf`: what a device does under load.
//!
//! The process that runs `perf` is the front-end: it holds a guest's memory and drives the rings. The device is another process, on a core
//! of its own, reached through a real vhost-user socket.
pub mod drive;
pub mod frames;
pub mod latency;
pub mod roundtrip;
pub mod run;
pub mod size;
