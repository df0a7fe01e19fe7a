//! Rings of every legal shape, and of random illegal ones, against the naive reading.

use proptest::prelude::*;

use super::guest::{BASE, Guest, INDIRECT, NEXT, Ring, WRITE, descriptor};
use super::naive::{self, Flat};
use crate::ring::{Buffer, Ring as Device, RingError, RingSetup};

const MEMORY: u64 = 1 << 18;
/// Each descriptor of the ring may have an indirect table of its own, sixteen descriptors long.
const TABLES: u64 = 0x8000;
const TABLE: u64 = 16 * 16;
const DATA: u64 = 0x2_0000;

/// The shape of a chain: buffers in the ring, buffers in an indirect table behind them, how many of all are writable.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) direct: u16,
    pub(super) indirect: u16,
    pub(super) writable: u16,
}

pub(super) fn shape() -> impl Strategy<Value = Shape> {
    (0u16..4, 0u16..6, 0u16..8).prop_map(|(direct, indirect, writable)| Shape {
        direct: if direct + indirect == 0 { 1 } else { direct },
        indirect,
        writable,
    })
}

/// A driver with a list of free descriptors that are not in order.
pub(super) struct Driver {
    pub(super) ring: Ring,
    free: Vec<u16>,
    held: std::collections::BTreeMap<u16, Vec<u16>>,
}

impl Driver {
    pub(super) fn new(ring: Ring) -> Self {
        // An odd stride visits every descriptor of a power of two.
        let free = (0..ring.size).map(|n| n.wrapping_mul(5) % ring.size).collect();
        Self { ring, free, held: Default::default() }
    }

    /// Makes a chain available if there are descriptors for it. Published later.
    pub(super) fn offer(&mut self, guest: &Guest, shape: &Shape, serial: &mut u32) {
        let wanted = usize::from(shape.direct + u16::from(shape.indirect != 0));
        if self.free.len() < wanted || usize::from(self.ring.size) <= self.held.len() {
            return;
        }
        let mine = self.free.split_off(self.free.len() - wanted);
        let total = shape.direct + shape.indirect;
        let mut buffer = |place: u16, next: u16, last: bool| {
            *serial += 1;
            let write = if place + shape.writable >= total { WRITE } else { 0 };
            let more = if last { 0 } else { NEXT };
            // Lengths and addresses are anything at all: the ring does not look at the memory behind them.
            descriptor(BASE + DATA + u64::from(*serial), 1 + *serial % 4000, write | more, next)
        };
        for (place, index) in mine.iter().enumerate() {
            let next = mine.get(place + 1).copied();
            let bytes = if place < usize::from(shape.direct) {
                buffer(place as u16, next.unwrap_or(0xdead), next.is_none())
            } else {
                let at = TABLES + TABLE * u64::from(*index);
                for entry in 0..shape.indirect {
                    let last = entry + 1 == shape.indirect;
                    let bytes = buffer(shape.direct + entry, entry + 1, last);
                    guest.write(at + 16 * u64::from(entry), &bytes);
                }
                descriptor(BASE + at, 16 * u32::from(shape.indirect), INDIRECT, 0xdead)
            };
            guest.write(self.ring.desc + 16 * u64::from(*index), &bytes);
        }
        self.ring.offer(guest, mine[0]);
        self.held.insert(mine[0], mine);
    }

    /// Takes back what the device used since index `seen`.
    fn reclaim(&mut self, guest: &Guest, seen: &mut u16) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while *seen != self.ring.used_index(guest) {
            let entry = self.ring.used(guest, *seen);
            let descriptors =
                self.held.remove(&(entry.0 as u16)).expect("a used entry names a chain that is held");
            self.free.splice(0..0, descriptors);
            used.push(entry);
            *seen = seen.wrapping_add(1);
        }
        used
    }
}

pub(super) fn flat(buffers: &[Buffer]) -> Vec<(u64, u32)> {
    buffers.iter().map(|buffer| (buffer.iova.0, buffer.len)).collect()
}

