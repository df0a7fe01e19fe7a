use std::fmt::Debug;
use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::frame::{Decoded, Decoder, Fds, Incoming, MAX_FDS};

mod refused;
mod socket;

fn fds(count: usize) -> Fds {
    (0..count).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect()
}

fn parse<M>(bytes: &[u8], fd_count: usize) -> Result<(Header, M), MessageError>
where
    M: Incoming<Header = Header, Error = MessageError>,
{
    let (header, body) = Header::read_from_prefix(bytes).unwrap();
    assert_eq!(M::body_len(&header)?, body.len(), "the header's size is that of the message");
    M::decode(&header, body, &mut fds(fd_count)).map(|message| (header, message))
}

/// A command of the client with this payload.
fn request(command: Command, body: &[u8]) -> Vec<u8> {
    let header = Header::command(0x0102, command.id(), body.len(), false);
    [header.as_bytes(), body].concat()
}

#[test]
fn commands_have_the_numbers_of_the_specification_and_one_direction() {
    let numbers: Vec<u16> = Command::ALL.iter().map(|command| command.id()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18]);
    for command in Command::ALL {
        assert_eq!(command.name().replace('_', "").to_lowercase(), format!("{command:?}").to_lowercase());
        assert_eq!(Command::from_id(command.id()), Some(*command));
        let ways = [Request::COMMANDS, DmaRequest::COMMANDS].map(|way| way.contains(command));
        assert_ne!(ways[0], ways[1], "{command:?}");
    }
    assert!([0, 14, 19, u16::MAX].into_iter().all(|id| Command::from_id(id).is_none()));
}

#[test]
fn each_command_of_the_client_has_its_golden_bytes() {
    let golden = golden::requests();
    for command in Request::COMMANDS {
        assert!(golden.iter().any(|(message, ..)| message.command() == *command), "{command:?}");
    }
    for (message, bytes, fds) in golden {
        assert_eq!(message.to_bytes(0x0102, false), bytes, "{message:?}");
        assert!(message.fds().admits(fds), "{message:?}");
        let (header, decoded) = parse::<ToServer>(&bytes, fds).unwrap();
        assert_eq!(decoded, ToServer::Request(message));
        assert!(!header.is_reply() && header.wants_reply());
    }
}

#[test]
fn each_reply_of_the_server_has_its_golden_bytes() {
    let golden = golden::replies();
    for command in Request::COMMANDS {
        assert!(golden.iter().any(|(_, reply, ..)| reply.command() == Some(*command)), "{command:?}");
    }
    for (command, reply, bytes, fds) in golden {
        assert_eq!(reply.to_bytes(&golden::asked(command)), bytes, "{reply:?}");
        assert!(reply.fds().admits(fds), "{reply:?}");
        let (header, decoded) = parse::<ToClient>(&bytes, fds).unwrap();
        assert_eq!(header.is_failure(), matches!(reply, Reply::Failed(_)));
        assert_eq!(decoded, ToClient::Reply(reply));
        assert!(header.is_reply() && !header.wants_reply());
    }
}

#[test]
fn both_directions_of_memory_accesses_have_their_golden_bytes() {
    for (message, bytes) in golden::dma_requests() {
        assert_eq!(message.to_bytes(0x0102, false), bytes, "{message:?}");
        assert_eq!(parse::<ToClient>(&bytes, 0).unwrap().1, ToClient::Request(message));
    }
    for (command, reply, bytes) in golden::dma_replies() {
        assert_eq!(reply.to_bytes(&golden::asked(command)), bytes, "{reply:?}");
        assert_eq!(parse::<ToServer>(&bytes, 0).unwrap().1, ToServer::Reply(reply));
    }
}

#[test]
fn reply_to_dma_write_is_taken_with_a_count_of_either_width() {
    let narrow = golden::bytes("0201 0c00 1c000000 01000000 00000000 0010000000000000 03000000");
    let told = DmaReply::DmaWrite(DmaWriteDone::Told { address: 0x1000, count: 3 });
    assert_eq!(parse::<ToServer>(&narrow, 0).unwrap().1, ToServer::Reply(told));
}

