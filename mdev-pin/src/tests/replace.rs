//! `replace_table`: bytes that stay never fail, bytes that go are drained.

use super::*;

#[test]
fn unchanged_bytes_never_fail_while_the_table_is_cut_and_joined() {
    let s = space();
    let file = memory(8);
    let whole = || vec![area(&file, 0, 8 * PAGE, 0)];
    let cut = || vec![area(&file, 0, 3 * PAGE, 0), area(&file, 3 * PAGE, 5 * PAGE, 3 * PAGE)];
    let with_hole = || vec![area(&file, 0, 2 * PAGE, 0), area(&file, 4 * PAGE, 4 * PAGE, 4 * PAGE)];
    s.ioas.replace_table(whole(), LONG).unwrap();
    let stop = AtomicUsize::new(0);
    let mapped = s.windows.mapped_total();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lane = s.access.lane();
            let mut sg = SgList::new();
            while stop.load(Ordering::SeqCst) == 0 {
                let burst = lane.enter();
                sg.clear();
                let mut sg = SgList::new();
                burst.sg(Iova(PAGE), PAGE as u32, Perm::WRITE, &mut sg).unwrap();
                assert!(burst.slice(Iova(5 * PAGE), 64, Perm::READ).is_ok());
                match burst.slice(Iova(3 * PAGE), 64, Perm::READ) {
                    Ok(_) | Err(ResolveError::Hole | ResolveError::Gated) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..300 {
            for table in [cut(), whole(), with_hole()] {
                s.ioas.replace_table(table, LONG).unwrap();
            }
        }
        stop.store(1, Ordering::SeqCst);
    });
    assert_eq!(s.windows.mapped_total(), mapped, "no window was mapped anew for memory that stayed");
}

#[test]
fn pin_on_staying_bytes_survives_a_cut_and_is_waited_for_when_they_go() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(4);
    s.ioas.replace_table(vec![area(&file, 0, 4 * PAGE, 0)], LONG).unwrap();
    let mut lane = s.access.lane();
    let pin = lane.enter().pin(Iova(PAGE), 8, Perm::WRITE).unwrap();
    let cut = || vec![area(&file, 0, 2 * PAGE, 0), area(&file, 2 * PAGE, 2 * PAGE, 2 * PAGE)];
    s.ioas.replace_table(cut(), SOON).unwrap();
    assert_eq!(
        s.ioas.unmap(range(0, 2 * PAGE), SOON).unwrap_err().errno(),
        35,
        "the pin moved with its bytes"
    );
    drop(pin);
    assert_eq!(s.ioas.unmap(range(0, 2 * PAGE), LONG).unwrap(), 2 * PAGE);
    assert_eq!(s.ioas.unmap(range(2 * PAGE, 2 * PAGE), LONG).unwrap(), 2 * PAGE);
}

#[test]
fn replacement_past_its_deadline_gates_what_could_not_go_and_can_be_repeated() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let (old, new) = (memory(4), memory(4));
    s.ioas
        .replace_table(vec![area(&old, 0, 2 * PAGE, 0), area(&old, 4 * PAGE, PAGE, 3 * PAGE)], LONG)
        .unwrap();
    let mut lane = s.access.lane();
    let pin = lane.enter().pin(Iova(0), 8, Perm::WRITE).unwrap();
    let wanted = || vec![area(&new, 0, 2 * PAGE, 0), area(&old, 4 * PAGE, PAGE, 3 * PAGE)];
    assert_eq!(s.ioas.replace_table(wanted(), SOON).unwrap_err().errno(), 35);
    {
        let burst = lane.enter();
        assert_eq!(burst.slice(Iova(0), 1, Perm::READ).unwrap_err(), ResolveError::Gated);
        assert!(burst.slice(Iova(4 * PAGE), 1, Perm::READ).is_ok());
    }
    assert_eq!(device.notified.lock().unwrap().as_slice(), [range(0, 2 * PAGE)], "only what goes");
    drop(pin);
    s.ioas.replace_table(wanted(), LONG).unwrap();
    assert!(lane.enter().slice(Iova(0), 1, Perm::READ).is_ok());
    assert_eq!(s.windows.live(), 2);
}

#[test]
fn same_memory_at_another_iova_moves_without_a_new_window() {
    let s = space();
    let file = memory(4);
    s.ioas.replace_table(vec![area(&file, 0, 2 * PAGE, 0)], LONG).unwrap();
    let mapped = s.windows.mapped_total();
    s.ioas.replace_table(vec![area(&file, 0x10_0000, 2 * PAGE, 0)], LONG).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    assert_eq!(burst.slice(Iova(0), 1, Perm::READ).unwrap_err(), ResolveError::Hole);
    assert!(burst.slice(Iova(0x10_0000), 1, Perm::READ).is_ok());
    assert_eq!(s.windows.mapped_total(), mapped);
}

#[test]
fn overlapping_table_is_refused_and_nothing_changes() {
    let s = space();
    let file = memory(4);
    s.ioas.replace_table(vec![area(&file, 0, PAGE, 0)], LONG).unwrap();
    let bad = vec![area(&file, 0, 2 * PAGE, 0), area(&file, PAGE, PAGE, 0)];
    assert_eq!(s.ioas.replace_table(bad, LONG).unwrap_err().errno(), 17);
    let beyond = vec![area(&file, 0, 8 * PAGE, 0)];
    assert_eq!(s.ioas.replace_table(beyond, LONG).unwrap_err().errno(), 22, "longer than its file");
    assert_eq!(s.ioas.areas().len(), 1);
    assert!(s.access.lane().enter().slice(Iova(0), 1, Perm::READ).is_ok());
    s.ioas.replace_table(vec![], LONG).unwrap();
    assert_eq!(s.windows.live(), 0);
}
