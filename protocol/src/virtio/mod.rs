//! Constants and layouts of the virtio specification, version 1.3, as far as the devices here need them.
//!
//! Names are those of the specification; feature constants are masks (`1 << bit`), so that sets of them are plain
//! `u64` values, as they travel in vhost-user messages.

pub mod blk;
pub mod feature;
pub mod net;
pub mod packed;
pub mod split;
pub mod status;

#[cfg(test)]
mod tests;