#[test]
fn posted_command_wants_no_reply() {
    let write = RegionWrite { offset: 0x1000, region: 0, data: Data::new(&[1; 4]).unwrap() };
    let bytes = Request::RegionWrite(write.clone()).to_bytes(9, true);
    let expected = "0900 0a00 24000000 10000000 00000000 0010000000000000 00000000 04000000 01010101";
    assert_eq!(bytes, golden::bytes(expected));
    let (header, message) = parse::<ToServer>(&bytes, 0).unwrap();
    assert!(!header.wants_reply() && !header.is_reply());
    assert_eq!(message, ToServer::Request(Request::RegionWrite(write)));
}

#[test]
fn argsz_beyond_the_fields_is_fine() {
    let mut bytes = golden::bytes(
        "0201 0500 30000000 00000000 00000000 ffffffff 00000000 08000000 00000000 0000000000000000 0000000000000000",
    );
    let query = QueryRegion { argsz: u32::MAX, index: 8 };
    assert_eq!(
        parse::<ToServer>(&bytes, 0).unwrap().1,
        ToServer::Request(Request::DeviceGetRegionInfo(query))
    );
    // The other fields of a question are ignored.
    bytes[20..24].fill(0xff);
    bytes[28..].fill(0xff);
    assert_eq!(
        parse::<ToServer>(&bytes, 0).unwrap().1,
        ToServer::Request(Request::DeviceGetRegionInfo(query))
    );
}

#[test]
fn areas_are_found_behind_capabilities_that_nobody_knows() {
    let area = SparseArea { offset: 0x1000, size: 0x2000 };
    let head = |argsz: u32, cap_offset: u32| {
        let fields = [argsz, 0xf, 0, cap_offset, 0x4000, 0, 0, 0];
        fields.map(u32::to_le_bytes).concat()
    };
    let other = golden::bytes("0300 0100 30000000 aaaaaaaaaaaaaaaa");
    let sparse = golden::bytes("0100 0100 00000000 01000000 00000000 0010000000000000 0020000000000000");
    let reply = |body: &[u8]| {
        let header = golden::asked(Command::DeviceGetRegionInfo).reply(body.len());
        parse::<ToClient>(&[header.as_bytes(), body].concat(), 1).map(|(_, message)| match message {
            ToClient::Reply(Reply::DeviceGetRegionInfo(info)) => info.caps().clone(),
            other => panic!("{other:?}"),
        })
    };
    let whole = [head(80, 32), other.clone(), sparse.clone()].concat();
    assert_eq!(reply(&whole), Ok(RegionCaps::Sparse(vec![area])));
    let skipped = [head(80, 48), other.clone(), sparse].concat();
    assert_eq!(reply(&skipped), Ok(RegionCaps::Sparse(vec![area])));
    let last = golden::bytes("0300 0100 00000000");
    assert_eq!(reply(&[head(40, 32), last].concat()), Ok(RegionCaps::None));
    assert_eq!(reply(&head(80, 32)), Ok(RegionCaps::Omitted { argsz: 80 }));
    // Backwards, onto itself, into the fields, behind the end.
    for next in [32u32, 36, 39, 4, 33, 0xffff_fff0] {
        let cap = [golden::bytes("0300 0100"), next.to_le_bytes().to_vec()].concat();
        let error = reply(&[head(40, 32), cap].concat()).unwrap_err();
        assert!(matches!(error, MessageError::Body { .. }), "{next}: {error}");
    }
    for count in [2u32, 256, 257, u32::MAX] {
        let miscounted =
            [golden::bytes("0100 0100 00000000"), count.to_le_bytes().to_vec(), vec![0; 20]].concat();
        assert!(reply(&[head(64, 32), miscounted].concat()).is_err(), "{count}");
    }
}

