//! The scenarios over vfio-user: an NVMe controller in this process, and clients that reach it through a real socket as a
//! virtual machine monitor and its guest do together. Where commands must be in flight for as long as the scenario wants, the
//! controller's namespace is on a store that holds them.
pub mod barrier;
pub mod doorbell;
mod host;
pub mod leaving;
pub mod memory;
