//! Scenarios that cannot be played, and what they need.
use super::scenario::{Body, Scenario};
use super::space::SECOND;

const fn needs(
    number: u8,
    name: &'static str,
    origin: &'static str,
    shows: &'static str,
    what: &'static str,
) -> Scenario {
    Scenario { number, name, origin, bound: SECOND, shows, body: Body::Needs(what) }
}

const CHANGE_OF_PROCESS: &str = "needs the change of a space's process, which is not there";
const PROCESS_MEMORY: &str = "needs memory by an address in another process, which is not there";
const VDUSE: &str = "needs VDUSE, which is not there";
const STORAGE: &str = "needs a storage device with a log of requests in flight, which is not there";

const FORK_CHANGE_EXEC: &str =
    "the owner forks, the child takes the space over, the parent executes and takes it back";
const REFUSED: &str = "a change of process is refused and changes nothing";
const SIGKILL_VADDR: &str =
    "the owner of memory by address is killed: new pins fail, pins that are held stay";
const UPDATE_IOTLB: &str = "a translation changes while requests are under way";
const RESTART: &str = "the daemon is killed between request and reply: no request is lost or done twice";

/// Those on memory.
pub const MEMORY: &[Scenario] = &[
    needs(6, "fork-change-exec", "T", FORK_CHANGE_EXEC, CHANGE_OF_PROCESS),
    needs(17, "change-process-refused", "S/K", REFUSED, CHANGE_OF_PROCESS),
    needs(18, "owner-sigkill-vaddr", "K/S", SIGKILL_VADDR, PROCESS_MEMORY),
    needs(25, "update-iotlb-inflight", "V", UPDATE_IOTLB, VDUSE),
    needs(26, "daemon-restart", "V/Q", RESTART, STORAGE),
];

const MISS: &str = "a miss is acknowledged without an update: the request fails, nothing hangs";
const IOMMU: &str = "needs an IOMMU between driver and device, which is not there";

/// Those over a socket.
pub const VHOST_USER: &[Scenario] = &[needs(23, "iotlb-miss-no-update", "Q", MISS, IOMMU)];
