//! What is charged to whom: pages that are pinned, areas that may be, and both when the owner changes.

use super::*;
use crate::{Account, IoasError, Place, change_process};

const BOTH: Perm = Perm::READ.union(Perm::WRITE);

/// A space that is charged to an account of so many pages.
fn charged(pages: u64) -> (Ioas, Account) {
    let account = Account::new(pages * PAGE);
    (Ioas::charged_to(Windows::new().unwrap(), &account), account)
}

fn pinning(ioas: &Ioas) -> Access {
    let access = Access::pinning(Arc::new(IgnoreUnmap));
    access.attach(ioas).unwrap();
    access
}

#[test]
fn pages_are_charged_once_however_often_they_are_pinned_and_copied() {
    let (ioas, account) = charged(100);
    let access = pinning(&ioas);
    let file = memory(8);
    ioas.map(area(&file, 0, 8 * PAGE, 0)).unwrap();
    ioas.copy_from(&ioas, Iova(2 * PAGE), 4 * PAGE, Place::At(Iova(0x10_0000)), BOTH).unwrap();
    assert_eq!(account.pinned(), 0, "mapping and copying cost nothing");
    access.pin_pages(Iova(0), 3 * PAGE, BOTH).unwrap();
    access.pin_pages(Iova(0), 3 * PAGE, BOTH).unwrap();
    assert_eq!(account.pinned(), 3);
    access.pin_pages(Iova(2 * PAGE), 17, BOTH).unwrap();
    access.pin_pages(Iova(0x10_0000), 2 * PAGE, Perm::READ).unwrap();
    assert_eq!(account.pinned(), 4, "page 3 of the file is the only one that came with them");
    access.unpin_pages(Iova(0), 3 * PAGE).unwrap();
    assert_eq!(account.pinned(), 4);
    access.unpin_pages(Iova(0), 3 * PAGE).unwrap();
    assert_eq!(account.pinned(), 2);
    access.unpin_pages(Iova(0x10_0000), 2 * PAGE).unwrap();
    assert_eq!(account.pinned(), 1);
    access.unpin_pages(Iova(2 * PAGE), 17).unwrap();
    assert_eq!(account.pinned(), 0);
}

#[test]
fn pin_beyond_the_limit_returns_enomem_and_leaves_nothing() {
    let (ioas, account) = charged(3);
    let access = pinning(&ioas);
    ioas.map(area(&memory(2), 0, 2 * PAGE, 0)).unwrap();
    ioas.map(area(&memory(2), 2 * PAGE, 2 * PAGE, 0)).unwrap();
    access.pin_pages(Iova(PAGE), PAGE, BOTH).unwrap();
    assert_eq!(access.pin_pages(Iova(0), 4 * PAGE, BOTH).unwrap_err().errno(), 12);
    assert_eq!((account.pinned(), access.pins()), (1, 1));
    access.pin_pages(Iova(0), 3 * PAGE, BOTH).unwrap();
    assert_eq!(account.pinned(), 3);
    access.pin_pages(Iova(0), 2 * PAGE, BOTH).unwrap();
    assert_eq!(access.pin_pages(Iova(3 * PAGE), 1, BOTH).unwrap_err().errno(), 12, "the limit is reached");
    drop(access);
    assert_eq!(account.pinned(), 0, "what nobody can unpin any more is released");
}

#[test]
fn separate_mappings_of_a_file_are_charged_separately() {
    let (ioas, account) = charged(3);
    let access = pinning(&ioas);
    let file = memory(2);
    ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    ioas.map(area(&file, 2 * PAGE, 2 * PAGE, 0)).unwrap();
    access.pin_pages(Iova(0), 2 * PAGE, BOTH).unwrap();
    assert_eq!(
        access.pin_pages(Iova(2 * PAGE), 2 * PAGE, BOTH).unwrap_err().errno(),
        12,
        "as two iopt_pages"
    );
    assert_eq!(account.pinned(), 2);
}

