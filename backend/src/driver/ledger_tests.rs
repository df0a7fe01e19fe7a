use super::*;
use proptest::prelude::*;

const BLOCK: usize = 4 * SECTOR;
const BLOCKS: u64 = 6;

/// A disk that does what it is told, sector by sector.
#[derive(Clone)]
struct Disk(Vec<u8>);

impl Disk {
    fn new() -> Self {
        Disk(vec![0xaa; BLOCK * BLOCKS as usize])
    }

    fn block(&mut self, block: u64) -> &mut [u8] {
        &mut self.0[block as usize * BLOCK..][..BLOCK]
    }

    fn sector(&mut self, block: u64, sector: usize) -> &mut [u8] {
        &mut self.block(block)[sector * SECTOR..][..SECTOR]
    }
}

/// A ledger and the disk that it is about.
struct Bench {
    ledger: Ledger,
    disk: Disk,
}

impl Bench {
    fn new() -> Self {
        Bench { ledger: Ledger::new(77, BLOCK as u32), disk: Disk::new() }
    }

    fn bytes(&self, block: u64, generation: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.ledger.fill(block, generation, &mut bytes);
        bytes
    }

    /// A whole write; its generation.
    fn write(&mut self, block: u64) -> u64 {
        let generation = self.ledger.begin(block);
        let bytes = self.bytes(block, generation);
        self.disk.block(block).copy_from_slice(&bytes);
        self.ledger.acknowledge(block, generation).unwrap();
        generation
    }

    fn check(&mut self, block: u64) -> Result<(), Finding> {
        self.ledger.check(block, self.disk.block(block))
    }

    fn damage(&mut self, block: u64) -> Option<Damage> {
        self.check(block).err().map(|finding| finding.damage)
    }

    /// Blocks whose state is not that of a disk that did as it was told.
    fn damaged(&mut self) -> Vec<(u64, Damage)> {
        (0..BLOCKS).filter_map(|block| Some((block, self.damage(block)?))).collect()
    }
}

/// A write that is under way: which sectors of it have reached the disk.
struct Flight {
    block: u64,
    generation: u64,
    done: [bool; 4],
}

/// One thing that happens; numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
enum Event {
    Begin(u64),
    Land(usize, usize),
    Acknowledge(usize),
    GiveUp(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..BLOCKS).prop_map(Event::Begin),
        8 => (any::<usize>(), 0usize..4).prop_map(|(flight, sector)| Event::Land(flight, sector)),
        4 => any::<usize>().prop_map(Event::Acknowledge),
        1 => any::<usize>().prop_map(Event::GiveUp),
    ]
}

fn land(bench: &mut Bench, flight: &mut Flight, sector: usize) {
    if !std::mem::replace(&mut flight.done[sector], true) {
        let bytes = bench.bytes(flight.block, flight.generation);
        let from = &bytes[sector * SECTOR..][..SECTOR];
        bench.disk.sector(flight.block, sector).copy_from_slice(from);
    }
}

/// Lets events happen to a disk that does as it is told.
fn play(events: &[Event]) -> Bench {
    play_on(events).0
}

/// The same; then the writes that are under way still are given up: they do not land any more when others do.
fn play_out(events: &[Event]) -> Bench {
    let (mut bench, flights) = play_on(events);
    for flight in flights {
        bench.ledger.give_up(flight.block, flight.generation).unwrap();
    }
    bench
}

/// The same, and what is under way still.
fn play_on(events: &[Event]) -> (Bench, Vec<Flight>) {
    let mut bench = Bench::new();
    let mut flights: Vec<Flight> = Vec::new();
    for &event in events {
        match event {
            Event::Begin(block) => {
                let generation = bench.ledger.begin(block);
                flights.push(Flight { block, generation, done: [false; 4] });
            }
            Event::Land(choice, sector) if !flights.is_empty() => {
                let place = choice % flights.len();
                land(&mut bench, &mut flights[place], sector);
            }
            Event::Acknowledge(choice) if !flights.is_empty() => {
                let mut flight = flights.swap_remove(choice % flights.len());
                (0..4).for_each(|sector| land(&mut bench, &mut flight, sector));
                bench.ledger.acknowledge(flight.block, flight.generation).unwrap();
            }
            Event::GiveUp(choice) if !flights.is_empty() => {
                let flight = flights.swap_remove(choice % flights.len());
                bench.ledger.give_up(flight.block, flight.generation).unwrap();
            }
            _ => {}
        }
    }
    (bench, flights)
}

