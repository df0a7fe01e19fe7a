//! `victim-writer SOCKET FORMAT BLOCKS SEED`: writes to the block device at SOCKET until it is killed, and tells of each write on
//! standard output ([`mdev_tests::disk::Stream`]).

use std::io;
use std::path::Path;

use mdev_tests::disk::{Load, Stream};
use mdev_tests::random::Random;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, format, blocks, seed] = arguments.as_slice() else { panic!("SOCKET FORMAT BLOCKS SEED") };
    let number = |text: &str| text.parse().expect("a number");
    let (socket, blocks, seed) = (Path::new(socket), number(blocks), number(seed));
    if format == "packed" {
        write::<PackedQueue>(true, socket, blocks, seed);
    } else {
        write::<SplitQueue>(false, socket, blocks, seed);
    }
}

fn write<Q: Virtqueue>(packed: bool, socket: &Path, blocks: u64, seed: u64) {
    // Nothing but entries on standard output.
    let mut load = Load::<Q>::new(packed, blocks, seed, Random::of_number(seed));
    load.connect(socket);
    let mut journal = Stream(io::stdout().lock());
    loop {
        load.step(true, &mut journal);
    }
}
