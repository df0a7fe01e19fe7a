//! What a space is charged to, and how that changes (`IOMMU_IOAS_CHANGE_PROCESS`).

use std::{collections::BTreeMap, sync::Arc};

use mdev_dma::{IovaRange, Ranged};

use crate::{
    access::AccessCore,
    account::{Account, OverLimit},
    error::{AccessError, IoasError, ResolveError},
    ioas::{Ioas, State},
    sync::lock,
    table::Mapped,
    tally::{Charged, Tally},
};

/// The right to make areas outside the lock of the space: as long as it exists, areas are on their way.
pub struct Arrival {
    /// What they are charged to.
    pub account: Account,
    _counted: Arc<()>,
}

/// Charges `spaces` to another account from here on, with everything that devices hold of them; as when the owner of the
/// memory hands it over to a process that takes its place. No device is told, no pin is dropped and no translation
/// changes: lanes notice nothing. What areas share with spaces that are not named goes along.
///
/// The new account is charged first and the old ones are released afterwards, so an account in which the limit of
/// both counts needs room for both. On an error nothing has changed. Releasing does not need the old owner to exist.
///
/// # Errors
///
/// `NotAFile` \[EINVAL\] if an area of a space is backed by no file: its bytes are the owner's, who cannot be replaced.
/// `Busy` \[EBUSY\] if an area of a space is on its way in or out. `Charge` \[ENOMEM\] if the account refuses.
/// `Destroyed` \[ENOENT\].
pub fn change_process(spaces: &[Ioas], to: &Account) -> Result<(), IoasError> {
    let mut ordered: Vec<&Ioas> = spaces.iter().collect();
    ordered.sort_by_key(|ioas| ioas.number());
    ordered.dedup_by_key(|ioas| ioas.number());
    // All at once, and then all that is shared: nobody maps, pins or unpins between the charge and the release.
    let mut states: Vec<_> = ordered.iter().map(|ioas| ioas.state()).collect();
    let mut tallies = BTreeMap::new();
    for state in &states {
        state.can_change_process()?;
        let shares = state.areas.iter().flat_map(|mapped| &mapped.0.shares.parts);
        tallies.extend(shares.map(|share| (Arc::as_ptr(share.tally()).addr(), share.tally().clone())));
    }
    let mut others: Vec<_> = tallies.values().map(|tally: &Arc<Tally>| tally.lock()).collect();
    others.retain(|tally| !tally.account().is(to));
    to.charge(others.iter().map(|tally| tally.charged()).fold(0, u64::saturating_add))?;
    others.iter_mut().for_each(|tally| tally.hand_over(to));
    states.iter_mut().for_each(|state| state.account = to.clone());
    Ok(())
}

impl Ioas {
    /// What is mapped here from now on is charged to it.
    pub fn account(&self) -> Account {
        self.state().account.clone()
    }
}

impl State {
    fn can_change_process(&self) -> Result<(), IoasError> {
        self.changeable()?;
        if let Some(mapped) = self.areas.iter().find(|mapped| mapped.0.area.extent.file().is_none()) {
            return Err(IoasError::NotAFile(mapped.range()));
        }
        let arriving = Arc::strong_count(&self.arrivals) > 1;
        if arriving || self.areas.iter().any(|mapped| mapped.0.leaving) {
            Err(IoasError::Busy)
        } else {
            Ok(())
        }
    }

    /// Announces areas.
    pub fn arrives(&self) -> Arrival {
        Arrival { account: self.account.clone(), _counted: self.arrivals.clone() }
    }

    /// Whether an access is attached whose devices may pin any byte at any time.
    pub fn charges(&self) -> bool {
        self.members.iter().any(|member| member.charges)
    }

    /// Charges all areas, those of a replacement that is under way too; all or nothing.
    pub fn charge_areas(&self) -> Result<(), IoasError> {
        let mut charged: Vec<&Mapped> = Vec::new();
        for mapped in self.areas.iter().chain(&self.coming) {
            match mapped.charge() {
                Ok(true) => charged.push(mapped),
                Ok(false) => {}
                Err(error) => {
                    charged.iter().for_each(|mapped| mapped.0.shares.release_whole());
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Takes back [`State::charge_areas`], unless somebody still needs it.
    pub fn release_areas(&self) {
        if !self.charges() {
            self.areas.iter().chain(&self.coming).for_each(|mapped| mapped.0.shares.release_whole());
        }
    }

    /// Charges areas that are about to be added, if areas are charged. Those that are not added release it when they
    /// are dropped.
    pub fn charge_new(&self, new: &[Mapped]) -> Result<(), OverLimit> {
        if self.charges() { new.iter().try_for_each(|mapped| mapped.charge().map(drop)) } else { Ok(()) }
    }

    /// A replacement is going to install `coming`.
    pub fn prepare_for(&mut self, coming: Vec<Mapped>) -> Result<(), IoasError> {
        self.charge_new(&coming)?;
        self.coming = coming;
        Ok(())
    }
}

impl AccessCore {
    /// Charges what is mapped at `range` and is about to be pinned. The caller's burst resolves all of it, so it stays
    /// mapped meanwhile, even if somebody cuts its areas anew.
    pub fn charge(&self, range: IovaRange) -> Result<Vec<Charged>, AccessError> {
        // To a pin that is not recorded yet, a change of the access has begun already.
        let ioas = lock(&self.attachment).settled().map_err(|_| ResolveError::Detached)?;
        let mut charged = Vec::new();
        let state = ioas.state();
        state.areas.overlapping(range).try_for_each(|mapped| mapped.0.shares.charge(range, &mut charged))?;
        Ok(charged)
    }
}

impl Mapped {
    /// Charges it for devices that pin in bursts, who can pin only what is mapped here; `true` if it was not charged.
    fn charge(&self) -> Result<bool, OverLimit> {
        if self.0.area.extent.file().is_none() { Ok(false) } else { self.0.shares.charge_whole() }
    }
}
