//! What becomes of lanes and pins that are still there at a deadline.
//!
//! A change that may revoke asks, once its deadline has passed, every access that holds some of the bytes to cancel what
//! the kernel does with them, and then puts zeros of our own under the slices of whoever did not let go
//! ([`Occupancy::revoke`]). From then on its pins are *void*: they are still out, and still point to memory, but not to
//! the guest's. The area leaves the space as if they had been dropped. What they point to, and the slots they are counted
//! on, stay with their access until the last of them is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mdev_dma::{HostWindow, Occupancy, Ranged};

use crate::{
    access::AccessCore, ioas::Ioas, shard::Grace, slot::Slot, sync::Arc, sys::published::Retired,
    table::Mapped,
};

/// What happens to a change whose deadline passes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Past {
    /// It fails with `EDEADLOCK`: what was to go stays mapped and gated, and the change can be begun again.
    #[default]
    Fail,
    /// Pins, and slices of lanes that are still inside a burst, lose the guest's memory: they reach private zeros instead,
    /// and the change succeeds. Where that cannot be, it fails as above: if a device does not say that the kernel is done
    /// with the bytes ([`crate::AccessOps::cancel`]), or if another area, of any space, has a byte in one of their pages
    /// (pages of the file's own size).
    Revoke,
}

/// How long a change may wait for lanes and pins, and what happens then. A [`Duration`] alone is one that fails.
#[derive(Copy, Clone, Debug)]
pub struct Within {
    pub(crate) time: Duration,
    pub(crate) past: Past,
}

impl Within {
    /// Fails when `time` is over.
    pub fn or_fail(time: Duration) -> Self {
        Within { time, past: Past::Fail }
    }

    /// Revokes when `time` is over.
    pub fn or_revoke(time: Duration) -> Self {
        Within { time, past: Past::Revoke }
    }
}

impl From<Duration> for Within {
    fn from(time: Duration) -> Self {
        Within::or_fail(time)
    }
}

/// What void pins of one access need: the memory they point to and the slots they are counted on.
pub struct Void {
    /// Unmapped with the last of the pins.
    _windows: Vec<std::sync::Arc<HostWindow>>,
    slots: BTreeMap<u32, VoidSlot>,
    /// Lanes inside a burst that shows the bytes ungated: they may still pin them.
    late: Grace,
}

struct VoidSlot {
    /// Not used again while a pin on it is out.
    _slot: Slot,
    /// A live area that was cut out of the same one counts on it too. Then nobody can tell which of its pins are void,
    /// and all count as live.
    shared: bool,
}

impl Void {
    /// Whether the last pin is gone, and no other can come.
    pub fn over(&mut self, pins_on: impl Fn(u32) -> u64) -> bool {
        // In this order: a lane that has left the burst takes no pin that the count does not show.
        self.late.over() && self.slots.keys().all(|slot| pins_on(*slot) == 0)
    }

    /// Slots on which only void pins are counted.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|(_, slot)| !slot.shared).map(|(number, _)| *number)
    }
}

impl Ioas {
    /// Voids all holds on `going`, which are areas of this space that are gated and leave it. `late` are the tables that
    /// showed them open and that some lane may still be reading. `false` if that is not possible for all of them; then
    /// they must stay mapped.
    pub(crate) fn revoke(&self, going: &[Mapped], late: &[Retired]) -> bool {
        let accesses: Vec<Arc<AccessCore>> = self.state().counted().cloned().collect();
        let accesses: Vec<_> = accesses.into_iter().map(|core| (core.published.late(late), core)).collect();
        let mut held = Vec::new();
        for mapped in going {
            let slots: Vec<Slot> = mapped.slots().collect();
            let mut is_held = false;
            for (late, core) in &accesses {
                if late.is_over() && !core.published.pins_on_any(&slots) {
                    continue;
                }
                if !core.cancel(mapped.range()) {
                    return false;
                }
                is_held = true;
            }
            if is_held {
                held.push(mapped);
            }
            // A copy that is under way goes to the owner's process itself: nothing can be put under it.
            let away = mapped.0.area.extent.file().is_none();
            if is_held && away && accesses.iter().any(|(late, _)| !late.is_over()) {
                return false;
            }
        }
        if let Err(error) = Occupancy::revoke(held.iter().map(|mapped| &*mapped.0.occupancy)) {
            log::warn!(
                "a device holds on to guest memory past the deadline, and it cannot be revoked: {error}"
            );
            return false;
        }
        let mut away = held.iter().filter(|mapped| mapped.0.area.extent.file().is_none());
        if !away.all(|mapped| mapped.slots().all(|slot| slot.try_revoke(mapped.range()))) {
            return false;
        }
        let live = self.slots_beside(going);
        for (late, core) in accesses {
            core.published.keep(Void {
                _windows: windows(&held),
                slots: held.iter().flat_map(|mapped| mapped.slots()).map(|slot| void(slot, &live)).collect(),
                late,
            });
        }
        true
    }

    /// The slots of all areas of this space but these.
    fn slots_beside(&self, going: &[Mapped]) -> BTreeSet<u32> {
        let going: BTreeSet<_> = going.iter().map(|mapped| mapped.range().first()).collect();
        let state = self.state();
        let others = state.areas.iter().filter(|mapped| !going.contains(&mapped.range().first()));
        others.flat_map(Mapped::slots).map(|slot| slot.number()).collect()
    }
}

fn windows(areas: &[&Mapped]) -> Vec<std::sync::Arc<HostWindow>> {
    areas.iter().flat_map(|mapped| &mapped.0.segments).map(|segment| segment.window.clone()).collect()
}

fn void(slot: Slot, live: &BTreeSet<u32>) -> (u32, VoidSlot) {
    let number = slot.number();
    (number, VoidSlot { _slot: slot, shared: live.contains(&number) })
}
