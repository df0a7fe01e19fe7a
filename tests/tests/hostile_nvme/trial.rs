//! What every case must come to.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mdevd::driver::nvme::DoorbellWay;

use super::house::{Census, House};
use super::intruder::Intruder;
use super::neighbour::Neighbour;

/// Latencies are bounded: one trial at a time has the processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A daemon, its neighbour with I/O on, and what is tried on the other controller.
pub struct Trial {
    // Dropped in this order, should a case panic.
    neighbour: Neighbour,
    pub house: House,
    before: Census,
    cases: u32,
    longest: Duration,
    _alone: MutexGuard<'static, ()>,
}

impl Trial {
    /// With `mdevd serve` whose worker runs in this mode.
    pub fn begin(mode: &str) -> Trial {
        Trial::of(House::serving, mode)
    }

    /// With a daemon that can hold commands.
    pub fn holding(mode: &str) -> Trial {
        Trial::of(House::holding, mode)
    }

    fn of(make: impl FnOnce(&str) -> House, mode: &str) -> Trial {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let house = make(mode);
        let way = if mode == "busy" { DoorbellWay::Mapped } else { DoorbellWay::Trapped };
        let neighbour = Neighbour::start(&house.socket("neighbour"), way);
        let nobody = house.census();
        // What a daemon gets once and keeps, it has now.
        drop(Intruder::at_work(&house.target(), 1));
        let mut trial =
            Trial { neighbour, house, before: nobody, cases: 0, longest: Duration::ZERO, _alone: alone };
        trial.settle("the first client");
        trial.before = trial.house.census();
        trial.neighbour.longest();
        trial
    }

    /// A client whose controller works does `attack`, after which its connection is there still. Then the neighbour has not
    /// noticed, the host resets the controller, and it works; the next client's controller does, too; and nothing is left behind.
    pub fn case(&mut self, what: &str, attack: impl FnOnce(&mut Intruder, &mut House)) {
        let mut intruder = Intruder::at_work(&self.house.target(), 1);
        attack(&mut intruder, &mut self.house);
        self.neighbour.must_go_on(20);
        intruder.must_recover(what);
        drop(intruder);
        self.concludes(what);
    }

    /// The same where the attack ends with the connection, or needs none that works.
    pub fn hit(&mut self, what: &str, attack: impl FnOnce(&mut House)) {
        attack(&mut self.house);
        self.concludes(what);
    }

    /// What is done once before: the allocator keeps memory of it, once and for all.
    pub fn accustom(&mut self, what: &str, attack: impl FnOnce(&mut Intruder)) {
        let mut intruder = Intruder::at_work(&self.house.target(), 1);
        attack(&mut intruder);
        drop(intruder);
        drop(Intruder::at_work(&self.house.target(), 1));
        self.before = self.before.clone().with_memory_of(&self.house.census());
        self.settle(what);
    }

    fn concludes(&mut self, what: &str) {
        drop(Intruder::at_work(&self.house.target(), 1));
        self.neighbour.must_go_on(20);
        self.settle(what);
        self.cases += 1;
        let (longest, bound) = self.neighbour.longest();
        assert!(longest < bound, "{what}: a request of the neighbour took {longest:?}, more than {bound:?}");
        self.longest = self.longest.max(longest);
    }

    fn settle(&mut self, what: &str) {
        self.house.must_settle(&self.before, what);
    }

    /// The neighbour finds all that it has written, and the daemon ends in order.
    pub fn end(self) {
        let Trial { neighbour, house, cases, longest, _alone, .. } = self;
        let ended = neighbour.ended();
        neighbour.end();
        println!("{cases} cases; {ended} requests of the neighbour, none longer than {longest:?}");
        house.end();
    }
}
