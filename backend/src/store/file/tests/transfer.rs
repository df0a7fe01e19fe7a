//! Single requests: how they end, and what they leave alone.

use std::fs::OpenOptions;

use super::*;
use crate::store::MAX_IN_FLIGHT;

#[test]
fn as_many_requests_as_fit_are_in_flight_and_one_more_is_refused() {
    let (guest, image) = (Guest::new(), Image::in_memory(&sectors(MAX_IN_FLIGHT)));
    let (_file, mut port) = image.open();
    let read = |tag: u64| guest.request(tag, Operation::Read, tag * 512, tag * 512, 512);
    for tag in 0..MAX_IN_FLIGHT as u64 {
        port.submit(read(tag));
    }
    assert_eq!(guest.ioas.pins(), MAX_IN_FLIGHT as u64);
    port.submit(guest.request(9999, Operation::Read, 0, 0, 512));
    port.begin();
    let ends = ends(&mut port, MAX_IN_FLIGHT + 1);
    assert_eq!(ends[&9999], Err(Errno::BUSY));
    assert!((0..MAX_IN_FLIGHT as u64).all(|tag| ends[&tag] == Ok(512)));
    assert_eq!((guest.read(0, 512 * MAX_IN_FLIGHT), guest.ioas.pins()), (sectors(MAX_IN_FLIGHT), 0));
    assert_eq!(end(&mut port, read(3)), Ok(512), "there is room again");
}

#[test]
fn a_request_in_thousands_of_pieces_moves_each() {
    const PIECES: u64 = 2560;
    for image in [Image::in_memory(&sectors(64)), Image::on_disk(&sectors(64)).direct()] {
        let guest = Guest::new();
        let (_file, mut port) = image.open();
        let pieces: Vec<(u64, u32)> = (0..PIECES).map(|piece| (piece * 64, 7)).collect();
        // In whole sectors: 35 of them.
        let len = PIECES * 7;
        let request =
            |operation, offset| Request { tag: 1, operation, offset, len, memory: guest.pins(&pieces) };
        assert_eq!(end(&mut port, request(Operation::Read, 512)), Ok(len));
        let read: Vec<u8> = pieces.iter().flat_map(|(at, len)| guest.read(*at, *len as usize)).collect();
        assert_eq!(read, sectors(64)[512..][..len as usize]);
        assert_eq!(guest.read(7, 57), [0; 57]);
        assert_eq!(end(&mut port, request(Operation::WRITE, 0)), Ok(len));
        assert_eq!(image.bytes()[..len as usize], read);
        assert_eq!(image.bytes()[len as usize..], sectors(64)[len as usize..]);
    }
}

#[test]
fn a_request_larger_than_the_buffer_of_misaligned_memory_goes_through_it_in_pieces() {
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 4099) as u8).collect();
    let image = Image::on_disk(&bytes).direct();
    let guest = Guest::of(4 << 20);
    let (_file, mut port) = image.open();
    assert_eq!(end(&mut port, guest.request(1, Operation::Read, 0, 1, 3 << 20)), Ok(3 << 20));
    assert!(guest.read(1, 3 << 20) == bytes);
    let turned: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    guest.write(3, &turned);
    assert_eq!(end(&mut port, guest.request(2, Operation::WRITE, 0, 3, 3 << 20)), Ok(3 << 20));
    assert!(image.bytes() == turned);
}

#[test]
fn sectors_within_a_block_are_served_by_a_direct_store() {
    for image in [Image::on_disk(&sectors(64)), Image::in_memory(&sectors(64))] {
        let (guest, image) = (Guest::new(), image.direct());
        let (file, mut port) = image.open();
        assert!(file.limits().block <= 4096);
        assert_eq!(end(&mut port, guest.request(1, Operation::Read, 3 * 512, 4096, 1024)), Ok(1024));
        assert_eq!(guest.read(4096, 1024), sectors(5)[3 * 512..]);
        guest.write(1, &[0xaa; 512]);
        assert_eq!(end(&mut port, guest.request(2, Operation::WRITE, 5 * 512, 1, 512)), Ok(512));
        assert_eq!(end(&mut port, guest.request(3, Operation::Read, 0, 8192, 8192)), Ok(8192));
        let mut wanted = sectors(16);
        wanted[5 * 512..6 * 512].fill(0xaa);
        assert_eq!(guest.read(8192, 8192), wanted);
    }
}

