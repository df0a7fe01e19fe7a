//! The scenarios over a socket: a device in this process, and front-ends that reach it as a virtual machine monitor
//! does. Most have a network device; where requests must be in flight for as long as the scenario wants, it is one on a
//! store that holds them.
pub mod device;
pub mod guest;
pub mod held;
pub mod iommu;
pub mod leaving;
pub mod memory;
pub mod requests;
pub mod restart;
pub mod server;
