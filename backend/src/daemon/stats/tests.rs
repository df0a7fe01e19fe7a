use super::*;
use crate::device::net::{NetConfig, NetDevice};
use crate::link::LinkKind;

const NAMES: QueueNames = crate::device::net::QUEUE_NAMES;

fn device() -> NetDevice {
    let config =
        NetConfig { name: "net0".to_owned(), queue_pairs: 2, mac: None, mtu: None, link: LinkKind::Null };
    NetDevice::new(config).unwrap()
}

#[test]
fn the_table_is_aligned_and_names_only_causes_that_occurred() {
    let device = device();
    let queue = device.queue_stats(1).unwrap();
    queue.add_burst(1_234_567, 89_000_000, 10);
    queue.add_drops(DropCause::Short, 12);
    queue.add_kicks(3);
    let text = table(&device, NAMES);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(lines[0], "net0:");
    let head: Vec<&str> = lines[1].split_whitespace().collect();
    let causes = ["queue", "packets", "bytes", "drops", "short"];
    assert_eq!(head[..5], causes);
    assert_eq!(head[5..], ["starts", "parks", "kicks", "calls", "errors", "polls", "busy-ns"]);
    let row: Vec<&str> = lines[3].split_whitespace().collect();
    assert_eq!(row[..11], ["1", "transmit", "1234567", "89000000", "12", "12", "0", "0", "3", "0", "0"]);
    assert_eq!(row[11], "1", "a poll that found work");
    assert!(row[12].parse::<u64>().is_ok(), "{text}");
    assert!(lines[1..].iter().all(|line| line.len() == lines[1].len()), "{text}");
}

#[test]
fn the_memory_has_a_line_of_its_own() {
    let text = memory(MemoryLine { windows: 4, mapped: 9, poisoned: 1, revoked: 2, faults: 30 });
    assert_eq!(text, "  memory: 4 windows, 9 mapped, 1 poisoned, 2 revoked, 30 faults\n");
}

#[test]
fn the_iotlb_has_a_line_once_there_was_one() {
    assert_eq!(iotlb(IotlbLine::default()), "");
    let text = iotlb(IotlbLine { entries: 5, misses: 6, updates: 7, invalidations: 8, evictions: 9 });
    assert_eq!(text, "  iotlb: 5 entries, 6 misses, 7 updates, 8 invalidations, 9 evictions\n");
}

#[test]
fn rates_are_those_of_the_time_since_the_last_line() {
    let device = device();
    let start = Instant::now();
    let (sender, receiver) = (device.queue_stats(3).unwrap(), device.queue_stats(0).unwrap());
    sender.add_burst(1000, 1000, 1);
    let mut rates = Rates::new(&device, NAMES, start);
    sender.add_burst(3_000_000, 192_000_000, 1);
    sender.add_drops(DropCause::Short, 20);
    receiver.add_burst(2, 128, 1);
    let line = rates.line(&device, NAMES, start + Duration::from_secs(2));
    assert_eq!(
        line,
        "net0: receive 1.00 pps 512.00 bit/s, transmit 1.50 Mpps 768.00 Mbit/s (10.00 pps dropped)"
    );
    let line = rates.line(&device, NAMES, start + Duration::from_secs(3));
    assert_eq!(line, "net0: receive 0.00 pps 0.00 bit/s, transmit 0.00 pps 0.00 bit/s");
}