/// One poll: takes up to `max`, remembers them in `pending`, completes what `choose` picks, publishes.
pub(super) fn poll(
    guest: &Guest,
    device: &mut Device,
    max: usize,
    pending: &mut Vec<Flat>,
    choose: &mut dyn FnMut(usize) -> usize,
) -> Result<Vec<(u32, u32)>, RingError> {
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst)?;
    vring.take(max, |chain| {
        let (readable, writable) = (flat(chain.readable), flat(chain.writable));
        pending.push(Flat { head: chain.head, readable, writable });
        Ok(())
    })?;
    let mut completed = Vec::new();
    for _ in 0..choose(pending.len() + 1) {
        let chain = pending.remove(choose(pending.len()));
        let len = chain.writable.iter().map(|buffer| buffer.1).sum();
        vring.complete(chain.head, len)?;
        completed.push((u32::from(chain.head), len));
    }
    vring.publish()?;
    Ok(completed)
}

#[derive(Clone, Debug)]
enum Step {
    Offer(Vec<Shape>),
    Poll { max: usize, picks: Vec<prop::sample::Index> },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(shape(), 1..6).prop_map(Step::Offer),
        3 => (1usize..40, prop::collection::vec(any::<prop::sample::Index>(), 1..12))
            .prop_map(|(max, picks)| Step::Poll { max, picks }),
        1 => Just(Step::Restart),
    ]
}

fn start() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0u16), 65500u16..=65535, any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever a correct driver does, the device sees the chains that the naive reading sees, in order, and the driver sees
    /// exactly what the device completed, in the order in which it did.
    #[test]
    fn ring_and_naive_reading_agree(
        size_log in 0u32..7,
        start in start(),
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let guest = Guest::new(MEMORY);
        let ring = Ring::new(&guest, 0, 1 << size_log, start);
        let mut driver = Driver::new(ring);
        let setup = RingSetup { event_idx, ..ring.setup(&guest) };
        let mut device = Device::new(setup.clone()).unwrap();
        let (mut serial, mut seen, mut pending) = (0, start, Vec::new());
        for step in steps {
            match step {
                Step::Offer(shapes) => {
                    shapes.iter().for_each(|shape| driver.offer(&guest, shape, &mut serial));
                    driver.ring.publish(&guest);
                }
                Step::Poll { max, picks } => {
                    let next = device.state().next_avail;
                    let waiting = naive::waiting(&guest, &driver.ring, next, true).unwrap();
                    let expected: Vec<Flat> = waiting.into_iter().take(max).map(Option::unwrap).collect();
                    let held = pending.len();
                    let mut picks = picks.iter().cycle();
                    let mut taken = Vec::new();
                    let completed = poll(&guest, &mut device, max, &mut pending, &mut |count| {
                        if taken.is_empty() { taken.push(count - 1 - held); }
                        picks.next().unwrap().index(count)
                    });
                    let completed = completed.unwrap();
                    prop_assert_eq!(taken[0], expected.len());
                    prop_assert_eq!(device.state().next_avail, next.wrapping_add(expected.len() as u16));
                    for chain in &pending {
                        let still_there = naive::chain(&guest, &driver.ring, chain.head, true);
                        prop_assert_eq!(still_there.as_ref(), Some(chain));
                    }
                    prop_assert_eq!(driver.reclaim(&guest, &mut seen), completed);
                }
                // Stopped and started where it was, as a new front-end does; only when nothing is held back.
                Step::Restart if pending.is_empty() => {
                    let state = device.state();
                    device = Device::new(RingSetup { state, ..setup.clone() }).unwrap();
                }
                Step::Restart => {}
            }
        }
    }

    /// A ring in which words were overwritten at random: what the naive reading refuses, the device refuses by name,
    /// and what it accepts, the device takes as it is.
    #[test]
    fn damaged_rings_are_refused_where_the_naive_reading_refuses(
        shapes in prop::collection::vec(shape(), 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), damaged_word()), 1..6),
        indirect in prop::bool::weighted(0.9),
    ) {
        let guest = Guest::new(MEMORY);
        let ring = Ring::new(&guest, 0, 16, 65530);
        let mut driver = Driver::new(ring);
        let mut serial = 0;
        shapes.iter().for_each(|shape| driver.offer(&guest, shape, &mut serial));
        driver.ring.publish(&guest);
        // The ring and the tables of its first descriptors.
        let words: Vec<u64> = (0..ring.used).step_by(2).chain((TABLES..TABLES + 4 * TABLE).step_by(2)).collect();
        for (place, value) in damage {
            guest.set_word(*place.get(&words), value);
        }
        let mut device = Device::new(RingSetup { indirect, ..ring.setup(&guest) }).unwrap();
        let mut lane = guest.lane();
        let burst = lane.enter();
        let mut vring = device.begin(&burst).unwrap();
        let Some(expected) = naive::waiting(&guest, &driver.ring, ring.next, indirect) else {
            prop_assert!(matches!(vring.pending(), Err(RingError::AvailJump { .. })), "an index that jumps");
            return Ok(());
        };
        let mut taken = Vec::new();
        for wanted in expected {
            let outcome = vring.take(1, |chain| {
                let (readable, writable) = (flat(chain.readable), flat(chain.writable));
                taken.push(Flat { head: chain.head, readable, writable });
                Ok(())
            });
            match wanted {
                Some(wanted) => {
                    prop_assert_eq!(outcome, Ok(1));
                    prop_assert_eq!(taken.last(), Some(&wanted));
                }
                None => {
                    prop_assert!(outcome.is_err());
                    break;
                }
            }
        }
    }

    /// Bytes without any sense: an error or chains, and the device lives.
    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 512..2048), size_log in 0u32..6) {
        let guest = Guest::new(MEMORY);
        let ring = Ring::new(&guest, 0, 1 << size_log, 0);
        guest.write(0, &bytes);
        guest.set_word(ring.avail + 2, ring.size);
        let mut device = ring.device(&guest);
        let mut pending = Vec::new();
        for _ in 0..4 {
            let _ = poll(&guest, &mut device, 32, &mut pending, &mut |count| count.saturating_sub(1));
        }
    }
}

