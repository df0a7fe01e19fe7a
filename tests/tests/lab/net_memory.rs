//! Memory of a guest that is not as usual: modules that come and go under traffic, and huge pages of 1 GiB.

use mdev_tests::lab::{HugePages, Lab, Mdevd, Skip, Trial, rounds};
use serde_json::json;

use super::net_guest::{self, exchange, works};
use super::scenarios::plug;
use super::traffic::{House, flows, guest};

const GIB: u64 = 1 << 30;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_memory_plugged_and_unplugged_under_traffic_holds_no_queue", modules).in_rounds(),
        Trial::new("net_memory_in_pages_of_1_gib_is_mapped_and_used_as_such", gigantic).where_possible(),
    ]
}

/// The queues' memory is there all the time: they are neither stopped nor held, nothing is dropped, and no window but the module's comes
/// and goes.
fn modules(lab: &Lab) -> Result<(), Skip> {
    let mut house = House::new(lab, 1, &[])?;
    let mut guest = guest(lab, "guest", 1).start();
    let stream = house.begin(&mut guest);
    let (before, memory) = house.clean();
    stream.gap();
    for round in 1..=rounds() {
        plug(&mut guest);
        flows(&stream);
        let (_, plugged) = house.clean();
        assert_eq!(plugged.get("windows"), memory.get("windows") + 1, "{plugged:?}");
        guest.qmp().execute("device_del", json!({ "id": "dimm0" }));
        guest.qmp().event("DEVICE_DELETED", |event| event["data"]["device"] == "dimm0");
        guest.qmp().execute("object-del", json!({ "id": "more" }));
        flows(&stream);
        let (queues, now) = house.clean();
        assert_eq!(now.get("windows"), memory.get("windows"), "{now:?}");
        assert_eq!(now.get("mapped"), memory.get("mapped") + u64::from(round), "{now:?}");
        for (queue, before) in queues.iter().zip(&before) {
            assert_eq!(queue.get("starts"), before.get("starts"), "a queue was stopped");
            assert!(queue.packets() > before.packets(), "{before:?}, then {queue:?}");
        }
        println!("module {round}: {:.1?} without traffic", stream.gap());
    }
    house.end(stream, guest);
    Ok(())
}

fn gigantic(lab: &Lab) -> Result<(), Skip> {
    let _pages = HugePages::reserve_of(GIB, GIB)?;
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback", "--prefault"]);
    let mut guest = net_guest::guest(lab, "guest", 1).in_gigantic_pages().start();
    works(&mut guest, 2000);
    assert_eq!(mdevd.mapped_page_sizes(), [GIB].into());
    guest.system_reset();
    works(&mut guest, 500);
    exchange(&mut guest, 500);
    let (queues, memory) = mdevd.counters_and_memory();
    assert!(queues.iter().all(|queue| queue.get("errors") == 0 && queue.packets() >= 3000), "{queues:?}");
    assert_eq!((memory.get("windows"), memory.get("mapped"), memory.get("faults")), (1, 1, 0));
    guest.quit();
    mdevd.terminate();
    Ok(())
}
