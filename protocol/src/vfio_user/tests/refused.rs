//! Messages that are refused, and how.

use super::*;

fn refused(bytes: &[u8], fds: usize) -> MessageError {
    let error = parse::<ToServer>(bytes, fds).map(|(_, message)| message).unwrap_err();
    assert!(!error.ends_stream(), "{error}");
    error
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const EINVAL: u32 = 22;
const E2BIG: u32 = 7;
const ENOTSUP: u32 = 95;

#[test]
fn header_that_cannot_be_followed_ends_the_stream() {
    let most = (Header::LEN + MAX_BODY) as u32;
    for (size, follows) in
        [(0, false), (15, false), (16, true), (most, true), (most + 1, false), (u32::MAX, false)]
    {
        let header = Header { id: 1, command: 99, size, flags: 0, error: 0 };
        for result in [ToServer::body_len(&header), ToClient::body_len(&header)] {
            match result {
                Ok(body) => assert!(follows && body == size as usize - Header::LEN, "{size}"),
                Err(error) => assert!(!follows && error.ends_stream(), "{size}: {error}"),
            }
        }
    }
}

#[test]
fn unknown_command_is_taken_whole_and_answered_enotsup() {
    let mut decoder = Decoder::<ToServer>::new();
    for id in [0, 14, 19, 0xffff] {
        let header = Header::command(7, id, 100, false);
        let bytes = [header.as_bytes(), &[0; 100], &Request::DeviceReset.to_bytes(8, false)].concat();
        let (taken, decoded) = decoder.feed(&bytes, fds(2)).unwrap();
        let Some(Decoded::Rejected { header, error }) = decoded else { panic!("{decoded:?}") };
        assert_eq!((taken, error), (116, MessageError::UnknownCommand { command: id }));
        let failure = header.failure(error.errno());
        assert_eq!((failure.id, failure.command, failure.size, failure.error), (7, id, 16, ENOTSUP));
        assert!(failure.is_failure());
        let (_, decoded) = decoder.feed(&bytes[taken..], Fds::new()).unwrap();
        assert!(matches!(decoded, Some(Decoded::Message(_))), "{decoded:?}");
    }
}

#[test]
fn header_of_neither_kind_is_refused_alone_and_not_answered() {
    for flags in [2, 15, 0x12] {
        let header = Header { flags, ..Header::command(1, Command::DeviceReset.id(), 0, false) };
        assert_eq!(refused(header.as_bytes(), 0), MessageError::Type { command: 13, flags });
        assert!(!header.wants_reply());
    }
    // Bits that nobody defines are ignored, and so is the error of a command.
    let header = Header { flags: 0xffff_ff00, error: 5, ..Header::command(1, 13, 0, false) };
    assert!(parse::<ToServer>(header.as_bytes(), 0).is_ok() && header.wants_reply());
}

#[test]
fn messages_from_the_wrong_end_are_refused() {
    for (message, bytes) in golden::dma_requests() {
        let name = message.command().name();
        assert_eq!(refused(&bytes, 0), MessageError::WrongWay { name, reply: false });
    }
    for (command, _, bytes, fds) in golden::replies() {
        assert_eq!(refused(&bytes, fds), MessageError::WrongWay { name: command.name(), reply: true });
    }
    for (message, bytes, fds) in golden::requests() {
        let error = parse::<ToClient>(&bytes, fds).unwrap_err();
        assert_eq!(error, MessageError::WrongWay { name: message.command().name(), reply: false });
    }
    for (command, _, bytes) in golden::dma_replies() {
        let error = parse::<ToClient>(&bytes, 0).unwrap_err();
        assert_eq!(error, MessageError::WrongWay { name: command.name(), reply: true });
    }
}

#[test]
fn payload_of_a_wrong_length_is_refused() {
    for (message, bytes, fds) in golden::requests() {
        let command = message.command();
        let body = &bytes[Header::LEN..];
        let free = matches!(command, Command::DeviceGetInfo | Command::DeviceFeature | Command::Version);
        let longer = [body, &[0]].concat();
        if !free {
            assert_eq!(refused(&request(command, &longer), fds).errno(), EINVAL, "{message:?}");
        }
        if !body.is_empty() && command != Command::Version {
            let shorter = &body[..body.len() - 1];
            assert_eq!(refused(&request(command, shorter), fds).errno(), EINVAL, "{message:?}");
        }
        let empty_is_right = command == Command::DeviceReset;
        assert_eq!(parse::<ToServer>(&request(command, &[]), fds).is_ok(), empty_is_right, "{message:?}");
    }
    let text = vec![b' '; MAX_VERSION_DATA + 1];
    assert!(matches!(
        refused(&request(Command::Version, &[&[0; 4][..], &text].concat()), 0),
        MessageError::Size { .. }
    ));
}

#[test]
fn failure_with_a_payload_or_a_descriptor_is_refused() {
    let header = golden::asked(Command::RegionRead).failure(5);
    assert!(parse::<ToClient>(header.as_bytes(), 0).is_ok());
    assert!(matches!(parse::<ToClient>(header.as_bytes(), 1), Err(MessageError::FdCount { .. })));
    let long = Header { size: 20, ..header };
    let error = parse::<ToClient>(&[long.as_bytes(), &[0; 4]].concat(), 0).unwrap_err();
    assert!(matches!(error, MessageError::Size { .. }), "{error}");
}

#[test]
fn argsz_without_room_for_the_fields_is_refused() {
    let cases = [
        (Command::DmaMap, 32),
        (Command::DmaUnmap, 24),
        (Command::DeviceGetInfo, 16),
        (Command::DeviceGetRegionInfo, 32),
        (Command::DeviceGetRegionIoFds, 16),
        (Command::DeviceGetIrqInfo, 16),
        (Command::DeviceSetIrqs, 20),
        (Command::DeviceFeature, 8),
        (Command::MigDataRead, 8),
    ];
    for (command, min) in cases {
        let (_, golden, fds) =
            golden::requests().into_iter().find(|(message, ..)| message.command() == command).unwrap();
        for argsz in [0, min as u32 - 1] {
            let mut bytes = golden.clone();
            bytes[16..20].copy_from_slice(&argsz.to_le_bytes());
            assert_eq!(refused(&bytes, fds), MessageError::Argsz { name: command.name(), argsz, min });
        }
        let mut bytes = golden.clone();
        bytes[16..20].copy_from_slice(&(min as u32 + 1).to_le_bytes());
        assert!(parse::<ToServer>(&bytes, fds).is_ok(), "{command:?}");
    }
}

#[test]
fn memory_that_is_empty_or_wraps_is_refused() {
    let map = |flags: u32, offset: u64, address: u64, size: u64| {
        let mut body = words(&[32, flags]);
        body.extend([offset, address, size].iter().flat_map(|word| word.to_le_bytes()));
        parse::<ToServer>(&request(Command::DmaMap, &body), 1)
    };
    assert!(map(3, 0, u64::MAX - 0xfff, 0x1000).is_ok());
    assert!(map(0, u64::MAX, u64::MAX, 1).is_ok());
    for (flags, offset, address, size) in
        [(3, 0, 0, 0), (3, 0, u64::MAX, 2), (3, u64::MAX, 0, 2), (4, 0, 0, 1), (0x8000_0003, 0, 0, 1)]
    {
        assert_eq!(map(flags, offset, address, size).unwrap_err().errno(), EINVAL);
    }
    let unmap = |flags: u32, address: u64, size: u64, tail: usize| {
        let mut body = words(&[24, flags]);
        body.extend([address, size].iter().flat_map(|word| word.to_le_bytes()));
        body.resize(24 + tail, 0);
        parse::<ToServer>(&request(Command::DmaUnmap, &body), 0).map(drop)
    };
    assert_eq!(unmap(0, 0, 1, 0), Ok(()));
    assert_eq!(unmap(2, 0, 0, 0), Ok(()));
    for (flags, address, size, tail) in
        [(0, 0, 0, 0), (0, u64::MAX, 2, 0), (2, 0, 1, 0), (2, 1, 0, 0), (4, 0, 1, 0), (0, 0, 1, 16)]
    {
        assert_eq!(unmap(flags, address, size, tail).unwrap_err().errno(), EINVAL);
    }
    for (flags, tail) in [(1, 0), (1, 16), (3, 16)] {
        assert_eq!(unmap(flags, 0, 1, tail).unwrap_err().errno(), ENOTSUP);
    }
}

#[test]
fn interrupts_are_asked_for_in_one_way_at_a_time() {
    let set = |flags: u32, start: u32, count: u32, tail: usize, fds: usize| {
        let body = [words(&[20, flags, 2, start, count]), vec![1; tail]].concat();
        parse::<ToServer>(&request(Command::DeviceSetIrqs, &body), fds).map(drop)
    };
    let fine = [
        (0x21, 0, 0, 0, 0),
        (0x21, 0, 2048, 0, 0),
        (0x22, 0, 2048, 2048, 0),
        (0x24, 0, 16, 0, 16),
        (0x24, 0, 2048, 0, 0),
        (0x0c, 7, 1, 0, 1),
        (0x24, u32::MAX - 1, 1, 0, 1),
    ];
    for (flags, start, count, tail, fds) in fine {
        assert_eq!(set(flags, start, count, tail, fds), Ok(()), "{flags:#x}");
    }
    let wrong = [
        (0x20, 0, 1, 0, 0),        // no kind of data
        (0x23, 0, 1, 0, 0),        // two kinds
        (0x01, 0, 1, 0, 0),        // no action
        (0x31, 0, 1, 0, 0),        // two actions
        (0x61, 0, 1, 0, 0),        // an unknown one
        (0x21, 0, 2049, 0, 0),     // more than there are
        (0x22, 0, u32::MAX, 8, 0), // the same, with data
        (0x22, 0, 3, 2, 0),        // miscounted
        (0x22, 0, 0, 0, 0),        // data about none
        (0x24, 0, 0, 0, 0),
        (0x24, 0, 1, 4, 1), // data where descriptors belong
        (0x24, 0, 3, 0, 2), // neither all nor none
        (0x24, 0, 1, 0, 2),
        (0x24, 0, 17, 0, 16),
        (0x21, 0, 1, 0, 1),        // descriptors of no use
        (0x21, u32::MAX, 1, 0, 0), // beyond the end
    ];
    for (flags, start, count, tail, fds) in wrong {
        let error = set(flags, start, count, tail, fds).expect_err("refused");
        assert_eq!(error.errno(), EINVAL, "{flags:#x} {start} {count}");
    }
}

#[test]
fn more_data_than_a_message_carries_is_refused_as_too_big() {
    let count = MAX_DATA as u32 + 1;
    let name = "REGION_READ";
    let body = words(&[0, 0, 0, count]);
    let error = refused(&request(Command::RegionRead, &body), 0);
    assert_eq!((error, error.errno()), (MessageError::TooMuchData { name, count: count.into() }, E2BIG));
    let error = refused(&request(Command::MigDataRead, &words(&[8, u32::MAX])), 0);
    assert_eq!(error.errno(), E2BIG);
    let read = [golden::asked(Command::DmaRead).as_bytes(), &[0xff; 16]].concat();
    let read = [&read[..4], &32u32.to_le_bytes(), &read[8..]].concat();
    let error = parse::<ToClient>(&read, 0).unwrap_err();
    assert_eq!(error, MessageError::TooMuchData { name: "DMA_READ", count: u64::MAX });
}

#[test]
fn counts_that_differ_from_the_length_are_refused() {
    for count in [0, 3, 5, u32::MAX] {
        let body = [words(&[0, 0, 0, count]), vec![0; 4]].concat();
        let error = refused(&request(Command::RegionWrite, &body), 0);
        assert!(matches!(error, MessageError::Body { .. }), "{count}: {error}");
    }
    for (count, writes) in [(0u64, 1), (2, 1), (1 << 61, 0), (u64::MAX, 200)] {
        let body = [count.to_le_bytes().to_vec(), vec![0; 24 * writes]].concat();
        assert_eq!(refused(&request(Command::RegionWriteMulti, &body), 0).errno(), EINVAL, "{count}");
    }
    let write = [1u64.to_le_bytes().to_vec(), words(&[0, 0, 0, 9, 0, 0])].concat();
    assert!(matches!(refused(&request(Command::RegionWriteMulti, &write), 0), MessageError::Body { .. }));
}

#[test]
fn descriptors_that_no_message_of_the_kind_takes_are_refused() {
    for (message, bytes, fds) in golden::requests() {
        for got in (0..=MAX_FDS).filter(|got| !message.fds().admits(*got)) {
            let (name, rule) = (message.command().name(), message.fds());
            assert_eq!(refused(&bytes, got), MessageError::FdCount { name, got, rule });
        }
        assert!(parse::<ToServer>(&bytes, fds).is_ok());
    }
}

#[test]
fn sub_region_whose_descriptor_is_missing_is_refused() {
    let golden = golden::replies().into_iter().find(|(c, ..)| *c == Command::DeviceGetRegionIoFds);
    let (_, _, bytes, fds) = golden.unwrap();
    assert_eq!(fds, 2);
    assert!(parse::<ToClient>(&bytes, 3).is_ok());
    assert!(matches!(parse::<ToClient>(&bytes, 1), Err(MessageError::FdCount { got: 1, .. })));
    let mut unknown = bytes.clone();
    unknown[Header::LEN + 16 + 20] = 2;
    assert!(matches!(parse::<ToClient>(&unknown, 2), Err(MessageError::Body { .. })));
}

#[test]
fn text_that_is_not_json_is_refused_by_its_name() {
    let body = [&[0, 0, 0, 0], &b"{\"capabilities\":"[..]].concat();
    let error = refused(&request(Command::Version, &body), 0);
    assert!(matches!(error, MessageError::NotJson { .. }) && error.errno() == EINVAL, "{error}");
    let body = [&[0, 0, 0, 0], &br#"{"capabilities":{"pgsizes":"4k"}}"#[..]].concat();
    let error = refused(&request(Command::Version, &body), 0);
    assert_eq!(
        error.to_string(),
        "the capability pgsizes in VERSION is not a whole number from 0 to 2^64 - 1"
    );
}