#[test]
fn attach_charges_all_areas_and_is_refused_where_they_are_too_many() {
    let (ioas, account) = charged(4);
    ioas.map(area(&memory(2), 0, 2 * PAGE, 0)).unwrap();
    ioas.map(area(&memory(3), 0x10_0000, 2 * PAGE, PAGE)).unwrap();
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    assert_eq!(account.pinned(), 4);
    let again = Access::new(Arc::new(IgnoreUnmap));
    again.attach(&ioas).unwrap();
    assert_eq!(account.pinned(), 4, "two devices cost no more than one");
    assert_eq!(ioas.map(area(&memory(1), 0x20_0000, 1, 0)).unwrap_err().errno(), 12);
    assert_eq!(ioas.areas().len(), 2, "and nothing was mapped");
    assert_eq!(
        ioas.map_anywhere(FileExtent { file: memory(1), offset: 0 }, 1, BOTH).unwrap_err().errno(),
        12
    );
    ioas.unmap(range(0, 2 * PAGE), LONG).unwrap();
    assert_eq!(account.pinned(), 2);
    ioas.map(area(&memory(1), 0, 1, 0)).unwrap();
    assert_eq!(account.pinned(), 3, "a byte costs a page");
    access.detach(LONG).unwrap();
    assert_eq!(account.pinned(), 3);
    again.close(LONG).unwrap();
    assert_eq!(account.pinned(), 0);
    ioas.map(area(&memory(9), 0x20_0000, 9 * PAGE, 0)).unwrap();
    assert_eq!(access.attach(&ioas).unwrap_err().errno(), 12);
    assert_eq!((account.pinned(), ioas.destroy().unwrap()), (0, 11 * PAGE + 1));
}

#[test]
fn replacement_of_the_space_that_is_too_large_changes_nothing() {
    let (small, account) = charged(1);
    small.map(area(&memory(2), 0, 2 * PAGE, 0)).unwrap();
    let s = space();
    s.ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    assert_eq!(s.access.replace(&small, LONG).unwrap_err().errno(), 12);
    assert!(s.access.lane().enter().pin(Iova(0), 8, BOTH).is_ok(), "still on its space");
    assert_eq!((account.pinned(), s.ioas.account().pinned()), (0, 1));
}