/// Values that do harm: small ones hit flags and indices, the others everything.
fn damaged_word() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..20, any::<u16>()]
}

#[test]
fn index_wraps_at_65536_in_the_middle_of_a_burst() {
    let guest = Guest::new(MEMORY);
    let mut ring = Ring::new(&guest, 0, 8, 65533);
    for head in 0..6 {
        ring.give(&guest, head, DATA, 100, 0);
    }
    let mut device = ring.device(&guest);
    let mut pending = Vec::new();
    let completed = poll(&guest, &mut device, 32, &mut pending, &mut |count| count - 1);
    assert_eq!(completed.map(|all| all.len()), Ok(6));
    assert_eq!(device.state().next_avail, 3);
    assert_eq!(ring.used_index(&guest), 3);
}

#[test]
fn ring_whose_start_nobody_knows_goes_on_where_its_used_ring_ends_if_it_is_used_in_order() {
    let guest = Guest::new(MEMORY);
    let mut ring = Ring::new(&guest, 0, 8, 14_016);
    ring.give(&guest, 0, DATA, 100, 0);
    ring.give(&guest, 1, DATA, 100, 0);
    ring.start = 0; // as virtio-user tells it to a back-end that comes back
    let mut pending = Vec::new();
    let ahead = RingError::AvailJump { next: 0, index: 14_018, size: 8 };
    assert_eq!(poll(&guest, &mut ring.device(&guest), 32, &mut pending, &mut |_| 0), Err(ahead));

    let mut device = ring.device(&guest);
    device.begin_at_used();
    let completed = poll(&guest, &mut device, 32, &mut pending, &mut |count| count - 1);
    assert_eq!(completed.map(|all| all.len()), Ok(2));
    assert_eq!((device.state().next_avail, ring.used_index(&guest)), (14_018, 14_018));
}

