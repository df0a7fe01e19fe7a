//! The memory of a guest of this process as a device of this process sees it.

use std::sync::Arc;

use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdevd::driver::GuestMemory;

/// An address space with all regions, and an access that is attached to it.
///
/// # Panics
/// When a region cannot be mapped.
pub fn attached(memory: &GuestMemory) -> (Ioas, Access) {
    let ioas = Ioas::new(memory.windows().clone());
    for region in memory.regions() {
        ioas.map(region.area()).expect("an area");
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).expect("an access");
    (ioas, access)
}
