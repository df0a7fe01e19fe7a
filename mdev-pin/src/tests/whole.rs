//! Stretches that are kept in one piece.

use std::sync::mpsc;

use mdev_dma::GuestSlice;
use proptest::prelude::*;

use super::*;
use crate::{KeptSlice, Lane, MAX_STITCHED, Stretch, Within};

const RW: Perm = Perm::from_bits_retain(Perm::READ.bits() | Perm::WRITE.bits());

fn stretch(first: u64, len: u64) -> Stretch {
    Stretch::At(range(first, len))
}

/// A file whose pages are filled with their numbers, counted from 1.
fn numbered(pages: u64) -> Arc<BackingFile> {
    let file = memory(pages);
    for page in 0..pages {
        rustix::io::pwrite(file.as_fd(), &[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
    }
    file
}

/// Pages of a file at consecutive addresses from 0 on.
fn scatter(s: &Space, file: &Arc<BackingFile>, pages: &[u64]) {
    for (at, page) in (0..).zip(pages) {
        s.ioas.map(area(file, at * PAGE, PAGE, page * PAGE)).unwrap();
    }
}

/// The first byte of each page of a stretch that begins with one.
fn firsts(lane: &mut crate::Lane, first: u64, len: u64, perm: Perm) -> Result<Vec<u8>, ResolveError> {
    let burst = lane.enter();
    let (slice, kept) = burst.slice_to_keep(Iova(first), len as u32, perm)?;
    let same = burst.recall(&kept).expect("it was resolved in this burst");
    assert_eq!(same.as_io_vec_parts(), slice.as_io_vec_parts());
    Ok((0..slice.len()).step_by(PAGE as usize).map(|at| slice.read(at).unwrap()).collect())
}

#[test]
fn scattered_pages_are_one_slice_where_that_is_wanted_and_nowhere_else() {
    let s = space();
    let file = numbered(8);
    scatter(&s, &file, &[5, 2, 7, 0]);
    let mut lane = s.access.lane();
    assert_eq!(firsts(&mut lane, 0, 4 * PAGE, Perm::READ), Err(ResolveError::Split));
    s.ioas.keep_whole([stretch(0, 4 * PAGE), stretch(PAGE, PAGE)]);
    assert_eq!(firsts(&mut lane, 0, 4 * PAGE, RW).unwrap(), [6, 3, 8, 1]);
    assert_eq!(firsts(&mut lane, 0, 2 * PAGE, Perm::READ), Err(ResolveError::Split), "that is another one");
    assert_eq!(s.windows.live(), 2);
    let burst = lane.enter();
    let (slice, _) = burst.slice_to_keep(Iova(0), 4 * PAGE as u32, Perm::WRITE).unwrap();
    slice.write(PAGE as usize - 2, 0xaabb_ccdd_u32).unwrap();
    let mut seen = [0; 2];
    rustix::io::pread(file.as_fd(), &mut seen, 6 * PAGE - 2).unwrap();
    assert_eq!(seen, [0xdd, 0xcc]);
    drop(burst);
    s.ioas.keep_whole([]);
    assert_eq!(firsts(&mut lane, 0, 4 * PAGE, Perm::READ), Err(ResolveError::Split));
    assert!(s.ioas.quiet() && s.windows.live() == 1, "it went with the wish");
}

#[test]
fn stretch_comes_with_its_last_page_and_goes_with_any() {
    let s = space();
    let file = numbered(8);
    s.ioas.keep_whole([stretch(0, 3 * PAGE)]);
    scatter(&s, &file, &[4, 1]);
    let mut lane = s.access.lane();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ), Err(ResolveError::Hole));
    let mut last = area(&file, 2 * PAGE, PAGE, 6 * PAGE);
    last.perm = Perm::READ;
    s.ioas.map(last).unwrap();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ).unwrap(), [5, 2, 7]);
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, RW), Err(ResolveError::Permission));
    s.ioas.unmap(range(PAGE, PAGE), LONG).unwrap();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ), Err(ResolveError::Hole));
    assert!(s.ioas.quiet());
    // One window to write through, one to read only, and no stitch.
    assert_eq!(s.windows.live(), 2);
    s.ioas.map(area(&file, PAGE, PAGE, 3 * PAGE)).unwrap();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ).unwrap(), [5, 4, 7]);
}

