//! Revocation against a naive model: two spaces over one file, devices that never let go by themselves.

use proptest::prelude::*;

use super::*;
use crate::Within;

const PAGES: u64 = 6;

/// A device that keeps its pins, which only the processor uses.
struct Keeps;

impl AccessOps for Keeps {
    fn on_unmap(&self, _range: IovaRange) {}

    fn cancel(&self, _range: IovaRange) -> bool {
        true
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { space: usize, offset: u64, len: u64 },
    Pin { which: usize },
    Drop { which: usize },
    Unmap { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = (0..2 * PAGES, 1..3 * PAGE);
    prop_oneof![
        3 => (0..2_usize, bytes).prop_map(|(space, (half, len))| {
            // At the beginning of a page or in the middle of it.
            let offset = half * PAGE / 2;
            Step::Map { space, offset, len: len.min(PAGES * PAGE - offset) }
        }),
        3 => any::<usize>().prop_map(|which| Step::Pin { which }),
        1 => any::<usize>().prop_map(|which| Step::Drop { which }),
        3 => any::<usize>().prop_map(|which| Step::Unmap { which }),
    ]
}

/// An area as the model knows it.
struct Naive {
    id: u64,
    space: usize,
    range: IovaRange,
    offset: u64,
    pages: std::ops::RangeInclusive<u64>,
    /// Counts windows: a new one is mapped when pages of the last one were revoked.
    window: u32,
    gated: bool,
}

/// A pin, the area it was taken in, and whether its memory was revoked.
struct Held {
    pin: Pin,
    area: u64,
    space: usize,
    page: u64,
    void: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn memory_is_revoked_exactly_when_no_other_area_has_a_byte_in_its_pages(steps in prop::collection::vec(step(), 1..60)) {
        let windows = Windows::new().unwrap();
        let file = memory(PAGES);
        for page in 0..PAGES {
            rustix::io::pwrite(file.as_fd(), &[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
        }
        let spaces = [Ioas::new(windows.clone()), Ioas::new(windows.clone())];
        let accesses = [Access::new(Arc::new(Keeps)), Access::new(Arc::new(Keeps))];
        for (access, ioas) in accesses.iter().zip(&spaces) {
            access.attach(ioas).unwrap();
        }
        let (mut areas, mut pins): (Vec<Naive>, Vec<Held>) = (Vec::new(), Vec::new());
        let (mut window, mut next) = (0, 0);
        for step in steps {
            match step {
                Step::Map { space, offset, len } => {
                    next += 1;
                    let new = area(&file, next << 32, len, offset);
                    let range = new.range;
                    spaces[space].map(new).unwrap();
                    let pages = offset / PAGE..=(offset + len - 1) / PAGE;
                    areas.push(Naive { id: next, space, range, offset, pages, window, gated: false });
                }
                Step::Pin { .. } | Step::Unmap { .. } if areas.is_empty() => {}
                Step::Pin { which } => {
                    let at = &areas[which % areas.len()];
                    let pinned = accesses[at.space].lane().enter().pin(at.range.first(), 1, Perm::WRITE);
                    prop_assert_eq!(pinned.is_err(), at.gated);
                    pins.extend(pinned.ok().map(|pin| {
                        Held { pin, area: at.id, space: at.space, page: at.offset / PAGE, void: false }
                    }));
                }
                Step::Drop { .. } if pins.is_empty() => {}
                Step::Drop { which } => drop(pins.swap_remove(which % pins.len())),
                Step::Unmap { which } => {
                    let which = which % areas.len();
                    let going = &areas[which];
                    let pinned = pins.iter().any(|held| held.area == going.id);
                    let shared = areas.iter().any(|other| {
                        other.id != going.id
                            && other.window == going.window
                            && other.pages.clone().any(|page| going.pages.contains(&page))
                    });
                    let done = spaces[going.space].unmap(going.range, Within::or_revoke(Duration::ZERO));
                    prop_assert_eq!(done.is_ok(), !(pinned && shared));
                    if done.is_err() {
                        areas[which].gated = true;
                    } else {
                        let gone = areas.swap_remove(which);
                        for held in pins.iter_mut().filter(|held| held.area == gone.id) {
                            held.void = true;
                        }
                        if pinned && gone.window == window {
                            window += 1;
                        }
                    }
                }
            }
            for held in &pins {
                let seen: u8 = held.pin.slices().next().unwrap().read(0).unwrap();
                prop_assert_eq!(seen, if held.void { 0 } else { held.page as u8 + 1 });
            }
            for (space, access) in accesses.iter().enumerate() {
                let count = |void| pins.iter().filter(|held| held.space == space && held.void == void).count();
                prop_assert_eq!((access.pins(), access.voided()), (count(false) as u64, count(true) as u64));
                prop_assert_eq!(spaces[space].areas().len(), areas.iter().filter(|at| at.space == space).count());
            }
        }
        pins.clear();
        for (ioas, access) in spaces.iter().zip(&accesses) {
            ioas.unmap_all(LONG).unwrap();
            prop_assert_eq!((access.pins(), access.voided()), (0, 0));
        }
        prop_assert_eq!((windows.live(), Arc::strong_count(&file)), (0, 1));
    }
}
