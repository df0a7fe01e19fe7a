//! A device that records what it holds, and lets go of it when it is told, or does not.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mdev_dma::{GuestSlice, Iova, IovaRange};

use super::{
    naive::{Naive, NaiveArea, Outcome, Part},
    of,
};
use crate::{Access, AccessOps, Lane, Pages, Pin};

#[derive(Default)]
struct Record {
    /// With what it shows.
    pins: Vec<(IovaRange, Pin, Vec<Part>)>,
    pages: Vec<Pages>,
}

#[derive(Default)]
struct Held {
    record: Mutex<Record>,
    stubborn: AtomicBool,
}

impl Held {
    fn with<R>(&self, touch: impl FnOnce(&mut Record) -> R) -> R {
        touch(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn let_go(&self, of: IovaRange) {
        self.with(|record| {
            record.pins.retain(|(range, ..)| range.intersection(of).is_none());
            for pages in record.pages.extract_if(.., |pages| pages.range().intersection(of).is_some()) {
                assert!(pages.unpin().is_ok(), "recorded pages were not pinned");
            }
        });
    }
}

impl AccessOps for Held {
    fn on_unmap(&self, range: IovaRange) {
        if !self.stubborn.load(Ordering::Relaxed) {
            self.let_go(range);
        }
    }
}

pub struct Device {
    held: Arc<Held>,
    pub access: Access,
    lane: RefCell<Lane>,
}

impl Device {
    pub fn new(pinning: bool) -> Device {
        let held = Arc::new(Held::default());
        let access = if pinning { Access::pinning(held.clone()) } else { Access::new(held.clone()) };
        Device { lane: RefCell::new(access.lane()), access, held }
    }

    pub fn set_stubborn(&self, stubborn: bool) {
        self.held.stubborn.store(stubborn, Ordering::Relaxed);
    }

    pub fn let_go(&self) {
        self.held.let_go(IovaRange::FULL);
    }

    /// Pins in a burst and records that it will show `parts`.
    pub fn pin(&self, wanted: &NaiveArea, parts: Vec<Part>) -> Outcome<()> {
        let (Some(range), Ok(len)) = (wanted.range(), u32::try_from(wanted.len)) else { return Err(75) };
        let mut lane = self.lane.borrow_mut();
        let burst = lane.enter();
        let pin = of(burst.pin(range.first(), len, wanted.perm))?;
        self.held.with(|record| record.pins.push((range, pin, parts)));
        Ok(())
    }

    pub fn pin_pages(&self, wanted: &NaiveArea) -> Outcome<()> {
        let pages = of(self.access.pin_pages(Iova(wanted.first), wanted.len, wanted.perm))?;
        self.held.with(|record| record.pages.push(pages));
        Ok(())
    }

    pub fn has_pages(&self, range: IovaRange) -> bool {
        self.held.with(|record| record.pages.iter().any(|pages| pages.range() == range))
    }

    /// What was pinned by [`Device::pin_pages`] first.
    pub fn first_pages(&self) -> Option<NaiveArea> {
        let range = self.held.with(|record| record.pages.first().map(Pages::range))?;
        NaiveArea::over(range)
    }

    /// Forgets one that was unpinned.
    pub fn forget_pages(&self, range: IovaRange) {
        self.held.with(|record| {
            let at = record.pages.iter().position(|pages| pages.range() == range);
            at.map(|at| record.pages.swap_remove(at));
        });
    }

    /// Unpins what was pinned first.
    pub fn unpin_one(&self) {
        self.held.with(|record| match record.pins.is_empty() {
            false => drop(record.pins.remove(0)),
            true => {
                let pages = record.pages.drain(..1.min(record.pages.len())).next();
                assert!(pages.is_none_or(|pages| pages.unpin().is_ok()), "recorded pages were not pinned");
            }
        });
    }

    /// Every hold is counted, is on what is mapped now, and shows what it showed.
    pub fn agree(&self, number: usize, naive: &Naive) {
        self.held.with(|record| {
            let mut counted = 0;
            for (range, pin, parts) in &record.pins {
                counted += pin.slices().count();
                assert!(naive.shows(number, *range, parts), "a pin on {range:?} outlived its area");
                for (slice, part) in pin.slices().zip(parts) {
                    shows(&slice, part, naive);
                }
            }
            // A range that was pinned again stands on one pin.
            let mut seen = BTreeSet::new();
            for pages in &record.pages {
                assert!(naive.maps(number, pages.range()), "{pages:?} outlived their area");
                let pieces = pages.with(|pin| pin.slices().count());
                let first = seen.insert((pages.range().first(), pages.range().last()));
                match of(pieces) {
                    Ok(pieces) if first => counted += pieces,
                    Ok(_) => {}
                    // Lost: it cannot be told how many there are.
                    Err(errno) => {
                        assert_eq!(errno, 14);
                        return;
                    }
                }
            }
            assert_eq!(self.access.pins(), counted as u64);
        });
    }
}

fn shows(slice: &GuestSlice<'_>, part: &Part, naive: &Naive) {
    assert_eq!(slice.len() as u64, part.len);
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes);
    assert!(
        naive.is_lost(part.file) || naive.bytes(part) == Some(&bytes),
        "a pin shows other bytes: {part:?}"
    );
}
