//! What a scenario is, and which there are.
use super::run::Run;
use super::socket::{held, iommu, leaving, memory, restart};
use super::{absent, callback, charge, close, contents, isolation, nvme, owner, parking, unmap, vduse};
use std::fmt;
use std::time::Duration;

/// What the scenarios act on.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Address spaces and accesses in this process, without a device.
    Memory,
    /// A virtio device in this process, reached through a real vhost-user socket.
    VhostUser,
    /// An NVMe controller in this process, reached through a real vfio-user socket.
    VfioUser,
    /// A virtio device of this host's kernel, served by this process over VDUSE and driven by it over vhost-vdpa.
    Vduse,
}

impl Transport {
    /// What this host lacks for it, if anything.
    pub fn missing(self) -> Option<String> {
        if self == Transport::Vduse { vduse::missing() } else { None }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Memory => "memory",
            Transport::VhostUser => "vhost-user",
            Transport::VfioUser => "vfio-user",
            Transport::Vduse => "vduse",
        }
    }
}

/// Why a scenario does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// Says so in these words.
    pub fn new(what: impl Into<String>) -> Self {
        Failure(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An operation that had to succeed and did not.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

/// Whether a scenario holds.
pub type Outcome = Result<(), Failure>;

/// Fails unless `holds`.
pub fn expect(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(Failure::new(what)) }
}

/// Fails unless both are equal.
pub fn expect_equal<T: PartialEq + fmt::Debug>(found: T, wanted: T, what: &str) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(Failure(format!("{what}: {found:?} instead of {wanted:?}")))
}

/// Something that happens, and what must come of it.
#[derive(Copy, Clone, Debug)]
pub struct Scenario {
    /// Its number in the list of the book.
    pub number: u8,
    /// Its name, in words joined by hyphens.
    pub name: &'static str,
    /// Where it was first seen: T, K, S, Q, V; see the book.
    pub origin: &'static str,
    /// How long no operation in it may take.
    pub bound: Duration,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// How it goes.
    pub body: Body,
}

impl Scenario {
    /// Whether its transport has it at all.
    pub fn is_of_its_transport(&self) -> bool {
        !matches!(self.body, Body::Needs(ELSEWHERE))
    }
}

/// How a scenario goes.
#[derive(Copy, Clone, Debug)]
pub enum Body {
    /// Like this.
    Play(fn(&Run) -> Outcome),
    /// It cannot be played, since this is not there.
    Needs(&'static str),
}

/// What a scenario needs that only other transports have.
pub const ELSEWHERE: &str = "not on this transport";

/// All scenarios, by number. Over a socket, those that only others play are there too, and need another transport.
pub fn scenarios(transport: Transport) -> Vec<Scenario> {
    let mut all = own(transport);
    if transport != Transport::Memory {
        let others = [Transport::Memory, Transport::VhostUser, Transport::VfioUser, Transport::Vduse];
        for scenario in others.into_iter().flat_map(own) {
            if !all.iter().any(|known| known.name == scenario.name) {
                all.push(Scenario { body: Body::Needs(ELSEWHERE), ..scenario });
            }
        }
    }
    all.sort_by_key(|scenario| scenario.number);
    all
}

/// The scenarios that are written for a transport.
fn own(transport: Transport) -> Vec<Scenario> {
    let groups: &[&[Scenario]] = match transport {
        Transport::Memory => &[
            owner::SCENARIOS,
            close::SCENARIOS,
            unmap::SCENARIOS,
            callback::SCENARIOS,
            charge::SCENARIOS,
            isolation::SCENARIOS,
            contents::SCENARIOS,
            parking::SCENARIOS,
            absent::MEMORY,
        ],
        Transport::VhostUser => {
            &[held::SCENARIOS, iommu::SCENARIOS, leaving::SCENARIOS, memory::SCENARIOS, restart::SCENARIOS]
        }
        Transport::VfioUser => &[
            nvme::barrier::SCENARIOS,
            nvme::doorbell::SCENARIOS,
            nvme::leaving::SCENARIOS,
            nvme::memory::SCENARIOS,
        ],
        Transport::Vduse => &[
            vduse::barrier::SCENARIOS,
            vduse::iotlb::SCENARIOS,
            vduse::leaving::SCENARIOS,
            vduse::memory::SCENARIOS,
            vduse::restart::SCENARIOS,
        ],
    };
    groups.concat()
}
