//! Updates, invalidations, evictions and removals of regions against a list that knows every page by itself.

use std::os::fd::AsFd;

use mdev_protocol::vhost_user::{FrontendMessage as M, IotlbPerm};
use proptest::prelude::*;

use super::House;
use super::front::{MIB, USER, memfd, region};
use super::iommu::{invalidate, settled, update};
use crate::session::MAX_IOTLB_ENTRIES;
use crate::session::vhost_user::iotlb::PUSHED_OUT;

const PAGE: u64 = 4096;
/// Pages of address space that are used.
const SPACE: u64 = 96;
/// The second region: it follows the first in user addresses.
const SECOND: u64 = 4 * MIB;

#[derive(Clone, Debug)]
enum Step {
    Update { page: u64, pages: u64, user: u64, perm: IotlbPerm },
    Invalidate { first: u64, size: u64 },
    Regions { second: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let perm = prop_oneof![4 => Just(IotlbPerm::all()), 1 => Just(IotlbPerm::READ)];
    // Around the border of the regions, so that some span it and some leave it.
    let user = SECOND / PAGE - 24..SECOND / PAGE + 24;
    prop_oneof![
        12 => (0..SPACE, 1..4_u64, user, perm)
            .prop_map(|(page, pages, user, perm)| Step::Update { page, pages, user, perm }),
        2 => (0..SPACE * PAGE, 1..6 * PAGE).prop_map(|(first, size)| Step::Invalidate { first, size }),
        1 => any::<bool>().prop_map(|second| Step::Regions { second }),
    ]
}

/// A translation, in pages.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Entry {
    page: u64,
    pages: u64,
    user: u64,
    perm: IotlbPerm,
}

impl Entry {
    fn has(&self, page: u64) -> bool {
        (self.page..self.page + self.pages).contains(&page)
    }
}

/// Oldest first.
#[derive(Default)]
struct Model(Vec<Entry>);

impl Model {
    fn at(&self, page: u64) -> Option<(u64, IotlbPerm)> {
        let entry = self.0.iter().find(|entry| entry.has(page))?;
        Some((entry.user + (page - entry.page), entry.perm))
    }

    fn update(&mut self, new: Entry, second: bool) -> bool {
        let border = SECOND / PAGE;
        let end = if second { border + MIB / PAGE } else { border };
        if new.user + new.pages > end {
            return false;
        }
        if (0..new.pages).all(|i| self.at(new.page + i) == Some((new.user + i, new.perm))) {
            return true;
        }
        let here = border.saturating_sub(new.user).min(new.pages);
        let parts = [
            Entry { pages: here, ..new },
            Entry { page: new.page + here, pages: new.pages - here, user: new.user + here, ..new },
        ];
        let parts: Vec<Entry> = parts.into_iter().filter(|part| part.pages > 0).collect();
        let surplus = (self.0.len() + parts.len()).saturating_sub(MAX_IOTLB_ENTRIES);
        if surplus > 0 {
            self.0.drain(..surplus.max(PUSHED_OUT));
        }
        self.0.retain(|there| !(0..new.pages).any(|i| there.has(new.page + i)));
        self.0.extend(parts);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn device_sees_the_pages_of_a_naive_list(steps in proptest::collection::vec(step(), 1..160)) {
        let mut house = House::new(2);
        let (mut front, _channel) = settled(&mut house);
        let file = memfd(MIB);
        let other = region(1 << 32, MIB, USER + SECOND);
        let mut there = false;
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Update { page, pages, user, perm } => {
                    let message = update(page * PAGE, pages * PAGE, USER + user * PAGE, perm);
                    if model.update(Entry { page, pages, user, perm }, there) {
                        front.done(&mut house, message, &[]);
                    } else {
                        front.refused(&mut house, message, &[]);
                    }
                }
                Step::Invalidate { first, size } => {
                    front.done(&mut house, invalidate(first, size), &[]);
                    let pages = first / PAGE..=(first + size - 1) / PAGE;
                    model.0.retain(|entry| !pages.clone().any(|page| entry.has(page)));
                }
                Step::Regions { second } if second != there => {
                    if second {
                        front.done(&mut house, M::AddMemReg(other), &[file.as_fd()]);
                    } else {
                        front.done(&mut house, M::RemMemReg(other), &[]);
                        model.0.retain(|entry| entry.user < SECOND / PAGE);
                    }
                    there = second;
                }
                Step::Regions { .. } => {}
            }
            let mut seen = vec![None; (SPACE + 4) as usize];
            let areas = house.session(1).ioas.areas();
            for area in &areas {
                let pages = area.range.first().0 / PAGE..=area.range.last().0 / PAGE;
                let extent = area.extent.file().unwrap();
                let second = extent.file.size().unwrap() == MIB;
                let user = extent.offset / PAGE + if second { SECOND / PAGE } else { 0 };
                let writable = area.perm.contains(mdev_dma::Perm::WRITE);
                let perm = if writable { IotlbPerm::all() } else { IotlbPerm::READ };
                for (page, user) in pages.zip(user..) {
                    prop_assert!(seen[page as usize].is_none(), "no page twice");
                    seen[page as usize] = Some((user, perm));
                }
            }
            let wanted: Vec<_> = (0..SPACE + 4).map(|page| model.at(page)).collect();
            prop_assert_eq!(seen, wanted);
            prop_assert_eq!(house.translations.line().entries, model.0.len() as u64);
            prop_assert!(areas.len() <= MAX_IOTLB_ENTRIES);
        }
    }
}
