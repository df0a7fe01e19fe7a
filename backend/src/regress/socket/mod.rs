//! The scenarios over a socket: a network device in this process, and front-ends that reach it as a virtual machine
//! monitor does.
mod guest;
pub mod leaving;
pub mod memory;
mod server;
