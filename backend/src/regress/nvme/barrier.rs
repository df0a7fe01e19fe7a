//! What a reply promises while commands are in flight.
use super::host::{BUFFERS, Host, LEN, MEMORY, QUEUES, REQUESTS, any_way, store, stored};
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::held::{await_pending, end_all};
use crate::regress::socket::leaving::expect_untouched;
use crate::regress::socket::server::Server;
use crate::regress::space::{LONG, SECOND, beside};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::vfio_user::DmaUnmap;
use std::sync::atomic::{AtomicBool, Ordering};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 22,
    name: "remreg-barrier",
    origin: "Q",
    bound: SECOND,
    shows: "memory of data or queues is unmapped, the function or the controller reset, or a queue deleted under traffic \
            or while a store holds the commands: the reply comes after the last access, and nothing is written later",
    body: Body::Play(remreg_barrier),
}];

/// By which message something is taken away.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Way {
    /// DMA_UNMAP of the data.
    Data,
    /// DMA_UNMAP of everything.
    All,
    /// DEVICE_RESET.
    Reset,
    /// CC.EN becomes 0.
    Disable,
    /// Delete I/O Submission Queue.
    Delete,
    /// DMA_UNMAP of the queues, where commands in flight may go on.
    Queues,
}

/// Those after which no command is in flight, and all.
const ENDING: [Way; 5] = [Way::Data, Way::All, Way::Reset, Way::Disable, Way::Delete];
const WAYS: [Way; 6] = [Way::Data, Way::All, Way::Reset, Way::Disable, Way::Delete, Way::Queues];

impl Way {
    fn any(ways: &[Way], random: &mut Random) -> Result<Way, Failure> {
        let way = ways.get(random.below(ways.len() as u64) as usize).copied();
        way.ok_or_else(|| Failure::new("there is no way"))
    }

    fn take(self, host: &mut Host) -> Outcome {
        let function = host.controller.function().clone();
        match self {
            Way::Data => function.take_back_region(&host.region(BUFFERS)?)?,
            Way::All => function.client().dma_unmap(DmaUnmap::All)?,
            Way::Reset => function.reset()?,
            Way::Disable => host.controller.disable()?,
            Way::Delete => {
                let delete = Command { cdw10: 1, ..Command::new(admin::DELETE_SQ, 0, 0) };
                host.controller.carry_out("Delete I/O Submission Queue", delete)?;
            }
            Way::Queues => function.take_back_region(&host.region(QUEUES)?)?,
        }
        Ok(())
    }

    /// Regions that nobody writes to after the reply.
    fn released(self) -> &'static [usize] {
        match self {
            Way::Data => &[BUFFERS],
            Way::Queues => &[QUEUES],
            _ => &[QUEUES, BUFFERS],
        }
    }

    /// Whether the ends of all commands can be reaped.
    fn tells(self) -> bool {
        matches!(self, Way::Data | Way::Delete)
    }
}

fn remreg_barrier(run: &Run) -> Outcome {
    let server = Server::nvme(MEMORY)?;
    for mut random in run.rounds(4) {
        let mut host = Host::new(&server, any_way(&mut random))?;
        for _ in 0..random.below(8) {
            host.submit(&mut random)?;
            host.reap()?;
        }
        host.await_success()?;
        host.submit(&mut random)?;
        let way = Way::any(&WAYS, &mut random)?;
        random.spin();
        run.time("reply", || way.take(&mut host))?;
        for region in way.released() {
            expect_untouched(host.bytes(*region)?, &mut random)?;
        }
    }
    server.end()?;
    held(run)
}

/// The same while every request is held by the store. The reply comes after the last of them.
fn held(run: &Run) -> Outcome {
    let held = store();
    let server = Server::nvme_held(&held, LONG)?;
    for mut random in run.rounds(8) {
        let mut host = Host::new(&server, any_way(&mut random))?;
        let fill = random.number() as u8;
        host.bytes(BUFFERS)?.fill(fill);
        host.submit(&mut random)?;
        await_pending(&held, REQUESTS.into())?;
        let way = Way::any(&ENDING, &mut random)?;
        let (replied, chance) = (AtomicBool::new(false), random.clone());
        let ender = |_: &AtomicBool| {
            let ended = end_all(&held, &replied, chance.clone());
            // Nobody waits for what this thread has left.
            held.finish_all();
            ended
        };
        let mut seen = Vec::new();
        let mut ended = Vec::new();
        beside(&[&ender], || {
            run.time("reply", || way.take(&mut host))?;
            replied.store(true, Ordering::SeqCst);
            expect_equal(held.pending().len(), 0, "commands in flight when the reply had come")?;
            seen = (0..REQUESTS).map(|tag| host.buffer(tag)).collect::<Result<_, _>>()?;
            if way.tells() {
                ended = host.await_all()?;
            }
            way.released().iter().try_for_each(|region| expect_untouched(host.bytes(*region)?, &mut random))
        })?;
        let before = vec![fill; LEN as usize];
        for (tag, seen) in (0..REQUESTS).zip(seen) {
            let end = ended.iter().find(|end| end.tag == tag);
            let right = match end.map(|end| end.status.is_success()) {
                Some(true) => seen == stored(&held, tag),
                Some(false) => seen == before,
                None => seen == before || seen == stored(&held, tag),
            };
            expect(
                right,
                &format!("the bytes of a command that ended with {end:?} when the reply had come"),
            )?;
        }
    }
    server.end()
}
