//! The accesses of a space: who is shown its table, whose pins count in it, who is told of what leaves.

use mdev_dma::IovaRange;

use crate::{
    access::AccessCore,
    error::IoasError,
    ioas::{Ioas, State},
    slot::Slot,
    sync::Arc,
    sys::published::Retired,
    table::Table,
};

/// An access in the list of a space.
pub struct Member {
    core: Arc<AccessCore>,
    stage: Stage,
    /// What it needs areas to be aligned to, until it has left.
    pub alignment: u64,
    /// Its device may pin any byte in a burst, so areas are charged.
    pub charges: bool,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Stage {
    /// Nothing has been published to it here; what it has pinned is of another space, whose slots have the same
    /// numbers.
    Joining,
    /// The table is published to it.
    Open,
    /// It is detaching: only the empty table is published to it any more.
    Leaving,
}

impl Ioas {
    /// Adds an access and publishes the table to it. Until it has left, areas are aligned to `alignment` bytes, a
    /// power of two, of all areas.
    ///
    /// # Errors
    ///
    /// `Unaligned` if an area is not so aligned, `Busy` if that cannot be told now, `Charge` if the device pins in
    /// bursts and the areas are beyond the limit of their owner, `Destroyed`.
    pub(crate) fn join(&self, core: &Arc<AccessCore>, alignment: u64) -> Result<(), IoasError> {
        let mut state = self.state();
        state.enlist(core, alignment)?;
        let retired = state.open(core);
        drop(state);
        self.adopt(retired.into_iter().collect());
        Ok(())
    }

    /// Adds an access as [`Ioas::join`] does, without publishing anything to it.
    pub(crate) fn enlist(&self, core: &Arc<AccessCore>, alignment: u64) -> Result<(), IoasError> {
        self.state().enlist(core, alignment)
    }

    /// Publishes the table to an access of the list, from here on.
    pub(crate) fn open(&self, core: &Arc<AccessCore>) -> Option<Retired> {
        self.state().open(core)
    }

    /// Publishes the table again to an access that is leaving.
    pub(crate) fn reopen(&self, core: &Arc<AccessCore>) -> Option<Retired> {
        let mut state = self.state();
        let leaving = state.member(core)?.stage == Stage::Leaving;
        if leaving { state.open(core) } else { None }
    }

    /// Publishes the empty table to an access, as the last thing that is published to it here, unless it is opened
    /// again. `None` if it is no member (any more).
    pub(crate) fn leaving(&self, core: &Arc<AccessCore>) -> Option<Retired> {
        self.state().member(core)?.stage = Stage::Leaving;
        Some(core.publish(Table::detached()))
    }

    /// Removes an access whose pins are gone.
    pub(crate) fn left(&self, core: &Arc<AccessCore>) {
        let mut state = self.state();
        state.members.retain(|member| !Arc::ptr_eq(&member.core, core));
        state.release_areas();
    }

    /// Pins on `slots`, over all accesses.
    pub(crate) fn pinned(&self, slots: &[Slot]) -> bool {
        let state = self.state();
        let on = |slot: &Slot| state.counted().any(|core| core.published.pins_on(slot.number()) > 0);
        slots.iter().any(on)
    }

    /// Tells every attached device, without a lock.
    pub(crate) fn notify(&self, range: IovaRange) {
        let told: Vec<_> = self.state().counted().cloned().collect();
        for core in told {
            core.notify(range);
        }
    }
}

impl State {
    fn enlist(&mut self, core: &Arc<AccessCore>, alignment: u64) -> Result<(), IoasError> {
        self.alive()?;
        self.can_align(alignment)?;
        let charges = core.control.pins_in_bursts();
        if charges {
            self.charge_areas()?;
        }
        self.members.push(Member { core: core.clone(), stage: Stage::Joining, alignment, charges });
        Ok(())
    }

    fn open(&mut self, core: &Arc<AccessCore>) -> Option<Retired> {
        self.member(core)?.stage = Stage::Open;
        Some(core.publish(self.table.clone()))
    }

    fn member(&mut self, core: &Arc<AccessCore>) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| Arc::ptr_eq(&member.core, core))
    }

    /// Accesses whose pins are pins on this space.
    pub fn counted(&self) -> impl Iterator<Item = &Arc<AccessCore>> {
        self.members.iter().filter(|member| member.stage != Stage::Joining).map(|member| &member.core)
    }

    /// Publishes the table to every access that is open. One that is leaving gets its empty table once more: a lane
    /// of it may still be in a burst that shows it everything, which whoever changes the table has to wait for too.
    pub fn publish_table(&self) -> Vec<Retired> {
        let shown = self.members.iter().filter_map(|member| match member.stage {
            Stage::Joining => None,
            Stage::Open => Some((member, self.table.clone())),
            Stage::Leaving => Some((member, Table::detached())),
        });
        shown.map(|(member, table)| member.core.publish(table)).collect()
    }
}
