//! `victim-writer SOCKET FORMAT BLOCKS SEED`: writes to the block device at SOCKET, whose rings are `split` or `packed`, or to the `nvme`
//! controller there, until it is killed, and tells of each write on standard output ([`mdev_tests::disk::Stream`]).

use std::io;
use std::path::Path;

use mdev_tests::disk::{Journal, Load, NvmeLoad, Stream};
use mdev_tests::random::Random;
use mdevd::driver::nvme::DoorbellWay;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, format, blocks, seed] = arguments.as_slice() else { panic!("SOCKET FORMAT BLOCKS SEED") };
    let number = |text: &str| text.parse().expect("a number");
    let (socket, blocks, seed) = (Path::new(socket), number(blocks), number(seed));
    // Nothing but entries on standard output.
    let mut journal = Stream(io::stdout().lock());
    let random = Random::of_number(seed);
    match format.as_str() {
        "split" => write::<SplitQueue>(Load::new(false, blocks, seed, random), socket, &mut journal),
        "packed" => write::<PackedQueue>(Load::new(true, blocks, seed, random), socket, &mut journal),
        "nvme" => {
            let way = if seed % 2 == 0 { DoorbellWay::Trapped } else { DoorbellWay::Shadow };
            let mut load = NvmeLoad::connect(socket, way, blocks, seed, random);
            loop {
                load.step(true, &mut journal);
            }
        }
        other => panic!("there is no format {other}"),
    }
}

fn write<Q: Virtqueue>(mut load: Load<Q>, socket: &Path, journal: &mut impl Journal) -> ! {
    load.connect(socket);
    loop {
        load.step(true, journal);
    }
}
