//! Registers, the configuration space and the table of vectors: odd sizes, odd places, anything.

use mdev_protocol::vfio_user::{ClientError, Data, RegionWrite, RegionWriteMulti, Request};
use mdev_tests::random::Random;
use rustix::io::Errno;

use super::intruder::{BAR0, CONFIG, Intruder, refused};
use super::trial::Trial;

/// Bytes of each region.
const SIZES: [(u32, u64); 9] =
    [(0, 0x2000), (1, 0), (2, 0), (3, 0), (4, 0x2000), (5, 0), (6, 0), (7, 4096), (8, 0)];
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 63, 4096];

#[test]
fn accesses_of_any_size_at_any_place_are_answered() {
    let mut trial = Trial::begin("adaptive");
    for (region, size) in SIZES {
        trial.case(&format!("region {region}"), |intruder, _| {
            for len in LENGTHS {
                let last = size.checked_sub(len as u64);
                let mut bytes = vec![0; len];
                for offset in (0..64).chain(4090..4110).chain(last) {
                    let fits = last.is_some_and(|last| offset <= last);
                    let outcome = intruder.client.region_read(region, offset, &mut bytes);
                    assert_eq!(outcome.is_ok(), fits, "{len} bytes at {offset:#x}: {outcome:?}");
                }
                // One byte beyond, far beyond, and around the end of the numbers.
                let beyond = size.saturating_sub(len as u64 - 1).max(last.map_or(0, |last| last + 1));
                for offset in [beyond, size, size + 1, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX] {
                    let client = &mut intruder.client;
                    assert_eq!(refused(client.region_read(region, offset, &mut bytes)), Errno::INVAL);
                    assert_eq!(refused(client.region_write(region, offset, &bytes)), Errno::INVAL);
                }
            }
        });
    }
    trial.case("regions that are not there", |intruder, _| {
        for region in [9, 10, 255, 1 << 31, u32::MAX] {
            let client = &mut intruder.client;
            assert_eq!(refused(client.region_read(region, 0, &mut [0; 4])), Errno::INVAL);
            assert_eq!(refused(client.region_write(region, 0, &[0; 4])), Errno::INVAL);
            assert_eq!(refused(client.region_info(region)), Errno::INVAL);
            assert_eq!(refused(client.region_io_fds(region)), Errno::INVAL);
        }
    });
    trial.case("no bytes, and as many as there may be", |intruder, _| {
        for region in [0, 4, 7] {
            let _ = intruder.client.region_read(region, 0, &mut []);
            let _ = intruder.client.region_write(region, 0, &[]);
            let mut most = vec![0; 1 << 20];
            assert_eq!(refused(intruder.client.region_read(region, 0, &mut most)), Errno::INVAL);
            assert_eq!(refused(intruder.client.region_write(region, 0, &most)), Errno::INVAL);
        }
    });
    trial.end();
}

#[test]
fn anything_written_to_any_register_harms_its_host_only() {
    let mut trial = Trial::begin("adaptive");
    let mut random = Random::seeded("anything in registers");
    for (region, size) in [(0, 0x80), (0, 0x2000), (4, 0x2000), (7, 4096)] {
        trial.case(&format!("{size:#x} bytes of region {region}"), |intruder, _| {
            for _ in 0..3000 {
                let len = *random.of(&LENGTHS) as u64;
                let offset = random.below(size);
                if offset + len > size {
                    continue;
                }
                let aligned = if random.one_in(2) { offset & !7 } else { offset };
                let mut bytes = vec![0; len as usize];
                random.fill(&mut bytes);
                intruder.client.region_write(region, aligned, &bytes).expect("it is answered");
                if random.one_in(4) {
                    intruder.client.region_read(region, aligned, &mut bytes).expect("it is answered");
                }
            }
        });
    }
    trial.case("many writes in one message", |intruder, _| {
        for _ in 0..50 {
            let write = |random: &mut Random| {
                let bytes = random.number().to_le_bytes();
                RegionWrite {
                    offset: random.below(0x80) & !3,
                    region: BAR0,
                    data: Data::new(&bytes[..4]).expect("four bytes"),
                }
            };
            let writes: Vec<_> = (0..200).map(|_| write(&mut random)).collect();
            let request =
                Request::RegionWriteMulti(RegionWriteMulti::new(writes).expect("as many as there may be"));
            match intruder.client.call(&request, &[]) {
                Ok(_) | Err(ClientError::Refused { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    trial.end();
}

fn config(intruder: &mut Intruder) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    intruder.client.region_read(CONFIG, 0, &mut bytes).expect("a configuration space");
    bytes
}

#[test]
fn read_only_bits_of_the_configuration_space_stay() {
    let mut trial = Trial::begin("adaptive");
    trial.case("every byte of the configuration space", |intruder, _| {
        intruder.disable();
        let before = config(intruder);
        for value in [0xff, 0x00, 0x55, 0xaa] {
            for offset in 0..4096 {
                // A reset of the function is asked for elsewhere.
                let value = if offset == 0x60 + 9 { value & 0x7f } else { value };
                intruder.client.region_write(CONFIG, offset, &[value]).expect("it is answered");
            }
            let after = config(intruder);
            // Vendor, device, status but for an interrupt, revision and class, kind of header.
            assert_eq!(after[..4], before[..4], "identity");
            assert_eq!(after[8..12], before[8..12], "class");
            assert_eq!(after[14], before[14], "header");
            // BARs say how long they are, and of which kind.
            assert_eq!((after[0x10] & 0xf, after[0x11] & 0x1f), (4, 0), "BAR 0");
            assert_eq!((after[0x20] & 0xf, after[0x21] & 0x1f), (4, 0), "BAR 4");
            for at in [0x18..0x20, 0x28..0x3c] {
                assert_eq!(after[at.clone()], before[at.clone()], "{at:?}");
            }
            assert_eq!(after[0x3d], before[0x3d], "pin");
            // Capabilities: what they are, where the next is, what they can do.
            for at in [0x40..0x44, 0x50..0x52, 0x54..0x5c, 0x60..0x68, 0x6c..0x70, 0x72..0x88] {
                assert_eq!(after[at.clone()], before[at.clone()], "{at:?}");
            }
            assert_eq!(after[0x100..], before[0x100..], "what is behind");
        }
        // A reset of the function brings all back.
        intruder.client.region_write(CONFIG, 0x60 + 9, &[0x80]).expect("it is answered");
        assert_eq!(config(intruder), before);
    });
    trial.case("resets of the function under load", |intruder, _| {
        for _ in 0..100 {
            let at = intruder.data.at.0;
            for _ in 0..16 {
                let read = super::intruder::transfer(2, [at, 0], 8);
                intruder.rings[0].push(&mdev_protocol::nvme::command::Command { nsid: 2, ..read });
            }
            intruder.ring(0);
            intruder.client.region_write(CONFIG, 0x60 + 9, &[0x80]).expect("it is answered");
            intruder.enable();
            intruder.create_pairs(1);
        }
    });
    trial.end();
}
