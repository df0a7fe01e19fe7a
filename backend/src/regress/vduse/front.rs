//! Front-ends of the two kinds of device: one that holds requests, and one that sends frames back.
use super::server::KernelServer;
use crate::driver::vdpa::VdpaFrontEnd;
use crate::driver::{Region, RingFds};
use crate::regress::run::lock;
use crate::regress::scenario::{Failure, Outcome, expect, expect_equal};
use crate::regress::socket::guest;
use crate::regress::socket::held::await_pending;
use crate::regress::socket::requests::{Asked, BLOCK, Memory, Ring};
use crate::store::Operation;
use crate::store::held::Held;
use std::sync::Arc;

/// Opens a device that holds requests, lends it all of the guest's memory, and starts its rings.
pub fn connect(server: &KernelServer, memory: &Memory, rings: &[&Ring]) -> Result<VdpaFrontEnd, Failure> {
    let front = server.open()?;
    front.share(&memory.guest)?;
    start(&front, rings)?;
    Ok(front)
}

/// Starts rings, each where its driver is.
pub fn start(front: &VdpaFrontEnd, rings: &[&Ring]) -> Outcome {
    for (ring, index) in rings.iter().zip(0..) {
        let (queue, fds) = ring.parts();
        front.start(index, queue, fds)?;
    }
    Ok(front.run()?)
}

/// A region of a guest's memory; 0 is that of the rings.
pub fn region(memory: &Memory, number: usize) -> Result<&Region, Failure> {
    memory.guest.regions().get(number).ok_or_else(|| Failure::new("there is no such region"))
}

/// The only ring.
pub fn only(rings: &mut [Ring]) -> Result<&mut Ring, Failure> {
    rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))
}

/// A read that is finished at once, whatever else the store holds.
pub fn round_trip(ring: &mut Ring, held: &Held, region: u64, slot: u16) -> Outcome {
    let before = held.pending().len();
    ring.ask(Asked { slot, operation: Operation::Read, region })?;
    await_pending(held, before.saturating_add(1))?;
    let newest = held.pending().last().map(|pending| pending.id).unwrap_or_default();
    expect(held.finish(newest), "the request had ended by itself")?;
    let moved: Vec<u32> = ring.await_used(1)?.into_iter().map(|(_, moved)| moved).collect();
    expect_equal(moved, vec![BLOCK], "bytes of a request")
}

/// A front-end of a guest with a pair of queues.
pub struct Connection {
    /// Dropping it is closing the file.
    pub front: VdpaFrontEnd,
    /// Of both rings; a guest that kicks does not know that the front-end is gone.
    pub fds: Arc<[RingFds; 2]>,
}

impl Connection {
    /// Opens the device; it knows neither memory nor rings.
    pub fn new(server: &KernelServer) -> Result<Connection, Failure> {
        Ok(Connection { front: server.open()?, fds: Arc::new([RingFds::new()?, RingFds::new()?]) })
    }

    /// Opens the device, lends it the memory and starts both rings.
    pub fn start(server: &KernelServer, memory: &guest::Memory) -> Result<Connection, Failure> {
        let connection = Connection::new(server)?;
        connection.front.share(&memory.guest)?;
        connection.start_rings(memory)?;
        connection.front.run()?;
        Ok(connection)
    }

    /// Describes and enables both rings.
    pub fn start_rings(&self, memory: &guest::Memory) -> Outcome {
        let port = lock(&memory.port);
        for ((ring, fds), index) in port.rings().iter().zip(&*self.fds).zip(0..) {
            self.front.start(index, ring, fds)?;
        }
        Ok(())
    }
}

/// The buffers of such a guest.
pub fn buffers(memory: &guest::Memory) -> Result<&Region, Failure> {
    memory.guest.regions().get(1).ok_or_else(|| Failure::new("there are no buffers"))
}
