//! The table against a plain map, and at its bounds.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn mac(station: u16) -> [u8; 6] {
    let [high, low] = station.to_be_bytes();
    [2, 0, 0, 0, high, low]
}

proptest! {
    #[test]
    fn stations_are_found_where_they_were_heard_last_until_they_are_forgotten(
        steps in prop::collection::vec((0u16..40, 0usize..MAX_PORTS, 0u64..40), 1..200),
    ) {
        let (table, mut model) = (Stations::new(), HashMap::new());
        let mut now = 5u64;
        for (station, port, pause) in steps {
            now += pause;
            table.sweep(now);
            table.learn(mac(station), port, now);
            model.insert(station, (port, now));
            for station in 0..40 {
                let alive = model.get(&station).filter(|(_, heard)| now - heard <= LIFETIME);
                prop_assert_eq!(table.find(mac(station), now), alive.map(|(port, _)| *port));
            }
        }
    }

    #[test]
    fn silence_of_any_length_makes_nobody_young(silence in LIFETIME + 1..10_000u64) {
        let table = Stations::new();
        table.learn(mac(1), 3, 7);
        table.sweep(7);
        table.sweep(7 + silence);
        prop_assert_eq!(table.find(mac(1), 7 + silence), None);
    }
}

#[test]
fn what_a_race_leaves_is_set_right_by_the_next_frame() {
    let table = Stations::new();
    let station = station(mac(1)).unwrap();
    // Two ports learned it at once, each in the place that it found free.
    for (way, port) in table.ways(station).zip([1, 2]) {
        way.store(entry(station, port, 1), Ordering::Relaxed);
    }
    table.learn(mac(1), 3, 2);
    assert_eq!(table.find(mac(1), 2), Some(3));
    let of_it = table.ways(station).filter(|way| station_of(way.load(Ordering::Relaxed)) == station).count();
    assert_eq!(of_it, 1);
    // Another port's older word came last.
    table.ways(station).for_each(|way| way.store(0, Ordering::Relaxed));
    table.ways(station).last().unwrap().store(entry(station, 1, 1), Ordering::Relaxed);
    table.learn(mac(1), 3, 2);
    assert_eq!(table.find(mac(1), 2), Some(3));
}

#[test]
fn groups_and_nobody_are_not_learned() {
    let table = Stations::new();
    for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        table.learn(mac, 1, 1);
        assert_eq!(table.find(mac, 1), None);
    }
}

#[test]
fn port_that_makes_addresses_up_drives_out_few_of_others() {
    let table = Stations::new();
    for station in 0..1000 {
        table.learn(mac(station), 1, 1);
    }
    let known = || (0..1000).filter(|&station| table.find(mac(station), 2) == Some(1)).count();
    let before = known();
    for station in 1000..=u16::MAX {
        table.learn(mac(station), 2, 2);
    }
    assert!(before > 950, "{before} of 1000 found place");
    assert!(known() > before * 9 / 10, "{} of {before} are left", known());
}

#[test]
fn port_that_is_gone_has_no_stations() {
    let table = Stations::new();
    table.learn(mac(1), 1, 1);
    table.learn(mac(2), 2, 1);
    table.clear(1);
    assert_eq!((table.find(mac(1), 1), table.find(mac(2), 1)), (None, Some(2)));
}