#[test]
fn a_request_that_names_bytes_it_has_not_is_refused() {
    let (guest, image) = (Guest::new(), Image::in_memory(&sectors(8)));
    let (file, mut port) = image.open();
    assert_eq!(file.size(), 4096);
    for (offset, len) in [(4096, 512), (4096 - 512, 1024), (u64::MAX - 511, 1024), (u64::MAX, 512)] {
        assert_eq!(end(&mut port, guest.request(1, Operation::Read, offset, 0, len)), Err(Errno::INVAL));
    }
    let zeroes = without_memory(2, Operation::WriteZeroes { unmap: true, durable: false }, 4096, 512);
    assert_eq!(end(&mut port, zeroes), Err(Errno::INVAL));
    let other = Request { len: 1024, ..guest.request(3, Operation::WRITE, 0, 0, 512) };
    assert_eq!(end(&mut port, other), Err(Errno::INVAL), "less memory than bytes");
    assert_eq!((image.bytes(), guest.ioas.pins()), (sectors(8), 0));
}

#[test]
fn a_file_that_was_made_shorter_fails_what_lies_beyond_and_nothing_else() {
    for direct in [false, true] {
        let (guest, mut image) = (Guest::new(), Image::on_disk(&sectors(64)));
        image.options.direct = direct;
        let (file, mut port) = image.open();
        OpenOptions::new().write(true).open(image.path()).unwrap().set_len(8192 + 4096).unwrap();
        let read = |tag, offset| guest.request(tag, Operation::Read, offset, tag * 16384, 8192);
        let found = run(&mut port, vec![read(0, 0), read(1, 8192), read(2, 16384)]);
        assert_eq!([found[&0], found[&1], found[&2]], [Ok(8192), Err(Errno::IO), Err(Errno::IO)]);
        assert_eq!(guest.read(0, 8192), sectors(16));
        assert!(file.look() && file.size() == 8192 + 4096 && !file.look());
        assert_eq!(end(&mut port, read(1, 8192)), Err(Errno::INVAL));
        assert_eq!(guest.ioas.pins(), 0);
    }
}

#[test]
fn a_request_whose_memory_is_lost_fails_and_so_does_no_other() {
    let (guest, other) = (Guest::new(), Guest::new());
    for (direct, at) in [(false, 0), (true, 0), (true, 1)] {
        let mut image = Image::on_disk(&sectors(64));
        image.options.direct = direct;
        let (_file, mut port) = image.open();
        let requests = vec![
            guest.request(1, Operation::Read, 0, at, 4096),
            guest.request(2, Operation::WRITE, 4096, at, 4096),
            other.request(3, Operation::Read, 8192, 0, 4096),
            other.request(4, Operation::WRITE, 12288, 4096, 4096),
        ];
        rustix::fs::ftruncate(guest.memory.regions()[0].extent.file.as_fd(), 0).unwrap();
        let found = run(&mut port, requests);
        assert_eq!([found[&1], found[&2]], [Err(Errno::FAULT); 2], "direct: {direct}, at {at}");
        assert_eq!([found[&3], found[&4]], [Ok(4096); 2]);
        assert_eq!((guest.ioas.pins(), other.ioas.pins()), (0, 0));
        assert_eq!(other.read(0, 4096), sectors(24)[8192..]);
    }
}

#[test]
fn what_has_not_begun_is_cancelled_and_the_port_goes_on() {
    let (guest, image) = (Guest::new(), Image::in_memory(&sectors(64)));
    let (_file, mut port) = image.open();
    for tag in 0..4 {
        port.submit(guest.request(tag, Operation::WRITE, tag * 512, 0, 512));
    }
    port.cancel();
    assert_eq!(guest.ioas.pins(), 0);
    assert!(port.arm(), "there are ends to be taken");
    assert!(ends(&mut port, 4).values().all(|result| *result == Err(Errno::CANCELED)));
    assert_eq!(image.bytes(), sectors(64));
    assert_eq!(end(&mut port, guest.request(7, Operation::Read, 512, 0, 512)), Ok(512));
}