#[test]
fn what_does_not_fit_the_argsz_is_left_out_and_its_length_is_told() {
    let area = SparseArea::default();
    let info = RegionInfo::new(0, RegionFlags::all(), 1, 0).with_areas(vec![area; 3]).unwrap();
    assert_eq!(info.argsz(), 32 + 16 + 48);
    assert_eq!(info.clone().fit(96), info);
    assert_eq!(info.clone().fit(u32::MAX), info);
    assert_eq!(info.clone().fit(95).caps(), &RegionCaps::Omitted { argsz: 96 });
    let plain = RegionInfo::new(1, RegionFlags::READ, 1, 0);
    assert_eq!(plain.clone().fit(32), plain);

    let sub =
        SubRegion { offset: 0, size: 8, fd_index: 15, flags: 0, kind: IoFdKind::Ioeventfd { datamatch: 0 } };
    let io_fds = RegionIoFds::new(1, vec![sub]).unwrap();
    assert_eq!(io_fds.clone().fit(56), io_fds);
    assert_eq!(io_fds.fit(55).sub_regions(), &SubRegions::Omitted { count: 1, argsz: 56 });
}

#[test]
fn more_than_fits_in_a_message_cannot_be_made() {
    assert!(Data::new(&vec![0; MAX_DATA]).is_ok() && Data::zeroed(MAX_DATA).is_ok());
    assert_eq!(Data::new(&vec![0; MAX_DATA + 1]).unwrap_err().max, MAX_DATA);
    assert_eq!(Data::zeroed(usize::MAX).unwrap_err().len, usize::MAX);
    assert!(RegionWriteMulti::new(vec![RegionWrite::default(); MAX_WRITES + 1]).is_err());
    let long = RegionWrite { data: Data::zeroed(9).unwrap(), ..RegionWrite::default() };
    assert!(RegionWriteMulti::new(vec![long]).is_err());
    let info = RegionInfo::new(0, RegionFlags::all(), 1, 0);
    assert!(info.clone().with_areas(vec![SparseArea::default(); MAX_AREAS]).is_ok());
    assert!(info.with_areas(vec![SparseArea::default(); MAX_AREAS + 1]).is_err());
    let sub =
        SubRegion { offset: 0, size: 8, fd_index: 16, flags: 0, kind: IoFdKind::Ioeventfd { datamatch: 0 } };
    assert!(RegionIoFds::new(0, vec![sub]).is_err());
    assert!(RegionIoFds::new(0, vec![SubRegion { fd_index: 0, ..sub }; MAX_SUB_REGIONS + 1]).is_err());
    for (start, count) in [(0, 2049), (u32::MAX, 1), (u32::MAX - 5, 6)] {
        assert!(SetIrqs::new(0, start, IrqAction::Mask, IrqData::None { count }).is_err(), "{start} {count}");
    }
}

#[test]
fn transfer_is_the_data_in_either_direction() {
    let data = Data::zeroed(5).unwrap();
    let cases = [
        (Request::RegionRead(RegionRead { count: 7, ..RegionRead::default() }), 7),
        (Request::RegionWrite(RegionWrite { data: data.clone(), ..RegionWrite::default() }), 5),
        (Request::MigDataRead(MigrationRead { argsz: 8, size: 9 }), 9),
        (Request::MigDataWrite(MigrationData(data)), 5),
        (Request::DeviceReset, 0),
    ];
    assert!(cases.iter().all(|(request, bytes)| request.transfer() == *bytes));
}

