//! The scenarios of the contract that concern accesses, by their numbers. Each ends with no pin out and every window
//! unmapped, and under a watchdog: a scenario that hangs ends the test process.

mod callbacks;
mod copies;
mod spaces;

use std::sync::mpsc::{Receiver, Sender, channel};

use super::{pages::Pager, *};

/// Ends the process if it is not dropped in time.
pub struct Watchdog {
    _over: Sender<()>,
}

pub fn watchdog(scenario: &'static str) -> Watchdog {
    let (over, waits): (Sender<()>, Receiver<()>) = channel();
    std::thread::spawn(move || {
        if waits.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{scenario} hangs");
            std::process::abort();
        }
    });
    Watchdog { _over: over }
}

/// Pages from 0, each an area of its own, of one file.
pub fn map_pages(ioas: &Ioas, pages: u64) -> Arc<BackingFile> {
    let file = memory(pages);
    for page in 0..pages {
        ioas.map(area(&file, page * PAGE, PAGE, page * PAGE)).unwrap();
    }
    file
}

/// What every scenario ends with.
pub fn all_is_released(s: Space, file: Arc<BackingFile>) {
    assert_eq!((s.access.pins(), s.ioas.pins()), (0, 0));
    s.access.close(LONG).unwrap();
    s.ioas.destroy().unwrap();
    assert_eq!(s.windows.live(), 0);
    assert_eq!(Arc::strong_count(&file), 1, "the file is closed with this reference");
}

pub fn errno<T>(result: Result<T, crate::AccessError>) -> i32 {
    result.map(drop).map_or_else(|error| error.errno(), |()| 0)
}