#[test]
fn one_request_is_cancelled_and_the_others_are_not_concerned() {
    let (guest, image) = (Guest::new(), Image::in_memory(&sectors(64)));
    let (_file, mut port) = image.open();
    for tag in 0..4 {
        port.submit(guest.request(tag, Operation::WRITE, tag * 512, 0, 512));
    }
    port.cancel_one(2);
    port.cancel_one(9);
    assert_eq!(guest.ioas.pins(), 3);
    port.begin();
    let found = ends(&mut port, 4);
    assert!(
        found.iter().all(|(tag, result)| *result == if *tag == 2 { Err(Errno::CANCELED) } else { Ok(512) })
    );
    assert_eq!(image.bytes()[1024..1536], sectors(64)[1024..1536]);
    port.cancel_one(1);
    // Some that the kernel has: one of them ends as it may, and says truly how.
    let (guest, image) = (Guest::new(), Image::on_disk(&vec![0; 32 << 20]).direct());
    let (_file, mut port) = image.open();
    guest.write(0, &[0xff; 1 << 19]);
    for tag in 0..50 {
        port.submit(guest.request(tag, Operation::WRITE, tag << 19, 0, 1 << 19));
    }
    port.begin();
    port.cancel_one(40);
    let found = ends(&mut port, 50);
    let bytes = image.bytes();
    let whole = |tag: u64| bytes[(tag as usize) << 19..][..1 << 19].iter().all(|byte| *byte == 0xff);
    assert!(found.iter().all(|(tag, result)| match result {
        Ok(_) => whole(*tag),
        Err(errno) => (*tag, *errno) == (40, Errno::CANCELED),
    }));
    assert_eq!(guest.ioas.pins(), 0);
}

#[test]
fn what_is_in_flight_and_cancelled_ends_once_and_says_truly_how() {
    let (guest, image) = (Guest::new(), Image::on_disk(&vec![0; 64 << 20]).direct());
    let (_file, mut port) = image.open();
    guest.write(0, &[0xff; 1 << 19]);
    for tag in 0..100 {
        let operation = Operation::Write { durable: true };
        port.submit(guest.request(tag, operation, tag << 19, 0, 1 << 19));
    }
    port.begin();
    port.cancel();
    let found = ends(&mut port, 100);
    assert!(found.values().all(|result| matches!(result, Ok(0x80000) | Err(Errno::CANCELED))), "{found:?}");
    assert_eq!(guest.ioas.pins(), 0);
    let bytes = image.bytes();
    for (tag, _) in found.iter().filter(|(_, result)| result.is_ok()) {
        assert!(bytes[(*tag as usize) << 19..][..1 << 19].iter().all(|byte| *byte == 0xff));
    }
}

#[test]
fn a_port_that_is_dropped_with_requests_in_flight_leaves_no_pin_and_writes_nothing_any_more() {
    for round in 0..8u64 {
        let (guest, image) = (Guest::new(), Image::on_disk(&vec![0x55; 8 << 20]).direct());
        let (_file, mut port) = image.open();
        for tag in 0..128 {
            // Half of them through buffers.
            port.submit(guest.request(tag, Operation::Read, tag << 16, (tag % 2) * 4097, 1 << 16));
        }
        if round % 4 != 0 {
            port.begin();
        }
        if round % 2 != 0 {
            port.take(&mut Vec::new());
        }
        drop(port);
        assert_eq!(guest.ioas.pins(), 0);
        guest.write(0, &[0xaa; 1 << 19]);
        // A disk serves these after those.
        let (mut port, elsewhere) =
            (Image::open(&Image::on_disk(&vec![0x11; 1 << 20]).direct()).1, Guest::new());
        for offset in 0..16 {
            let read = elsewhere.request(1, Operation::Read, offset << 16, 0, 1 << 16);
            assert_eq!(end(&mut port, read), Ok(1 << 16));
        }
        assert!(guest.read(0, 1 << 19).iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn durable_writes_and_flushes_end_well() {
    for image in [Image::on_disk(&sectors(64)), Image::on_disk(&sectors(64)).direct()] {
        let guest = Guest::new();
        guest.write(0, &[7; 4096]);
        let (_file, mut port) = image.open();
        let durable = Operation::Write { durable: true };
        assert_eq!(end(&mut port, guest.request(1, durable, 4096, 0, 4096)), Ok(4096));
        assert_eq!(end(&mut port, guest.request(1, durable, 512, 1, 512)), Ok(512));
        assert_eq!(end(&mut port, without_memory(2, Operation::Flush, 0, 0)), Ok(0));
        assert_eq!(image.bytes()[4096..8192], [7; 4096]);
    }
}