/// The longest messages of both ends are decoded again.
#[test]
fn longest_messages_survive_the_wire() {
    let data = Data::zeroed(MAX_DATA).unwrap();
    let write = Request::RegionWrite(RegionWrite { offset: 0, region: 0, data: data.clone() });
    let bytes = write.to_bytes(0, false);
    assert_eq!(bytes.len(), Header::LEN + MAX_BODY);
    assert_eq!(parse::<ToServer>(&bytes, 0).unwrap().1, ToServer::Request(write));
    let read = DmaReply::DmaRead(DmaReadDone { address: 0, data, layout: DmaLayout::Specified });
    let bytes = read.to_bytes(&golden::asked(Command::DmaRead));
    assert_eq!(parse::<ToServer>(&bytes, 0).unwrap().1, ToServer::Reply(read));
    let multi = RegionWriteMulti::new(vec![RegionWrite::default(); MAX_WRITES]).unwrap();
    let multi = Request::RegionWriteMulti(multi);
    assert_eq!(parse::<ToServer>(&multi.to_bytes(0, false), 0).unwrap().1, ToServer::Request(multi));
    let areas = vec![SparseArea::default(); MAX_AREAS];
    let info = Reply::DeviceGetRegionInfo(RegionInfo::default().with_areas(areas).unwrap());
    let bytes = info.to_bytes(&golden::asked(Command::DeviceGetRegionInfo));
    assert_eq!(parse::<ToClient>(&bytes, 0).unwrap().1, ToClient::Reply(info));
}

/// Golden messages of one end as a stream: each with its descriptors and what it is.
fn to_server() -> Vec<(Vec<u8>, usize, ToServer)> {
    let requests = golden::requests().into_iter().map(|(m, bytes, fds)| (bytes, fds, ToServer::Request(m)));
    let replies = golden::dma_replies().into_iter().map(|(_, m, bytes)| (bytes, 0, ToServer::Reply(m)));
    requests.chain(replies).collect()
}

fn to_client() -> Vec<(Vec<u8>, usize, ToClient)> {
    let replies = golden::replies().into_iter().map(|(_, m, bytes, fds)| (bytes, fds, ToClient::Reply(m)));
    let requests = golden::dma_requests().into_iter().map(|(m, bytes)| (bytes, 0, ToClient::Request(m)));
    replies.chain(requests).collect()
}

/// Feeds the messages in pieces of these lengths, again and again, and compares what comes out.
fn in_pieces<M>(messages: &[(Vec<u8>, usize, M)], lengths: &[usize])
where
    M: Incoming<Header = Header, Error = MessageError> + PartialEq + Debug,
{
    let mut decoder = Decoder::<M>::new();
    let mut lengths = lengths.iter().copied().cycle();
    for (bytes, fd_count, expected) in messages {
        let mut fds = fds(*fd_count);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = &rest[..lengths.next().unwrap().min(rest.len())];
            let (taken, decoded) = decoder.feed(piece, std::mem::take(&mut fds)).unwrap();
            rest = &rest[taken..];
            match decoded {
                Some(Decoded::Message(frame)) => {
                    assert_eq!((&frame.message, frame.fds.len()), (expected, *fd_count));
                    assert!(rest.is_empty());
                }
                Some(Decoded::Rejected { error, .. }) => panic!("{expected:?}: {error}"),
                None => assert!(!rest.is_empty(), "{expected:?} is whole and was not told"),
            }
        }
    }
    assert!(!decoder.mid_message());
}

fn survives<M>(bytes: &[u8], fds: usize, encode: impl Fn(&M, &Header) -> Vec<u8>)
where
    M: Incoming<Header = Header, Error = MessageError> + PartialEq + Debug,
{
    let Ok((header, message)) = parse::<M>(bytes, fds) else { return };
    let again = encode(&message, &header);
    let (_, decoded) = parse::<M>(&again, fds).unwrap();
    assert_eq!(decoded, message);
    assert_eq!(encode(&decoded, &header), again);
}

fn encode_to_server(message: &ToServer, header: &Header) -> Vec<u8> {
    match message {
        ToServer::Request(request) => request.to_bytes(header.id, !header.wants_reply()),
        ToServer::Reply(reply) => reply.to_bytes(header),
    }
}

