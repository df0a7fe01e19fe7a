//! What a burst costs that no clock shows: memory allocated, and system calls made, once rings run.
//!
//! Driver and engine take turns on one thread. Of each burst the engine's part is looked at: an allocator counts what that
//! thread asks for ([`Counting`]), and the kernel reports every system call of it to another thread. The locks of the standard
//! library make no system call while nobody else holds them, so that these are not seen here.

#[allow(unsafe_code)]
mod calls;
#[allow(unsafe_code)]
mod heap;
mod rig;

use mdevd::driver::{PackedQueue, RingOptions, SplitQueue, Virtqueue};

use rig::Rig;

pub use heap::Counting;
pub use rig::{BURST, BURSTS};

const RING: u16 = 256;

/// What the bursts of a rig came to.
#[derive(Copy, Clone, Debug)]
pub struct Cost {
    /// Packets that went through queues.
    pub packets: u64,
    /// How often engines have asked for memory.
    pub allocations: u64,
    /// System calls; `None` where the kernel does not report them.
    pub calls: Option<u64>,
}

/// Counts on a thread of its own, whose system calls are watched to its end.
fn cost<Q: Virtqueue>(link: &str, packed: bool, in_order: bool, prepare: fn()) -> Cost {
    let options = RingOptions { in_order, ..RingOptions::plain(RING) };
    calls::watched(|watch| {
        let mut rig = Rig::<Q>::new(link, packed, options);
        assert!(heap::allocations() > 0, "a program that looks at costs has `Counting` for its allocator");
        prepare();
        // What grows to its size does so now.
        rig.run();
        let before = watch.begin();
        let (allocations, packets) = rig.run();
        Cost { packets, allocations, calls: watch.count().zip(before).map(|(after, before)| after - before) }
    })
}

/// What a run of bursts over this link costs, in each format, in order and not. `prepare` is called between the start of the
/// rings and the first burst.
///
/// # Panics
/// Where a device cannot be, without [`Counting`], and as `check`.
pub fn in_each_layout(link: &str, prepare: fn(), check: impl Fn(&str, Cost)) {
    for in_order in [false, true] {
        let order = if in_order { " in order" } else { "" };
        check(&format!("{link}, split{order}"), cost::<SplitQueue>(link, false, in_order, prepare));
        check(&format!("{link}, packed{order}"), cost::<PackedQueue>(link, true, in_order, prepare));
    }
}
