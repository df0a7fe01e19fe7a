//! `Access::replace`: from one space to another, or not at all.

use super::{pages::Pager, *};
use crate::Rw;

struct Two {
    one: Space,
    other: Ioas,
    device: Arc<Pager>,
}

/// An access that pins, attached to the first of two spaces that map the same page.
fn two() -> Two {
    let device = Arc::new(Pager::default());
    let one = pinning_space(device.clone());
    let other = Ioas::new(one.windows.clone());
    for (ioas, byte) in [(&one.ioas, 1), (&other, 2)] {
        let file = memory(1);
        rustix::io::pwrite(file.as_fd(), &[byte], 0).unwrap();
        ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    }
    Two { one, other, device }
}

impl Two {
    fn byte(&self) -> Result<u8, i32> {
        let mut seen = [0];
        let done = self.one.access.rw(Iova(0), Rw::Read(&mut seen));
        done.map(|()| seen[0]).map_err(|error| error.errno())
    }
}

#[test]
fn replace_needs_an_attachment_and_does_nothing_on_the_same_space() {
    let t = two();
    let fresh = Access::new(Arc::new(IgnoreUnmap));
    assert_eq!(fresh.replace(&t.other, LONG).unwrap_err().errno(), 2);
    t.device.pin(&t.one.access, range(0, PAGE), Perm::READ).unwrap();
    t.one.access.replace(&t.one.ioas, LONG).unwrap();
    assert_eq!((t.one.access.pins(), t.device.notified.lock().unwrap().len()), (1, 0));
    t.one.access.close(LONG).unwrap();
    assert_eq!(t.one.access.replace(&t.other, LONG).unwrap_err().errno(), 2);
}

#[test]
fn replacement_past_its_deadline_leaves_the_access_where_it_was() {
    let t = two();
    t.device.stubborn.store(1, Ordering::SeqCst);
    t.device.pin(&t.one.access, range(0, PAGE), Perm::READ).unwrap();
    assert_eq!(t.one.access.replace(&t.other, SOON).unwrap_err().errno(), 35);
    assert_eq!((t.byte(), t.one.access.pins(), t.one.ioas.pins()), (Ok(1), 1, 1));
    t.other.destroy().unwrap();
    t.device.stubborn.store(0, Ordering::SeqCst);
    assert_eq!(t.one.ioas.unmap(IovaRange::FULL, LONG).unwrap(), PAGE);
}

#[test]
fn replacement_that_is_given_up_leaves_the_access_where_it_was() {
    let t = two();
    t.device.stubborn.store(1, Ordering::SeqCst);
    t.device.pin(&t.one.access, range(0, PAGE), Perm::READ).unwrap();
    let change = t.one.access.begin_replace(&t.other, LONG).unwrap().unwrap();
    assert_eq!(t.byte(), Err(2), "neither here nor there");
    assert_eq!(t.other.unmap(IovaRange::FULL, LONG).unwrap(), PAGE, "pins on the old space do not count");
    drop(change);
    assert_eq!(t.byte(), Ok(1));
}

#[test]
fn access_that_a_detach_left_closed_is_open_again_after_replace_by_its_own_space() {
    let t = two();
    t.device.stubborn.store(1, Ordering::SeqCst);
    t.device.pin(&t.one.access, range(0, PAGE), Perm::READ).unwrap();
    assert_eq!(t.one.access.detach(SOON).unwrap_err().errno(), 35);
    assert_eq!(t.byte(), Err(2));
    t.one.access.replace(&t.one.ioas, LONG).unwrap();
    assert_eq!(t.byte(), Ok(1));
}

#[test]
fn access_dropped_during_a_replacement_ends_attached_to_nothing() {
    let Two { one: Space { windows, ioas, access }, other, device } = two();
    let mut lane = access.lane();
    let burst = lane.enter();
    // From another thread: this one is inside the burst that the replacement waits for.
    let begin = || access.begin_replace(&other, LONG).unwrap().unwrap();
    let change = std::thread::scope(|scope| scope.spawn(begin).join().unwrap());
    drop(access);
    drop(burst);
    change.wait().unwrap();
    drop(lane);
    ioas.destroy().unwrap();
    other.destroy().unwrap();
    assert_eq!((windows.live(), device.notified.lock().unwrap().len()), (0, 1));
}