#[test]
fn what_does_not_change_is_not_stitched_again() {
    let s = space();
    let file = numbered(8);
    scatter(&s, &file, &[5, 2, 7, 0]);
    s.ioas.keep_whole([stretch(0, 3 * PAGE)]);
    let (mut lane, stitched) = (s.access.lane(), s.windows.mapped_total());
    for _ in 0..10 {
        s.ioas.unmap(range(3 * PAGE, PAGE), LONG).unwrap();
        s.ioas.map(area(&file, 3 * PAGE, PAGE, 0)).unwrap();
        assert_eq!(firsts(&mut lane, 0, 3 * PAGE, RW).unwrap(), [6, 3, 8]);
    }
    assert_eq!(s.windows.mapped_total(), stitched);
}

#[test]
fn unmap_of_a_page_waits_for_the_burst_that_sees_the_stretch() {
    let s = space();
    scatter(&s, &numbered(4), &[2, 0, 3]);
    s.ioas.keep_whole([stretch(0, 3 * PAGE)]);
    let mut change = None;
    let unmap = || {
        let mut begun = s.ioas.begin_unmap(range(PAGE, PAGE), LONG).unwrap();
        assert!(begun.poll().is_none(), "a burst is open");
        change = Some(begun);
    };
    beside_a_burst(s.access.lane(), Perm::READ, unmap, |slice| {
        assert_eq!(slice.read(PAGE as usize), Some(1_u8), "its memory is there until it leaves");
    });
    assert_eq!(change.unwrap().wait().unwrap(), PAGE);
    assert!(s.ioas.quiet() && s.windows.live() == 1);
}

/// A thread enters a burst and resolves the first three pages; `meanwhile` happens; then that thread looks at what it has.
fn beside_a_burst(
    mut lane: Lane,
    perm: Perm,
    meanwhile: impl FnOnce(),
    look: impl FnOnce(GuestSlice<'_>) + Send,
) {
    std::thread::scope(|scope| {
        let (inside, entered) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        scope.spawn(move || {
            let burst = lane.enter();
            let (slice, _) = burst.slice_to_keep(Iova(0), 3 * PAGE as u32, perm).unwrap();
            inside.send(()).unwrap();
            left.recv().unwrap();
            look(slice);
        });
        entered.recv().unwrap();
        meanwhile();
        leave.send(()).unwrap();
    });
}

/// Lets go of everything at once, whatever the kernel does.
struct Obliging;

impl AccessOps for Obliging {
    fn on_unmap(&self, _: IovaRange) {}

    fn cancel(&self, _: IovaRange) -> bool {
        true
    }
}

#[test]
fn page_that_is_revoked_is_taken_from_a_burst_that_sees_the_stretch() {
    let s = space_with(Arc::new(Obliging));
    let file = numbered(4);
    scatter(&s, &file, &[2, 0, 3]);
    s.ioas.keep_whole([stretch(0, 3 * PAGE)]);
    let revoke = || {
        let change = s.ioas.begin_invalidate(&[range(PAGE, 1)], Within::or_revoke(SOON)).unwrap();
        assert_eq!(change.wait().unwrap(), PAGE);
    };
    beside_a_burst(s.access.lane(), Perm::WRITE, revoke, |slice| {
        let seen = [0, 1, 2].map(|page| slice.read::<u8>(page * PAGE as usize).unwrap());
        assert_eq!(seen, [3, 0, 4]);
        slice.write(PAGE as usize, 0xee_u8).unwrap();
    });
    let mut byte = [0];
    rustix::io::pread(file.as_fd(), &mut byte, 0).unwrap();
    assert_eq!(byte, [1], "a late burst reaches the file no more");
}

#[test]
fn lost_page_is_noticed_by_the_burst_and_heals_when_it_is_mapped_anew() {
    let s = space();
    let file = numbered(8);
    scatter(&s, &file, &[1, 7, 0]);
    s.ioas.keep_whole([stretch(0, 3 * PAGE)]);
    let mut lane = s.access.lane();
    let kept: KeptSlice = {
        let burst = lane.enter();
        let (_, kept) = burst.slice_to_keep(Iova(0), 3 * PAGE as u32, Perm::READ).unwrap();
        kept
    };
    ftruncate(file.as_fd(), 4 * PAGE).unwrap();
    let burst = lane.enter();
    let slice = burst.recall(&kept).expect("nothing was touched yet");
    assert!(!burst.poisoned());
    assert_eq!(slice.read(PAGE as usize), Some(0_u8));
    assert!(burst.poisoned(), "what was read means nothing");
    drop(burst);
    assert!(lane.enter().recall(&kept).is_none());
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ), Err(ResolveError::Poisoned));
    ftruncate(file.as_fd(), 8 * PAGE).unwrap();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ), Err(ResolveError::Poisoned), "it stays so");
    s.ioas.unmap(range(PAGE, PAGE), LONG).unwrap();
    s.ioas.map(area(&file, PAGE, PAGE, 7 * PAGE)).unwrap();
    assert_eq!(firsts(&mut lane, 0, 3 * PAGE, Perm::READ).unwrap(), [2, 0, 1]);
}

