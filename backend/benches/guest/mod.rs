//! A guest of this process: its memory, a receive and a transmit ring, and the space in which a device sees them.

use std::error::Error;

use mdev_pin::{Access, Ioas};
use mdevd::driver::net::{QueueOptions, RxQueue, TxQueue};
use mdevd::driver::{GuestMemory, MemoryOptions, SplitQueue};
use mdevd::ring::RingSetup;

/// Entries of each ring.
pub const RING: u16 = 256;

pub struct Guest {
    pub rx: RxQueue,
    pub tx: TxQueue,
    pub access: Access,
    _ioas: Ioas,
    _memory: GuestMemory,
}

impl Guest {
    /// All receive buffers are offered; `access` sees the memory.
    pub fn new(options: MemoryOptions, access: Access) -> Result<Self, Box<dyn Error>> {
        let mut memory = GuestMemory::new(options)?;
        let mut rx = RxQueue::new(&mut memory, QueueOptions::plain(RING))?;
        let tx = TxQueue::new(&mut memory, QueueOptions::plain(RING))?;
        rx.offer_all()?;
        rx.queue.publish();
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area())?;
        }
        access.attach(&ioas)?;
        Ok(Guest { rx, tx, access, _ioas: ioas, _memory: memory })
    }

    /// Both rings as a device is told of them, by index.
    pub fn rings(&self) -> [(u16, RingSetup); 2] {
        let setup = |queue: &SplitQueue| {
            let addresses = queue.addresses();
            RingSetup::plain(RING, [addresses.desc, addresses.avail, addresses.used])
        };
        [(0, setup(&self.rx.queue)), (1, setup(&self.tx.queue))]
    }
}
