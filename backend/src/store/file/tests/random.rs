//! Random requests, several at a time, against a naive store.

use proptest::prelude::*;

use super::*;

/// Requests at a time: each has its own part of the store and of the guest's memory, since the order of others is open.
const PARTS: usize = 8;
/// Bytes of the store in a part.
const STORE: usize = 16 << 10;
/// Bytes of the guest's memory in a part.
const ROOM: usize = 64 << 10;

#[derive(Clone, Debug)]
struct Asked {
    operation: Operation,
    sector: usize,
    sectors: usize,
    /// Where its memory begins, in the part.
    at: usize,
    /// Pieces of memory, and what is left out behind each; the last is as long as needed.
    pieces: Vec<(usize, usize)>,
}

impl Asked {
    fn offset(&self, part: usize) -> usize {
        part * STORE + self.sector * 512
    }

    fn len(&self) -> usize {
        self.sectors * 512
    }

    /// Where its bytes are in the guest's memory.
    fn memory(&self, part: usize) -> Vec<(u64, u32)> {
        let (mut at, mut left) = (part * ROOM + self.at, self.len());
        let mut pieces = Vec::new();
        for (len, gap) in self.pieces.iter().chain([&(usize::MAX, 0)]) {
            let len = left.min(*len);
            if len > 0 {
                pieces.push((at as u64, len as u32));
            }
            left -= len;
            at = at.saturating_add(len).saturating_add(*gap);
        }
        pieces
    }

    fn request(&self, guest: &Guest, part: usize) -> Request {
        let (tag, offset, len) = (part as u64, self.offset(part) as u64, self.len() as u64);
        let memory = match self.operation {
            operation if operation.moves() => guest.pins(&self.memory(part)),
            _ => Pins::new(),
        };
        Request { tag, operation: self.operation, offset, len, memory }
    }

    fn play(&self, part: usize, store: &mut [u8], guest: &mut [u8]) -> Result<u64, Errno> {
        let store = &mut store[self.offset(part)..][..self.len()];
        let mut done = 0;
        match self.operation {
            Operation::Flush | Operation::Verify => {}
            Operation::Discard | Operation::WriteZeroes { .. } => store.fill(0),
            Operation::Read | Operation::Compare | Operation::Write { .. } => {
                for (at, len) in self.memory(part) {
                    let guest = &mut guest[at as usize..][..len as usize];
                    let store = &mut store[done..][..len as usize];
                    match self.operation {
                        Operation::Read => guest.copy_from_slice(store),
                        Operation::Compare if guest != store => return Err(Errno::ILSEQ),
                        Operation::Compare => {}
                        _ => store.copy_from_slice(guest),
                    }
                    done += len as usize;
                }
            }
        }
        Ok(self.len() as u64)
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let operation = prop_oneof![
        6 => Just(Operation::Read),
        6 => any::<bool>().prop_map(|durable| Operation::Write { durable }),
        2 => Just(Operation::Compare),
        1 => Just(Operation::Verify),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Discard),
        2 => any::<(bool, bool)>().prop_map(|(unmap, durable)| Operation::WriteZeroes { unmap, durable }),
    ];
    // As operating systems have it, in blocks of pages; and by sectors.
    let place = prop_oneof![
        (0..32usize).prop_flat_map(|sector| (Just(sector), 1..=32 - sector)),
        (0..4usize)
            .prop_flat_map(|block| (Just(block), 1..=4 - block))
            .prop_map(|(block, blocks)| (block * 8, blocks * 8)),
    ];
    // Pages; what direct I/O needs on most disks; anything.
    let (pages, words, anything) = (Just(4096usize), Just(512usize), Just(1usize));
    let unit = prop_oneof![pages, words, anything];
    (operation, place, unit, 0..8usize, proptest::collection::vec((1..3000usize, 0..3000usize), 0..5))
        .prop_map(|(operation, (sector, sectors), unit, at, pieces)| {
            let round = |bytes: usize| bytes.div_ceil(unit) * unit;
            let pieces = pieces.into_iter().map(|(len, gap)| (round(len), round(gap))).collect();
            Asked { operation, sector, sectors, at: at * unit, pieces }
        })
}

fn batches() -> impl Strategy<Value = Vec<Vec<Option<Asked>>>> {
    let batch = proptest::collection::vec(proptest::option::weighted(0.7, asked()), PARTS);
    proptest::collection::vec(batch, 1..12)
}

fn plays_as_the_model(image: Image, batches: Vec<Vec<Option<Asked>>>) -> Result<(), TestCaseError> {
    let guest = Guest::new();
    let mut bytes: Vec<u8> = (0..PARTS * ROOM).map(|at| (at / 7) as u8).collect();
    guest.write(0, &bytes);
    let mut store = image.bytes();
    let (_file, mut port) = image.open();
    for batch in batches {
        let asked: Vec<(usize, Asked)> =
            batch.into_iter().enumerate().filter_map(|(part, asked)| Some((part, asked?))).collect();
        let ends = run(&mut port, asked.iter().map(|(part, asked)| asked.request(&guest, *part)).collect());
        for (part, asked) in &asked {
            let expected = asked.play(*part, &mut store, &mut bytes);
            prop_assert_eq!(ends[&(*part as u64)], expected, "{:?}", asked);
        }
        prop_assert_eq!(guest.ioas.pins(), 0);
    }
    prop_assert!(guest.read(0, bytes.len()) == bytes, "the guest's memory");
    prop_assert!(image.bytes() == store, "the file");
    Ok(())
}

fn content() -> Vec<u8> {
    (0..PARTS * STORE).map(|at| (at / 511) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn store_in_memory_does_what_the_naive_one_does(batches in batches()) {
        plays_as_the_model(Image::in_memory(&content()), batches)?;
    }

    #[test]
    fn store_on_disk_does_what_the_naive_one_does(batches in batches()) {
        plays_as_the_model(Image::on_disk(&content()), batches)?;
    }

    #[test]
    fn direct_store_in_memory_does_what_the_naive_one_does(batches in batches()) {
        plays_as_the_model(Image::in_memory(&content()).direct(), batches)?;
    }

    #[test]
    fn direct_store_on_disk_does_what_the_naive_one_does(batches in batches()) {
        plays_as_the_model(Image::on_disk(&content()).direct(), batches)?;
    }
}
