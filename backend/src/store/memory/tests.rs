//! The store in memory against a naive one.

use mdev_dma::Iova;
use proptest::prelude::*;

use super::*;
use crate::driver::{GuestMemory, MemoryOptions};

const SIZE: u64 = 64 << 10;
const GUEST: u64 = 32 << 10;

fn guest() -> GuestMemory {
    GuestMemory::new(MemoryOptions { size: GUEST, first: Iova(0), huge_pages: false }).unwrap()
}

#[test]
fn request_over_two_slices_moves_the_bytes_of_both() {
    let (store, guest) = (Memory::new(SIZE).unwrap(), guest());
    let [one, two] = [(0, 512), (8192, 1024)].map(|(at, len)| guest.slice(Iova(at), len).unwrap());
    one.fill(1);
    two.fill(2);
    store.serve(Operation::WRITE, 1024, 1536, &[one, two]).unwrap();
    let back = guest.slice(Iova(16384), 2048).unwrap();
    store.serve(Operation::Read, 512, 2048, &[back]).unwrap();
    let mut bytes = vec![0; 2048];
    back.copy_to(&mut bytes);
    assert!(bytes[..512].iter().all(|&byte| byte == 0));
    assert!(bytes[512..1024].iter().all(|&byte| byte == 1));
    assert!(bytes[1024..].iter().all(|&byte| byte == 2));
}

#[test]
fn store_of_several_windows_is_one_store() {
    let (size, border) = (3 << 30, 1 << 30);
    let (store, guest) = (Memory::new(size).unwrap(), guest());
    let ours = guest.slice(Iova(0), 1024).unwrap();
    ours.fill(7);
    for at in [border - 512, size - 1024] {
        store.serve(Operation::WRITE, at, 1024, &[ours]).unwrap();
        let back = guest.slice(Iova(4096), 1024).unwrap();
        back.fill(0);
        store.serve(Operation::Read, at, 1024, &[back]).unwrap();
        let mut bytes = vec![0; 1024];
        back.copy_to(&mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 7));
    }
}

#[test]
fn what_lies_beyond_the_end_is_an_error() {
    let (store, guest) = (Memory::new(SIZE).unwrap(), guest());
    let ours = guest.slice(Iova(0), 1024).unwrap();
    assert_eq!(store.serve(Operation::Read, SIZE - 512, 1024, &[ours]), Err(Errno::INVAL));
    assert_eq!(store.serve(Operation::Read, u64::MAX, 1024, &[ours]), Err(Errno::INVAL));
    assert_eq!(
        store.serve(Operation::WriteZeroes { unmap: false, durable: false }, SIZE - 512, 1024, &[]),
        Err(Errno::INVAL)
    );
}

#[derive(Clone, Debug)]
struct Step {
    operation: Operation,
    sector: u64,
    sectors: u64,
    byte: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let operation = prop_oneof![
        4 => Just(Operation::Read),
        4 => Just(Operation::WRITE),
        1 => Just(Operation::Discard),
        1 => any::<bool>().prop_map(|unmap| Operation::WriteZeroes { unmap, durable: false }),
        4 => Just(Operation::Compare),
        1 => Just(Operation::Verify),
        1 => Just(Operation::Flush),
    ];
    let last = SIZE / 512;
    // Few different bytes, so that some comparisons find them.
    (operation, 0..last, 1..=32u64, 0..3u8).prop_map(move |(operation, sector, sectors, byte)| Step {
        operation,
        sector,
        sectors: sectors.min(last - sector),
        byte,
    })
}

proptest! {
    #[test]
    fn store_behaves_as_an_array_of_bytes(steps in proptest::collection::vec(step(), 1..40)) {
        let (store, guest) = (Memory::new(SIZE).unwrap(), guest());
        let mut naive = vec![0u8; SIZE as usize];
        for Step { operation, sector, sectors, byte } in steps {
            let (offset, len) = (sector * 512, sectors * 512);
            let range = offset as usize..(offset + len) as usize;
            let ours = guest.slice(Iova(0), len).unwrap();
            ours.fill(byte);
            let same = naive[range.clone()].iter().all(|&there| there == byte);
            let differs = operation == Operation::Compare && !same;
            let expected = if differs { Err(Errno::ILSEQ) } else { Ok(()) };
            prop_assert_eq!(store.serve(operation, offset, len, &[ours]), expected);
            match operation {
                Operation::Read => {
                    let mut bytes = vec![0; len as usize];
                    ours.copy_to(&mut bytes);
                    prop_assert_eq!(&bytes, &naive[range]);
                }
                Operation::Write { .. } => naive[range].fill(byte),
                Operation::Discard | Operation::WriteZeroes { .. } => naive[range].fill(0),
                Operation::Compare | Operation::Verify | Operation::Flush => {}
            }
        }
    }
}