#[test]
fn access_without_pins_is_charged_nothing_and_refused_pins() {
    let (ioas, account) = charged(1);
    let file = memory(2);
    ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    let access = Access::without_pins(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    let mut lane = access.lane();
    {
        let burst = lane.enter();
        burst.slice(Iova(0), 64, BOTH).unwrap().fill(1);
        for (iova, len) in [(0, 64), (PAGE, 8), (0, 64)] {
            assert_eq!(burst.pin(Iova(iova), len, BOTH).unwrap_err().errno(), 22);
        }
        assert_eq!(burst.pin(Iova(2 * PAGE), 8, BOTH).unwrap_err().errno(), 2);
    }
    assert_eq!(access.pin_pages(Iova(0), PAGE, BOTH).unwrap_err().errno(), 22);
    access.rw(Iova(1), crate::Rw::Write(&[2])).unwrap();
    assert_eq!((account.pinned(), access.pins()), (0, 0));
    assert_eq!(pinning(&ioas).lane().enter().pin(Iova(0), 8, BOTH).unwrap_err(), ResolveError::NotPinning);
}

#[test]
fn replaced_table_charges_what_is_new_and_releases_what_is_gone() {
    let (ioas, account) = charged(6);
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    let (file, other) = (memory(8), memory(8));
    ioas.replace_table(vec![area(&file, 0, 4 * PAGE, 0)], LONG).unwrap();
    assert_eq!(account.pinned(), 4);
    // One area grows out of a part of another one; the rest goes.
    ioas.replace_table(vec![area(&file, 2 * PAGE, 4 * PAGE, 2 * PAGE)], LONG).unwrap();
    assert_eq!(account.pinned(), 4);
    ioas.replace_table(vec![area(&file, 2 * PAGE, 4 * PAGE, 2 * PAGE)], LONG).unwrap();
    assert_eq!(account.pinned(), 4);
    let error = ioas.replace_table(vec![area(&other, 0, 3 * PAGE, 0)], LONG).unwrap_err();
    assert!(
        matches!(error, IoasError::Charge(refused) if refused.wanted == 3),
        "{error}: old and new are both held"
    );
    assert_eq!((account.pinned(), ioas.areas().len()), (4, 1));
    ioas.replace_table(vec![area(&other, 0, 2 * PAGE, 0)], LONG).unwrap();
    assert_eq!(account.pinned(), 2);
    access.close(LONG).unwrap();
    assert_eq!(account.pinned(), 0);
    ioas.replace_table(vec![area(&other, 0, 2 * PAGE, 0), area(&file, 2 * PAGE, PAGE, 0)], LONG).unwrap();
    access_attached_during_a_replacement_is_charged_what_comes(&ioas, &account, &file);
}

fn access_attached_during_a_replacement_is_charged_what_comes(
    ioas: &Ioas,
    account: &Account,
    file: &Arc<BackingFile>,
) {
    let pinner = pinning(ioas);
    pinner.pin_pages(Iova(2 * PAGE), PAGE, BOTH).unwrap();
    let change = ioas.begin_replace(vec![area(file, 0, 3 * PAGE, 4 * PAGE)], LONG).unwrap();
    assert_eq!(account.pinned(), 1);
    let late = Access::new(Arc::new(IgnoreUnmap));
    late.attach(ioas).unwrap();
    assert_eq!(account.pinned(), 6, "three that go and three that come");
    pinner.unpin_pages(Iova(2 * PAGE), PAGE).unwrap();
    change.wait().unwrap();
    assert_eq!(account.pinned(), 3);
    late.close(LONG).unwrap();
    assert_eq!(account.pinned(), 0);
}

#[test]
fn unmap_that_fails_keeps_its_charge_and_the_one_that_succeeds_releases_it() {
    let (ioas, account) = charged(4);
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    ioas.map(area(&memory(2), 0, 2 * PAGE, 0)).unwrap();
    let pin = access.lane().enter().pin(Iova(0), 8, BOTH).unwrap();
    assert_eq!(ioas.unmap(range(0, 2 * PAGE), SOON).unwrap_err().errno(), 35);
    assert_eq!(account.pinned(), 2);
    drop(pin);
    ioas.unmap(range(0, 2 * PAGE), LONG).unwrap();
    assert_eq!(account.pinned(), 0);
}

#[test]
fn change_of_process_moves_the_charge_and_nothing_else() {
    let ((one, from), (two, other)) = (charged(8), charged(8));
    let device = Arc::new(Recorder::default());
    let access = Access::new(device.clone());
    access.attach(&one).unwrap();
    let file = memory(4);
    one.map(area(&file, 0, 4 * PAGE, 0)).unwrap();
    two.copy_from(&one, Iova(PAGE), 2 * PAGE, Place::At(Iova(PAGE)), BOTH).unwrap();
    two.map(area(&memory(1), 0x10_0000, PAGE, 0)).unwrap();
    let second = pinning(&two);
    let pages = second.pin_pages(Iova(PAGE), 2 * PAGE, BOTH).unwrap();
    second.pin_pages(Iova(0x10_0000), PAGE, BOTH).unwrap();
    assert_eq!((from.pinned(), other.pinned()), (4, 1), "a copy is charged to its source");
    let mut lane = access.lane();
    let pin = lane.enter().pin(Iova(8), 8, BOTH).unwrap();
    let generation = lane.enter().generation();

    let to = Account::new(5 * PAGE);
    change_process(&[two.clone(), one.clone(), two.clone()], &to).unwrap();
    assert_eq!((from.pinned(), other.pinned(), to.pinned()), (0, 0, 5), "what is shared is counted once");
    change_process(&[one.clone(), two.clone()], &to).unwrap();
    assert_eq!(to.pinned(), 5, "the same account again");
    assert_eq!(lane.enter().generation(), generation, "no table was published");
    assert!(device.notified.lock().unwrap().is_empty(), "and no device told");
    assert_eq!((one.pins(), two.pins()), (1, 2));
    pages.with(|pin| pin.slices().for_each(|slice| slice.fill(5))).unwrap();
    assert_eq!(lane.enter().slice(Iova(PAGE), 1, BOTH).unwrap().read::<u8>(0), Some(5));
    assert_eq!(
        one.map(area(&file, 0x20_0000, PAGE, 0)).unwrap_err().errno(),
        12,
        "new areas are charged there too"
    );

    drop(pin);
    access.close(LONG).unwrap();
    assert_eq!(to.pinned(), 3);
    second.unpin_pages(Iova(PAGE), 2 * PAGE).unwrap();
    second.unpin_pages(Iova(0x10_0000), PAGE).unwrap();
    assert_eq!(to.pinned(), 0);
}

#[test]
fn change_of_process_that_is_refused_changes_nothing() {
    let (ioas, from) = charged(8);
    let device = Arc::new(Recorder::default());
    let access = Access::new(device.clone());
    access.attach(&ioas).unwrap();
    let file = memory(4);
    ioas.map(area(&file, 0, 4 * PAGE, 0)).unwrap();
    let to = Account::new(3 * PAGE);
    let refused = |to: &Account| {
        change_process(&[Ioas::new(ioas.windows().clone()), ioas.clone()], to).map_err(|e| e.errno())
    };
    assert_eq!(refused(&to), Err(12));
    let plenty = Account::unlimited();
    {
        let arriving = ioas.state().arrives();
        assert_eq!(refused(&plenty), Err(16), "a map is under way");
        drop(arriving);
    }
    let pin = access.lane().enter().pin(Iova(0), 8, BOTH).unwrap();
    let change = ioas.begin_unmap(range(0, 4 * PAGE), LONG).unwrap();
    assert_eq!(refused(&plenty), Err(16), "an area is leaving");
    drop(change);
    assert_eq!((from.pinned(), to.pinned(), plenty.pinned()), (4, 0, 0));
    drop(pin);
    ioas.unmap(IovaRange::FULL, LONG).unwrap();
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let pin = access.lane().enter().pin(Iova(0), 8, BOTH).unwrap();
    let change = ioas.begin_replace(vec![], LONG).unwrap();
    assert_eq!(refused(&plenty), Err(16), "the table is being replaced");
    drop(pin);
    change.wait().unwrap();
    assert_eq!(refused(&plenty), Ok(()), "no areas, nothing to refuse");
    access.close(LONG).unwrap();
    ioas.destroy().unwrap();
    assert_eq!(refused(&plenty), Err(2));
}

#[test]
fn gated_area_does_not_hinder_a_change_of_process() {
    let (ioas, from) = charged(8);
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    ioas.map(area(&memory(1), 0, PAGE, 0)).unwrap();
    let pin = access.lane().enter().pin(Iova(0), 8, BOTH).unwrap();
    ioas.unmap(range(0, PAGE), SOON).unwrap_err();
    let to = Account::unlimited();
    change_process(std::slice::from_ref(&ioas), &to).unwrap();
    assert_eq!((from.pinned(), to.pinned()), (0, 1));
    drop(pin);
}

#[test]
fn changes_of_process_beside_maps_pins_and_attachments_end_and_leave_no_charge() {
    let accounts = [(); 2].map(|()| Account::unlimited());
    let windows = Windows::new().unwrap();
    let spaces = [0, 1].map(|number| Ioas::charged_to(windows.clone(), &accounts[number]));
    let pinner = pinning(&spaces[0]);
    let file = memory(8);
    spaces[0].map(area(&file, 0, 4 * PAGE, 0)).unwrap();
    spaces[1].copy_from(&spaces[0], Iova(0), 4 * PAGE, Place::At(Iova(0)), BOTH).unwrap();
    std::thread::scope(|scope| {
        let (spaces, accounts, file, pinner) = (&spaces, &accounts, &file, &pinner);
        for turned in [false, true] {
            scope.spawn(move || {
                for round in 0..300 {
                    let mut named = spaces.to_vec();
                    if turned {
                        named.reverse();
                    }
                    match change_process(&named, &accounts[round % 2]) {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.errno(), 16),
                    }
                }
            });
        }
        scope.spawn(move || {
            for _ in 0..300 {
                spaces[1].map(area(file, 0x10_0000, PAGE, 5 * PAGE)).unwrap();
                spaces[1].unmap(range(0x10_0000, PAGE), LONG).unwrap();
            }
        });
        scope.spawn(move || {
            for _ in 0..300 {
                pinner.pin_pages(Iova(PAGE), 2 * PAGE, BOTH).unwrap();
                pinner.unpin_pages(Iova(PAGE), 2 * PAGE).unwrap();
            }
        });
        scope.spawn(move || {
            let access = Access::new(Arc::new(IgnoreUnmap));
            for round in 0..300 {
                access.attach(&spaces[round % 2]).unwrap();
                access.detach(LONG).unwrap();
            }
        });
    });
    assert_eq!(accounts.each_ref().map(Account::pinned), [0, 0]);
}