proptest! {
    #[test]
    fn disk_that_does_as_it_is_told_has_no_damage(events in prop::collection::vec(event(), 0..60)) {
        prop_assert_eq!(play(&events).damaged(), []);
    }

    #[test]
    fn block_that_falls_back_to_a_superseded_write_is_lost_and_no_other_is(
        events in prop::collection::vec(event(), 0..40),
        block in 0..BLOCKS,
        back in 0usize..2,
    ) {
        let mut bench = play_out(&events);
        let older = [bench.disk.block(block).to_vec(), { bench.write(block); bench.disk.block(block).to_vec() }];
        let newest = bench.write(block);
        bench.disk.block(block).copy_from_slice(&older[back]);
        let torn_before = older[0].chunks(SECTOR).map(|sector| pattern::look(77, sector)).collect::<Vec<_>>();
        // What was there before may itself be a mix of writes that were under way together.
        let mixed = back == 0 && torn_before.iter().any(|found| match (found, torn_before[0]) {
            (Found::Whole { generation, .. }, Found::Whole { generation: first, .. }) => *generation != first,
            (found, first) => *found != first,
        });
        let damaged = bench.damaged();
        if mixed {
            prop_assert_eq!(damaged, [(block, Damage::Torn)]);
        } else {
            prop_assert_eq!(damaged, [(block, Damage::Lost)]);
            let finding = bench.check(block).unwrap_err();
            prop_assert!(finding.what.contains(&newest.to_string()), "{}", finding);
        }
    }

    #[test]
    fn block_of_two_writes_is_torn_at_the_first_sector_of_the_older(
        events in prop::collection::vec(event(), 0..40),
        block in 0..BLOCKS,
        kept in 0usize..3,
    ) {
        let mut bench = play(&events);
        bench.write(block);
        let older = bench.disk.block(block).to_vec();
        bench.write(block);
        bench.disk.block(block)[(kept + 1) * SECTOR..].copy_from_slice(&older[(kept + 1) * SECTOR..]);
        let finding = bench.check(block).unwrap_err();
        prop_assert_eq!((finding.damage, finding.sector), (Damage::Torn, block * 4 + kept as u64 + 1));
        prop_assert_eq!(bench.damaged(), [(block, Damage::Torn)]);
    }

    #[test]
    fn sector_that_was_cut_in_the_middle_is_torn(
        events in prop::collection::vec(event(), 0..40),
        block in 0..BLOCKS,
        cut in 40usize..SECTOR,
    ) {
        let mut bench = play(&events);
        bench.write(block);
        let older = bench.disk.sector(block, 2).to_vec();
        bench.write(block);
        bench.disk.sector(block, 2)[cut..].copy_from_slice(&older[cut..]);
        prop_assert_eq!(bench.damaged(), [(block, Damage::Torn)]);
    }

    #[test]
    fn block_that_lies_elsewhere_is_misplaced(
        events in prop::collection::vec(event(), 0..40),
        block in 0..BLOCKS,
        distance in 1..BLOCKS,
    ) {
        let mut bench = play(&events);
        bench.write(block);
        let astray = (block + distance) % BLOCKS;
        let bytes = bench.disk.block(block).to_vec();
        bench.disk.block(astray).copy_from_slice(&bytes);
        prop_assert_eq!(bench.damaged(), [(astray, Damage::Misplaced)]);
        let finding = bench.check(astray).unwrap_err();
        prop_assert!(finding.what.contains(&format!("sector {} (block {block}", block * 4)), "{}", finding);
    }

    #[test]
    fn write_that_ends_twice_is_doubled(
        events in prop::collection::vec(event(), 0..40),
        block in 0..BLOCKS,
        well in any::<bool>(),
    ) {
        let mut bench = play(&events);
        let generation = bench.write(block);
        let again = match well {
            true => bench.ledger.acknowledge(block, generation),
            false => bench.ledger.give_up(block, generation),
        };
        prop_assert_eq!(again.unwrap_err().damage, Damage::Doubled);
        prop_assert_eq!(bench.ledger.acknowledge(block, generation + 1).unwrap_err().damage, Damage::Doubled);
        prop_assert_eq!(bench.damaged(), []);
    }
}

#[test]
fn acknowledged_write_of_which_nothing_is_there_is_lost() {
    let mut bench = Bench::new();
    let generation = bench.ledger.begin(2);
    bench.ledger.acknowledge(2, generation).unwrap();
    let finding = bench.check(2).unwrap_err();
    assert_eq!(
        finding.to_string(),
        "LOST: sector 8 (block 2): what was there before the run is there, and only generation 1 may be there"
    );
}

#[test]
fn read_may_find_what_was_there_when_it_began_and_what_began_since() {
    let mut bench = Bench::new();
    let first = bench.write(1);
    let expected = bench.ledger.expected(1);
    let second = bench.write(1);
    let read = |generation| {
        let bytes = bench.bytes(1, generation);
        bench.ledger.check_read(1, &expected, &bytes).map_err(|finding| finding.damage)
    };
    assert_eq!((read(first), read(second)), (Ok(()), Ok(())));
    let late = bench.ledger.expected(1);
    let bytes = bench.bytes(1, first);
    assert_eq!(bench.ledger.check_read(1, &late, &bytes).unwrap_err().damage, Damage::Lost);
}

#[test]
fn write_that_was_given_up_is_superseded_by_a_later_one_only() {
    let mut bench = Bench::new();
    let first = bench.write(0);
    let given_up = bench.ledger.begin(0);
    bench.ledger.give_up(0, given_up).unwrap();
    let mut bytes = bench.bytes(0, first);
    bytes[SECTOR..].copy_from_slice(&bench.bytes(0, given_up)[SECTOR..]);
    assert_eq!(bench.ledger.check(0, &bytes), Ok(()), "half of it is there");
    bench.write(0);
    assert_eq!(bench.ledger.check(0, &bytes).unwrap_err().damage, Damage::Torn);
}

#[test]
fn findings_are_counted_by_kind_and_the_first_are_told() {
    let finding = |damage, block| Finding { damage, block, sector: 8 * block, what: String::new() };
    let (mut some, mut more) = (Findings::default(), Findings::default());
    (0..10).for_each(|block| some.add(finding(Damage::Lost, block)));
    more.add(finding(Damage::Misplaced, 3));
    more.merge(&some);
    let counts =
        [Damage::Lost, Damage::Doubled, Damage::Torn, Damage::Misplaced].map(|kind| more.count(kind));
    assert_eq!((counts, more.total(), more.first().len()), ([10, 0, 0, 1], 11, TOLD));
    assert_eq!(more.first()[0].damage, Damage::Misplaced);
}
