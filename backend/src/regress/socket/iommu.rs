//! A front-end that translates some of its guest's addresses and not others.
use super::held::store;
use super::requests::{Asked, BLOCK, Memory, Ring};
use super::server::{Server, mappings};
use crate::driver::FrontEnd;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::space::{LONG, PAGE, SECOND, await_that, pause};
use crate::store::Operation;
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, FrontendMessage, Iotlb, IotlbPerm, ProtocolFeatures,
};
use mdev_protocol::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 23,
    name: "iotlb-miss-no-update",
    origin: "Q",
    bound: SECOND,
    shows: "a miss is acknowledged without an update: the request is not taken and its queue fails, the front-end is not \
            asked again, and the other queue of the device goes on",
    body: Body::Play(miss_without_update),
}];

/// The translations of a guest: every address means itself, but those of one region.
struct Iommu {
    channel: Connection<BackendMessage>,
    /// First address of the region, and how often it was asked for.
    hole: (u64, u64),
    refusals: u32,
}

impl Iommu {
    /// Answers what was asked.
    fn serve(&mut self, front: &mut FrontEnd) -> Outcome {
        loop {
            let frame = match self.channel.receive()? {
                Received::Message(frame) => frame,
                Received::WouldBlock => return Ok(()),
                other => return Err(Failure::new(format!("the back-end channel: {other:?}"))),
            };
            let BackendMessage::IotlbMsg(Iotlb::Miss { iova, .. }) = frame.message else {
                return Err(Failure::new(format!("instead of a miss: {:?}", frame.message)));
            };
            expect(frame.header.needs_reply(), "a miss asks to be acknowledged")?;
            let (first, size) = self.hole;
            let refused = (first..first.saturating_add(size)).contains(&iova);
            if refused {
                self.refusals += 1;
            } else {
                let page = iova - iova % PAGE;
                let perm = IotlbPerm::all();
                let update = Iotlb::Update { iova: page, size: PAGE, user_addr: page, perm };
                front.client().call(&FrontendMessage::IotlbMsg(update), &[])?;
            }
            let ack = BackendReply::Ack { request: BackendRequest::IotlbMsg.id(), value: refused.into() };
            self.channel.send(&ack.to_bytes(), &[])?;
        }
    }
}

/// Connects as the front-end of a guest behind an IOMMU that does not translate a region.
fn connect(server: &Server, memory: &Memory, hole: usize) -> Result<(FrontEnd, Iommu), Failure> {
    let protocol = FrontEnd::usual_protocol()
        | ProtocolFeatures::STATUS
        | ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::GPA_ADDRESSES;
    let features = VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM;
    let mut front = FrontEnd::over(server.client()?, features, 0, protocol)?;
    let (ours, theirs) = UnixStream::pair()?;
    front.client().set_backend_req_fd(theirs.as_fd())?;
    front.share(&memory.guest)?;
    let hole = memory.named(hole)?;
    let hole = (hole.guest_addr, hole.size);
    Ok((front, Iommu { channel: Connection::new(ours), hole, refusals: 0 }))
}

fn miss_without_update(run: &Run) -> Outcome {
    let held = store();
    let server = Server::held(&held, 2, LONG)?;
    let before = mappings();
    for mut random in run.rounds(4) {
        let (memory, mut rings) = Memory::new(2, 2)?;
        let [served, starved] = rings.as_mut_slice() else { return Err(Failure::new("there are two rings")) };
        let (mut front, mut iommu) = connect(&server, &memory, 2)?;
        served.start(&mut front, &memory, 0)?;
        starved.start(&mut front, &memory, 1)?;
        let failed = server.counters(1).errors + 1;
        let asked = |region| Asked { slot: 0, operation: Operation::WRITE, region };
        starved.ask(asked(2))?;
        random.spin();
        served.ask(asked(1))?;
        run.time("failure", || {
            until(|| {
                iommu.serve(&mut front)?;
                Ok(server.counters(1).errors == failed && !held.pending().is_empty())
            })
        })?;
        expect_equal(iommu.refusals, 1, "how often the device asked for what nobody translates")?;
        // The session hears of it from the worker.
        until(|| Ok(front.client().status()? & u64::from(DEVICE_NEEDS_RESET) != 0))?;

        held.finish_all();
        let used = serve_until_used(served, &mut iommu, &mut front)?;
        expect_equal(used, BLOCK, "bytes of the request on the other queue")?;
        expect_equal(starved.stop(&mut front, 1)?, 1, "chains that were not taken")?;
        expect_equal(served.stop(&mut front, 0)?, 0, "chains that were not taken on the other queue")?;
        expect_equal(iommu.refusals, 1, "how often the device asked in the end")?;
    }
    // Once for all rounds, since memory is kept for a while after its front-end: what any of them had leaked would be here still.
    await_that("the device lets go of the memory", || mappings() <= before)?;
    server.end()
}

/// Waits for the end of the one request of a ring: its bytes.
fn serve_until_used(ring: &mut Ring, iommu: &mut Iommu, front: &mut FrontEnd) -> Result<u32, Failure> {
    let mut bytes = None;
    until(|| {
        iommu.serve(front)?;
        bytes = ring.used()?.first().map(|(_, moved)| *moved);
        Ok(bytes.is_some())
    })?;
    bytes.ok_or_else(|| Failure::new("nothing was used"))
}

fn until(mut done: impl FnMut() -> Result<bool, Failure>) -> Outcome {
    let began = Instant::now();
    while !done()? {
        expect(began.elapsed() < LONG, "it ends in time")?;
        pause();
    }
    Ok(())
}
