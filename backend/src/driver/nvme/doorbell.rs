//! How a driver tells a controller how far it got in a queue.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use mdev_dma::Segment;
use mdev_protocol::nvme::register::DOORBELLS;

use super::function::Function;
use crate::driver::{DriverError, Part};

/// How the doorbells of I/O queues are written. Those of the admin queue are always messages.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum DoorbellWay {
    /// In the page that the device lets its client map.
    Mapped,
    /// By a message for each, which is not answered.
    Trapped,
    /// In the guest's memory, and by a message where the controller has asked for one.
    Shadow,
}

impl DoorbellWay {
    /// As written on the command line and in names of results.
    pub fn name(self) -> &'static str {
        match self {
            DoorbellWay::Mapped => "mapped",
            DoorbellWay::Trapped => "trapped",
            DoorbellWay::Shadow => "shadow",
        }
    }
}

/// Memory that stands for the doorbells: a page each, laid out as the registers are.
#[derive(Clone)]
pub(super) struct ShadowPages {
    /// What the driver writes.
    pub values: Part,
    /// What the controller writes: where it wants the register to be written too.
    pub events: Part,
}

/// One doorbell.
pub(super) struct Doorbell {
    function: Arc<Function>,
    /// In the page.
    offset: u64,
    place: Place,
}

enum Place {
    Register,
    Page(Segment),
    Shadow { pages: ShadowPages, last: u32 },
}

impl Doorbell {
    /// Of the tail of submission queue `qid`, or of the head of completion queue `qid`; a register.
    pub fn register(function: Arc<Function>, qid: u16, is_head: bool) -> Self {
        let offset = u64::from(qid) * 8 + if is_head { 4 } else { 0 };
        Doorbell { function, offset, place: Place::Register }
    }

    /// The same in a page that is mapped.
    pub fn in_page(self, page: Segment) -> Self {
        Doorbell { place: Place::Page(page), ..self }
    }

    /// The same in memory. The queue must not exist yet: both begin at zero.
    pub fn in_memory(self, pages: ShadowPages) -> Self {
        for part in [&pages.values, &pages.events] {
            if let Some(page) = part.slice() {
                let _ = page.store_u32(self.offset as usize, 0, Ordering::Relaxed);
            }
        }
        Doorbell { place: Place::Shadow { pages, last: 0 }, ..self }
    }

    /// Everything before this is seen by a device that sees the value.
    ///
    /// # Errors
    /// It is a message and the connection is over.
    #[inline]
    pub fn ring(&mut self, value: u32) -> Result<(), DriverError> {
        match &mut self.place {
            Place::Page(page) => {
                if let Some(place) = page.window.slice(page.offset + self.offset, 4) {
                    let _ = place.store_u32(0, value.to_le(), Ordering::Release);
                }
                Ok(())
            }
            Place::Register => self.post(value),
            Place::Shadow { pages, last } => {
                let at = self.offset as usize;
                if let Some(values) = pages.values.slice() {
                    let _ = values.store_u32(at, value.to_le(), Ordering::Release);
                }
                // The value must be out before the wish is read: the controller writes the wish and then reads the value.
                fence(Ordering::SeqCst);
                let event = pages.events.slice().and_then(|events| events.load_u32(at, Ordering::Relaxed));
                let old = std::mem::replace(last, value);
                match event.map(u32::from_le) {
                    Some(event) if !is_passed(event, old, value) => Ok(()),
                    _ => self.post(value),
                }
            }
        }
    }

    #[cold]
    fn post(&self, value: u32) -> Result<(), DriverError> {
        let register = DOORBELLS + self.offset as u32;
        self.function.post32(register, value).map_err(|error| DriverError::Doorbell(Box::new(error)))
    }
}

/// Whether the step from `old` to `new` goes beyond `event` (annex B.5). Values wrap at the size of the queue, where this says
/// yes once too often rather than once too seldom.
fn is_passed(event: u32, old: u32, new: u32) -> bool {
    let [event, old, new] = [event, old, new].map(|value| value as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::is_passed;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn event_is_passed_if_a_walk_leaves_it(event in 0u16..300, old in 0u16..300, steps in 0u16..300) {
            let walk: Vec<u16> = (0..steps).map(|step| old.wrapping_add(step)).collect();
            let new = old.wrapping_add(steps);
            prop_assert_eq!(is_passed(event.into(), old.into(), new.into()), walk.contains(&event));
        }
    }

    #[test]
    fn step_passes_the_event_only_if_it_was_not_beyond_it_before() {
        assert!(is_passed(0, 0, 1) && is_passed(4, 3, 7) && is_passed(4, 4, 5));
        assert!(!is_passed(4, 3, 4) && !is_passed(4, 5, 6) && !is_passed(0, 1, 9));
    }

    #[test]
    fn step_around_the_end_of_the_queue_passes_an_event_at_its_end() {
        assert!(is_passed(63, 63, 0) && is_passed(63, 60, 2));
        assert!(is_passed(60, 60, 2));
    }
}