#[test]
fn chains_given_back_come_again_and_dropped_bursts_take_nothing() {
    let guest = Guest::new(MEMORY);
    let mut ring = Ring::new(&guest, 0, 8, 0);
    for head in 0..5 {
        ring.give(&guest, head, DATA, 100, 0);
    }
    let mut device = ring.device(&guest);
    let mut lane = guest.lane();
    {
        let burst = lane.enter();
        let mut vring = device.begin(&burst).unwrap();
        assert_eq!(vring.take(32, |_| Ok(())), Ok(5));
        vring.complete(0, 0).unwrap();
    }
    assert_eq!((device.state().next_avail, ring.used_index(&guest)), (0, 0));
    {
        let burst = lane.enter();
        let mut vring = device.begin(&burst).unwrap();
        assert_eq!(vring.take(32, |_| Ok(())), Ok(5));
        vring.untake(3);
        vring.complete_all().unwrap();
        vring.publish().unwrap();
    }
    assert_eq!((device.state().next_avail, ring.used_index(&guest)), (2, 2));
    let mut pending = Vec::new();
    poll(&guest, &mut device, 32, &mut pending, &mut |_| 0).unwrap();
    assert_eq!(pending.iter().map(|chain| chain.head).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn chain_that_the_device_refuses_is_not_taken() {
    let guest = Guest::new(MEMORY);
    let mut ring = Ring::new(&guest, 0, 8, 0);
    for head in 0..3 {
        ring.give(&guest, head, DATA, 100, 0);
    }
    let mut device = ring.device(&guest);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    let refuse = |bad: u16| {
        move |chain: crate::ring::Chain<'_>| {
            if chain.head == bad { Err(RingError::Poisoned) } else { Ok(()) }
        }
    };
    assert_eq!(vring.take(8, refuse(2)), Ok(2));
    assert_eq!(vring.take(8, refuse(2)), Err(RingError::Poisoned));
    assert_eq!(vring.take(8, refuse(9)), Ok(1));
}

#[test]
fn indirect_table_across_two_areas_is_read_whole() {
    let guest = Guest::new(MEMORY);
    // The border cuts a descriptor in two.
    guest.map_in_two(TABLES + 24);
    let mut ring = Ring::new(&guest, 0, 8, 0);
    for entry in 0..3u16 {
        let flags = if entry < 2 { NEXT } else { WRITE };
        let bytes = descriptor(BASE + DATA + u64::from(entry), 7 + u32::from(entry), flags, entry + 1);
        guest.write(TABLES + 16 * u64::from(entry), &bytes);
    }
    ring.give(&guest, 0, TABLES, 48, INDIRECT);
    let mut pending = Vec::new();
    poll(&guest, &mut ring.device(&guest), 8, &mut pending, &mut |_| 0).unwrap();
    assert_eq!(pending, [naive::chain(&guest, &ring, 0, true).unwrap()]);
}

#[test]
fn ring_is_found_again_when_the_table_changed() {
    let guest = Guest::new(MEMORY);
    let mut ring = Ring::new(&guest, 0, 8, 0);
    let mut device = ring.device(&guest);
    let mut pending = Vec::new();
    for round in 0..4 {
        ring.give(&guest, round, DATA, 100, 0);
        poll(&guest, &mut device, 8, &mut pending, &mut |count| count - 1).unwrap();
        assert_eq!(device.state().next_avail, round + 1);
        guest.unmap();
        assert!(poll(&guest, &mut device, 8, &mut pending, &mut |_| 0).unwrap_err().is_transient());
        if round & 1 == 0 { guest.map() } else { guest.map_in_two_from_nothing(0x2_0000) }
    }
}
