//! How to use the access layer: short programs that teach one thing each.
//!
//! They are in `examples/`, need no privileges, and end by themselves:
//!
//! | run | to see |
//! |---|---|
//! | `cargo run -p mdev-examples --example map_and_pin` | guest memory as a place in a file; an unmap that waits for a pin |
//! | `cargo run -p mdev-examples --example unmap_under_load` | a worker in bursts while its memory is unmapped and mapped again |
//! | `cargo run -p mdev-examples --example vring_without_vm` | a driver, a front-end and a network device exchange packets in one process |
//! | `cargo run -p mdev-examples --example rust_vmm_device` | a device made of `virtio-queue` and `vm-memory` on a burst |
//! | `cargo run -p mdev-examples --example software_mdev` | a device that pins pages, lets go of them when it is told, and closes |
//! | `cargo run -p mdev-examples --example vaddr_and_file` | memory by its owner's address and by file, while the owner unmaps, executes, hands over, dies |
//!
//! This library is empty; a package of examples must have one.
