//! What a scenario is, and which there are.
use super::run::Run;
use super::socket::{held, iommu, leaving, memory, restart};
use super::{absent, callback, charge, close, contents, isolation, owner, parking, unmap};
use std::fmt;
use std::time::Duration;

/// What the scenarios act on.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Address spaces and accesses in this process, without a device.
    Memory,
    /// A device in this process, reached through a real vhost-user socket.
    VhostUser,
}

impl Transport {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Memory => "memory",
            Transport::VhostUser => "vhost-user",
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

/// How a scenario goes.
#[derive(Copy, Clone, Debug)]
pub enum Body {
    /// Like this.
    Play(fn(&Run) -> Outcome),
    /// It cannot be played, since this is not there.
    Needs(&'static str),
}

/// All scenarios of a transport, by number.
pub fn scenarios(transport: Transport) -> Vec<Scenario> {
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
    };
    let mut all: Vec<Scenario> = groups.concat();
    all.sort_by_key(|scenario| scenario.number);
    all
}
