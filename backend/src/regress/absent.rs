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

const VDUSE: &str = "needs a device of VDUSE: --transport vduse";

const UPDATE_IOTLB: &str = "a translation changes while requests are under way";

/// Those on memory.
pub const MEMORY: &[Scenario] = &[needs(25, "update-iotlb-inflight", "V", UPDATE_IOTLB, VDUSE)];
