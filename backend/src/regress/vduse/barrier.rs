//! What the end of a call promises while requests are in flight.
use super::disk::Disk;
use super::front::{Connection, buffers, connect, only, region};
use super::server::KernelServer;
use crate::driver::vdpa::{MemoryChange, VdpaFrontEnd};
use crate::driver::{PackedQueue, SplitQueue, Virtqueue};
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect_equal};
use crate::regress::socket::device::Grip;
use crate::regress::socket::guest::{self, churn};
use crate::regress::socket::held::{await_pending, end_all, store, stored};
use crate::regress::socket::leaving::{self, expect_untouched};
use crate::regress::socket::requests::{Asked, BLOCK, Memory, SLOTS};
use crate::regress::space::{SECOND, await_that, beside};
use crate::store::Operation;
use mdev_protocol::virtio::feature::VIRTIO_F_RING_PACKED;
use std::sync::atomic::{AtomicBool, Ordering};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 22,
    name: "remreg-barrier",
    origin: "Q",
    bound: SECOND,
    shows: "memory is unmapped, by itself or in a batch, the device suspended or reset, or its file closed, under traffic or \
            while a store holds the requests: the call returns after the last access, and nothing is written later; a \
            suspended device says where its rings stand, split and packed, and they go on from there",
    body: Body::Play(remreg_barrier),
}];

/// By which call something is taken away.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Way {
    /// VHOST_IOTLB_INVALIDATE.
    Unmap,
    /// The same in a batch in which other memory is lent.
    Batch,
    /// VHOST_VDPA_SUSPEND.
    Suspend,
    /// VHOST_VDPA_SET_STATUS 0.
    Reset,
    /// close(2).
    Close,
}

const WAYS: [Way; 5] = [Way::Unmap, Way::Batch, Way::Suspend, Way::Reset, Way::Close];

impl Way {
    fn any(random: &mut Random) -> Result<Way, Failure> {
        let way = WAYS.get(random.below(WAYS.len() as u64) as usize).copied();
        way.ok_or_else(|| Failure::new("there is no way"))
    }

    /// The device is left if it is not closed.
    fn take(
        self,
        mut front: VdpaFrontEnd,
        changes: &[MemoryChange<'_>],
    ) -> Result<Option<VdpaFrontEnd>, Failure> {
        match self {
            Way::Unmap => match changes.first() {
                Some(MemoryChange::TakeBack(region)) => front.take_back(region)?,
                _ => return Err(Failure::new("there is nothing to be taken back")),
            },
            Way::Batch => front.change(changes)?,
            Way::Suspend => front.suspend()?,
            Way::Reset => front.reset()?,
            Way::Close => {
                drop(front);
                return Ok(None);
            }
        }
        Ok(Some(front))
    }

    /// Whether rings still run.
    fn runs(self) -> bool {
        matches!(self, Way::Unmap | Way::Batch)
    }
}

fn remreg_barrier(run: &Run) -> Outcome {
    let server = KernelServer::start()?;
    for mut random in run.rounds(4) {
        let memory = guest::Memory::new()?;
        let Connection { front, fds } = Connection::start(&server, &memory)?;
        let driver = |stop: &AtomicBool| churn(&memory, &fds, stop);
        let before = server.taken();
        let way = Way::any(&mut random)?;
        let gone = [MemoryChange::TakeBack(buffers(&memory)?)];
        beside(&[&driver], || {
            await_that("traffic", || server.taken() > before.saturating_add(32))?;
            random.spin();
            let left = run.time("call", || way.take(front, &gone))?;
            expect_untouched(leaving::buffers(&memory)?, &mut random)?;
            drop(left);
            Ok(())
        })?;
    }
    server.end()?;
    suspended::<SplitQueue>(run, 0)?;
    suspended::<PackedQueue>(run, VIRTIO_F_RING_PACKED)?;
    held(run)
}

/// A block device is suspended when it has done some work, and says where its ring stands. After a reset the ring goes on there.
fn suspended<Q: Virtqueue>(run: &Run, format: u64) -> Outcome {
    let server = KernelServer::disk()?;
    let mut disk = Disk::<Q>::new()?;
    let mut front = server.open_with(format)?;
    front.share(&disk.guest)?;
    for mut random in run.rounds(8) {
        disk.start(&front)?;
        for _ in 0..random.below(8) {
            disk.write()?;
            random.spin();
            disk.reap()?;
        }
        run.time("requests end", || disk.settle())?;
        run.time("suspend", || front.suspend())?;
        expect_equal(front.vdpa().ring_base(0)?, disk.base(), "where the ring of a suspended device stands")?;
        run.time("reset", || front.reset())?;
        disk.start(&front)?;
        run.time("what is on the disk", || disk.check())?;
        run.time("reset", || front.reset())?;
    }
    drop(front);
    server.end()
}

/// Memory is taken away while every request is held by the store. The call returns after the last of them.
fn held(run: &Run) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 1, Grip::Kernel)?;
    for mut random in run.rounds(8) {
        let (memory, mut rings) = Memory::new(1, 2)?;
        let ring = only(&mut rings)?;
        let front = connect(&server, &memory, &[ring])?;
        front.take_back(region(&memory, 2)?)?;
        let fill = random.number() as u8;
        memory.buffers(1)?.fill(fill);
        for slot in 0..SLOTS {
            let operation = if random.below(2) == 0 { Operation::Read } else { Operation::WRITE };
            ring.ask(Asked { slot, operation, region: 1 })?;
        }
        await_pending(&held, SLOTS.into())?;
        let way = Way::any(&mut random)?;
        let changes = [MemoryChange::TakeBack(region(&memory, 1)?), MemoryChange::Lend(region(&memory, 2)?)];
        let (returned, chance) = (AtomicBool::new(false), random.clone());
        let ender = |_: &AtomicBool| {
            let ended = end_all(&held, &returned, chance.clone());
            // Nobody waits for what this thread has left.
            held.finish_all();
            ended
        };
        let (mut seen, mut used, mut left) = (Vec::new(), Vec::new(), None);
        beside(&[&ender], || {
            left = run.time("call", || way.take(front, &changes))?;
            returned.store(true, Ordering::SeqCst);
            expect_equal(held.pending().len(), 0, "requests in flight when the call had returned")?;
            if !way.runs() {
                used = ring.used()?;
            }
            seen = (0..SLOTS).map(|slot| memory.block(1, slot)).collect::<Result<_, _>>()?;
            expect_untouched(memory.buffers(1)?, &mut random)
        })?;
        if way.runs() {
            used = ring.await_used(SLOTS.into())?;
        }
        expect_equal(used.len(), SLOTS.into(), "requests that have ended")?;
        for (asked, moved) in used {
            let seen = seen.get(usize::from(asked.slot)).cloned().unwrap_or_default();
            let wanted = match (moved, asked.operation) {
                (BLOCK, _) => stored(&held, asked.slot),
                (0, _) => vec![fill; BLOCK as usize],
                _ => Vec::new(),
            };
            expect_equal(seen, wanted, "the bytes of a request when the call had returned")?;
        }
        drop(left);
    }
    server.end()
}
