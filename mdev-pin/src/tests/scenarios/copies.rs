//! 14: a long copy against an unmap.

use super::*;
use crate::Rw;

const PAGES: u64 = 256;

#[test]
fn scenario_14_unmap_waits_for_a_copy_and_the_copy_is_whole_or_an_error() {
    let _watchdog = watchdog("scenario 14");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = memory(PAGES);
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for byte in [1u8, 2] {
            let (s, stop) = (&s, &stop);
            scope.spawn(move || {
                let mut buffer = vec![byte; (PAGES * PAGE) as usize];
                while stop.load(Ordering::SeqCst) == 0 {
                    let wrote = errno(s.access.rw(Iova(0), Rw::Write(&buffer)));
                    buffer.fill(0);
                    let read = errno(s.access.rw(Iova(0), Rw::Read(&mut buffer)));
                    // One area, one copy: the copies of an access are one after another.
                    let whole = buffer.iter().all(|seen| *seen == buffer[0]);
                    assert!(
                        whole && [0, 2, 22].contains(&wrote) && [0, 2, 22].contains(&read),
                        "{wrote} {read}"
                    );
                    assert!(read == 0 || buffer[0] == 0, "an error comes with no part of the memory");
                    buffer.fill(byte);
                }
            });
        }
        for _ in 0..100 {
            s.ioas.map(area(&file, 0, PAGES * PAGE, 0)).unwrap();
            std::thread::yield_now();
            assert_eq!(s.ioas.unmap(range(0, PAGES * PAGE), LONG).unwrap(), PAGES * PAGE);
            assert_eq!(s.windows.live(), 0, "no copy is under way");
        }
        stop.store(1, Ordering::SeqCst);
    });
    assert_eq!(s.access.pins(), 0);
    all_is_released(s, file);
}