#[test]
fn bytes_of_a_file_on_both_sides_of_a_window_are_one_slice() {
    let s = space();
    let file = memory(mdev_dma::CHUNK / PAGE + 4);
    s.ioas.map(area(&file, 0, mdev_dma::CHUNK + 4 * PAGE, 0)).unwrap();
    let at = FileExtent { file, offset: mdev_dma::CHUNK - 2 * PAGE + 64 };
    let mut lane = s.access.lane();
    let split = lane.enter().extent(&at, 4 * PAGE, RW).map(|slice| slice.len());
    assert_eq!(split, Err(ResolveError::Split));
    s.ioas.keep_whole([Stretch::In(at.clone(), 4 * PAGE)]);
    let burst = lane.enter();
    let slice = burst.extent(&at, 4 * PAGE, RW).unwrap();
    slice.fill(0x77);
    let kept = burst.keep(slice);
    assert_eq!(burst.recall(&kept).map(|slice| slice.len()), Some(4 * PAGE as usize));
    let seen = burst.slice(Iova(mdev_dma::CHUNK - 1), 1, Perm::READ).unwrap().read(0);
    assert_eq!(seen, Some(0x77_u8));
    let beyond = burst.slice(Iova(mdev_dma::CHUNK + 2 * PAGE + 63), 2, Perm::READ).unwrap().read(0);
    assert_eq!(beyond, Some([0x77_u8, 0]));
}

#[test]
fn more_than_a_space_may_stitch_stays_in_pieces() {
    let s = space();
    let file = numbered(2);
    // Every second page is the same one, so that no two follow each other.
    scatter(&s, &file, &[0, 1, 1, 0].repeat(300));
    let stretches = (0..100).map(|number| stretch(number * 12 * PAGE + 8, 12 * PAGE - 16));
    s.ioas.keep_whole(stretches);
    let mut lane = s.access.lane();
    let whole = (0..100).filter(|number| {
        let at = number * 12 * PAGE + 8;
        lane.enter().slice_to_keep(Iova(at), 12 * PAGE as u32 - 16, RW).is_ok()
    });
    let whole = whole.count();
    assert!(whole > 50 && whole * 9 <= MAX_STITCHED, "{whole} stretches");
}

proptest! {
    /// Against a list of what is mapped: a stretch that is wanted and all there is one slice of its pages, whatever came before.
    #[test]
    fn wanted_stretches_show_what_is_mapped(
        wanted in prop::collection::vec((0..12u64, 1..6u64), 0..4),
        steps in prop::collection::vec((0..12u64, prop::option::of(0..16u64)), 1..60),
    ) {
        let s = space();
        let file = numbered(16);
        s.ioas.keep_whole(wanted.iter().map(|(first, pages)| stretch(first * PAGE, pages * PAGE)));
        let mut lane = s.access.lane();
        let mut model = [None; 20];
        for (at, page) in steps {
            s.ioas.begin_invalidate(&[range(at * PAGE, PAGE)], LONG).unwrap().wait().unwrap();
            if let Some(page) = page {
                s.ioas.map(area(&file, at * PAGE, PAGE, page * PAGE)).unwrap();
            }
            model[at as usize] = page;
            for (first, pages) in &wanted {
                let expected: Option<Vec<u8>> = (*first..first + pages)
                    .map(|at| model[at as usize].map(|page| page as u8 + 1)).collect();
                let seen = firsts(&mut lane, first * PAGE, pages * PAGE, RW);
                prop_assert_eq!(seen, expected.ok_or(ResolveError::Hole));
            }
        }
        s.ioas.keep_whole([]);
        s.ioas.unmap_all(LONG).unwrap();
        prop_assert!(s.ioas.quiet());
        prop_assert_eq!(s.windows.live(), 0);
    }
}