fn encode_to_client(message: &ToClient, header: &Header) -> Vec<u8> {
    match message {
        ToClient::Request(request) => request.to_bytes(header.id, !header.wants_reply()),
        ToClient::Reply(reply) => reply.to_bytes(header),
    }
}

proptest! {
    #[test]
    fn pieces_of_any_length_give_the_same_messages(lengths in proptest::collection::vec(1usize..90, 1..40)) {
        in_pieces(&to_server(), &lengths);
        in_pieces(&to_client(), &lengths);
    }

    #[test]
    fn damaged_messages_are_refused_or_survive_the_wire(
        which in any::<prop::sample::Index>(),
        fds in 0..=MAX_FDS,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = which.get(&to_server()).0.clone();
        let mut back = which.get(&to_client()).0.clone();
        for (at, byte) in damage {
            // Anything but the length, which the stream is cut by.
            let place = |len: usize| Some(at.index(len)).filter(|at| !(4..8).contains(at));
            if let Some(at) = place(bytes.len()) { bytes[at] = byte; }
            if let Some(at) = place(back.len()) { back[at] = byte; }
        }
        survives::<ToServer>(&bytes, fds, encode_to_server);
        survives::<ToClient>(&back, fds, encode_to_client);
    }

    #[test]
    fn accesses_survive_the_wire(
        offset: u64, region: u32, data in proptest::collection::vec(any::<u8>(), 0..64), count in 0..=MAX_DATA as u32,
    ) {
        let data = Data::new(&data).unwrap();
        let requests = [
            Request::RegionRead(RegionRead { offset, region, count }),
            Request::RegionWrite(RegionWrite { offset, region, data: data.clone() }),
        ];
        for request in requests {
            let bytes = request.to_bytes(7, false);
            prop_assert_eq!(parse::<ToServer>(&bytes, 0).unwrap().1, ToServer::Request(request));
        }
        let dma = [
            DmaRequest::DmaRead(DmaRead { address: offset, count: count.into() }),
            DmaRequest::DmaWrite(DmaWrite { address: offset, data, layout: DmaLayout::Specified }),
        ];
        for request in dma {
            let bytes = request.to_bytes(7, false);
            prop_assert_eq!(parse::<ToClient>(&bytes, 0).unwrap().1, ToClient::Request(request));
        }
    }

    #[test]
    fn lists_survive_the_wire(
        areas in proptest::collection::vec(any::<(u64, u64)>(), 0..20),
        subs in proptest::collection::vec((any::<u64>(), any::<u64>(), 0u32..16, any::<u32>(), any::<bool>()), 0..20),
        argsz in 16u32..1000,
    ) {
        let areas = areas.into_iter().map(|(offset, size)| SparseArea { offset, size }).collect();
        let info = RegionInfo::new(1, RegionFlags::MMAP, 5, 6).with_areas(areas).unwrap().fit(argsz);
        let reply = Reply::DeviceGetRegionInfo(info);
        let bytes = reply.to_bytes(&golden::asked(Command::DeviceGetRegionInfo));
        prop_assert!(bytes.len() <= Header::LEN + argsz.max(32) as usize);
        prop_assert_eq!(parse::<ToClient>(&bytes, 1).unwrap().1, ToClient::Reply(reply));

        let sub = |(offset, value, fd_index, flags, event)| SubRegion {
            offset, size: 8, fd_index, flags,
            kind: if event { IoFdKind::Ioeventfd { datamatch: value } } else { IoFdKind::Ioregionfd { user_data: value } },
        };
        let info = RegionIoFds::new(2, subs.into_iter().map(sub).collect()).unwrap().fit(argsz);
        let reply = Reply::DeviceGetRegionIoFds(info);
        let bytes = reply.to_bytes(&golden::asked(Command::DeviceGetRegionIoFds));
        prop_assert!(bytes.len() <= Header::LEN + argsz as usize);
        prop_assert_eq!(parse::<ToClient>(&bytes, reply.fds().max()).unwrap().1, ToClient::Reply(reply));
    }
}
