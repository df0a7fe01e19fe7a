use std::fmt::Debug;
use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::frame::{Fds, Incoming};

fn fds(count: usize) -> Fds {
    (0..count).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect()
}

fn parse<M: Incoming<Header = Header, Error = MessageError>>(
    bytes: &[u8],
    fd_count: usize,
) -> Result<(Header, M, usize), MessageError> {
    let (header, body) = Header::read_from_prefix(bytes).unwrap();
    assert_eq!(M::body_len(&header)?, body.len(), "the header's size is that of the body");
    let mut fds = fds(fd_count);
    M::decode(&header, body, &mut fds).map(|message| (header, message, fds.len()))
}

/// Decodes with the first number of descriptors that fits.
fn parse_with_any_fds<M>(bytes: &[u8]) -> Result<(Header, M, usize), MessageError>
where
    M: Incoming<Header = Header, Error = MessageError>,
{
    let mut result = parse(bytes, 0);
    for count in 1..=8 {
        if matches!(result, Err(MessageError::MissingFds { .. })) {
            result = parse(bytes, count);
        }
    }
    result
}

#[test]
fn tables_hold_each_number_once_and_name_it_like_its_variant() {
    let front = FrontendRequest::ALL.iter().map(|r| (r.row(), format!("{r:?}"))).collect::<Vec<_>>();
    let back = BackendRequest::ALL.iter().map(|r| (r.row(), format!("{r:?}"))).collect::<Vec<_>>();
    assert_eq!(front.iter().map(|(row, _)| row.id).collect::<Vec<_>>(), (1..=44).collect::<Vec<_>>());
    assert_eq!(back.iter().map(|(row, _)| row.id).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    for (row, variant) in front.iter().chain(&back) {
        assert_eq!(row.name.replace('_', "").to_lowercase(), variant.to_lowercase());
        assert!(row.size.max as usize <= MAX_BODY && row.reply_size.max as usize <= MAX_BODY);
    }
    assert_eq!(FrontendRequest::from_id(0), None);
    assert_eq!(FrontendRequest::from_id(45), None);
    assert!(FrontendRequest::ALL.iter().all(|r| FrontendRequest::from_id(r.id()) == Some(*r)));
}

#[test]
fn each_request_of_the_front_end_has_its_golden_bytes() {
    let golden = golden::frontend_messages();
    let ids: Vec<_> = golden.iter().map(|(message, _)| message.request().id()).collect();
    assert_eq!(ids, (1..=44).collect::<Vec<_>>());
    for (message, hex) in golden {
        let bytes = golden::bytes(hex);
        assert_eq!(message.to_bytes(false), bytes, "{message:?}");
        let (header, decoded, _) = parse_with_any_fds::<FrontendMessage>(&bytes).unwrap();
        assert_eq!(decoded, message);
        assert!(!header.is_reply() && !header.needs_reply());
    }
}

#[test]
fn each_reply_of_the_back_end_has_its_golden_bytes() {
    for (reply, hex) in golden::frontend_replies() {
        let bytes = golden::bytes(hex);
        assert_eq!(reply.to_bytes(), bytes, "{reply:?}");
        let (header, decoded, _) = parse_with_any_fds::<FrontendReply>(&bytes).unwrap();
        assert_eq!(decoded, reply);
        assert!(header.is_reply());
    }
}

#[test]
fn shmem_config_carries_all_sizes() {
    let mut config = ShmemConfig { regions: 1, sizes: Box::new([0; SHMEM_REGIONS]) };
    config.sizes[255] = 0x1234;
    let reply = FrontendReply::GetShmemConfig(config);
    let bytes = reply.to_bytes();
    assert_eq!(bytes.len(), Header::LEN + MAX_BODY);
    assert_eq!(bytes[..20], golden::bytes("2c000000 05000000 08080000 0100000000000000"));
    assert_eq!(bytes[2060..], golden::bytes("3412000000000000"));
    assert_eq!(parse::<FrontendReply>(&bytes, 0).unwrap().1, reply);
}

#[test]
fn each_message_of_the_back_end_channel_has_its_golden_bytes() {
    let ids: Vec<_> = golden::backend_messages().iter().map(|(m, _)| m.request().id()).collect();
    assert_eq!(ids, (1..=10).collect::<Vec<_>>());
    for (message, hex) in golden::backend_messages() {
        let bytes = golden::bytes(hex);
        assert_eq!(message.to_bytes(true), bytes, "{message:?}");
        let (header, decoded, _) = parse_with_any_fds::<BackendMessage>(&bytes).unwrap();
        assert_eq!(decoded, message);
        assert!(header.needs_reply());
    }
    for (reply, hex) in golden::backend_replies() {
        let bytes = golden::bytes(hex);
        assert_eq!(reply.to_bytes(), bytes, "{reply:?}");
        assert_eq!(parse::<BackendReply>(&bytes, 0).unwrap().1, reply);
    }
}

#[test]
fn header_that_cannot_be_followed_ends_the_stream() {
    let header = |flags, size| Header { request: 1, flags, size };
    let requests = [
        (header(0, 0), MessageError::Version { request: 1, flags: 0 }),
        (header(2, 0), MessageError::Version { request: 1, flags: 2 }),
        (header(5, 0), MessageError::ReplyAsRequest { request: 1 }),
        (header(1, 2057), MessageError::TooLong { request: 1, size: 2057, max: MAX_BODY }),
        (header(1, u32::MAX), MessageError::TooLong { request: 1, size: u32::MAX, max: MAX_BODY }),
    ];
    for (header, error) in requests {
        assert_eq!(FrontendMessage::body_len(&header), Err(error));
        assert!(error.ends_stream());
    }
    let error = MessageError::RequestAsReply { request: 1 };
    assert_eq!(FrontendReply::body_len(&header(1, 8)), Err(error));
    assert!(error.ends_stream());
    // Bits that nobody defines are ignored.
    assert_eq!(FrontendMessage::body_len(&header(0xffff_fff9, 8)), Ok(8));
}

#[test]
fn unknown_request_is_rejected_alone_and_can_be_answered() {
    let bytes = with_header(Header::request(77, 8, true), &[0; 8]);
    let error = parse::<FrontendMessage>(&bytes, 0).unwrap_err();
    assert_eq!(error, MessageError::UnknownRequest { request: 77 });
    assert!(!error.ends_stream());
    let reply = FrontendReply::ack(&Header::request(77, 8, true), 1);
    assert_eq!(reply.to_bytes(), golden::bytes("4d000000 05000000 08000000 0100000000000000"));
}

#[test]
fn payload_of_another_length_is_rejected_alone() {
    for request in FrontendRequest::ALL {
        let row = request.row();
        let lengths = [row.size.min.checked_sub(1), Some(row.size.max + 1)];
        for len in lengths.into_iter().flatten().filter(|len| *len as usize <= MAX_BODY) {
            let bytes = with_header(Header::request(row.id, len, false), &vec![0; len as usize]);
            let error = parse::<FrontendMessage>(&bytes, 0).unwrap_err();
            let Size { min, max } = row.size;
            assert_eq!(error, MessageError::Size { name: row.name, size: len as usize, min, max });
            assert!(!error.ends_stream());
        }
    }
}

#[test]
fn counts_that_differ_from_the_length_are_rejected() {
    let table = |count: u32, regions: usize| {
        let mut body = vec![0; 8 + 32 * regions];
        body[..4].copy_from_slice(&count.to_le_bytes());
        with_header(Header::request(5, body.len() as u32, false), &body)
    };
    for (count, regions) in [(1, 0), (0, 1), (9, 8), (u32::MAX, 1)] {
        let error = parse::<FrontendMessage>(&table(count, regions), 8).unwrap_err();
        assert!(matches!(error, MessageError::Body { name: "SET_MEM_TABLE", .. }), "{error}");
    }
    let mut body = vec![0; 12 + 32 + 7];
    body[0] = 1;
    let bytes = with_header(Header::request(5, body.len() as u32, false), &body);
    assert!(parse::<FrontendMessage>(&bytes, 1).is_err(), "a region and a bit");

    let config =
        with_header(Header::request(24, 14, false), &golden::bytes("00000000 03000000 00000000 0000"));
    let error = parse::<FrontendMessage>(&config, 0).unwrap_err();
    assert!(matches!(error, MessageError::Body { name: "GET_CONFIG", .. }), "{error}");
}

#[test]
fn fields_without_the_c_compilers_padding_are_taken_too() {
    let iotlb = FrontendMessage::IotlbMsg(Iotlb::Invalidate { iova: 0, size: 0 });
    let mut short = iotlb.to_bytes(false);
    short.truncate(Header::LEN + 26);
    short[8] = 26;
    assert_eq!(parse::<FrontendMessage>(&short, 0).unwrap().1, iotlb);

    let inflight = FrontendMessage::GetInflightFd(Inflight { queue_size: 9, ..Inflight::default() });
    let mut short = inflight.to_bytes(false);
    short.truncate(Header::LEN + 20);
    short[8] = 20;
    assert_eq!(parse::<FrontendMessage>(&short, 0).unwrap().1, inflight);
}

#[test]
fn descriptors_are_as_many_as_the_message_needs() {
    let kick = |has_fd| FrontendMessage::SetVringKick(VringFd { index: 0, has_fd }).to_bytes(false);
    let table = MemoryTable::new(vec![MemoryRegion::default(); 3]).unwrap();
    let table = FrontendMessage::SetMemTable(table).to_bytes(false);
    let (name, missing, surplus) = ("SET_VRING_KICK", 0, 1);
    let cases: [(Vec<u8>, usize, Result<usize, MessageError>); 12] = [
        (kick(true), 1, Ok(1)),
        (kick(true), 0, Err(MessageError::MissingFds { name, got: missing, min: 1 })),
        (kick(true), 2, Err(MessageError::SurplusFds { name, got: 2, max: 1 })),
        (kick(false), 0, Ok(0)),
        (kick(false), 1, Err(MessageError::SurplusFds { name, got: surplus, max: 0 })),
        (table.clone(), 3, Ok(3)),
        (table.clone(), 2, Err(MessageError::MissingFds { name: "SET_MEM_TABLE", got: 2, min: 3 })),
        (table, 4, Err(MessageError::SurplusFds { name: "SET_MEM_TABLE", got: 4, max: 3 })),
        (FrontendMessage::RemMemReg(MemoryRegion::default()).to_bytes(true), 1, Ok(0)),
        (
            FrontendMessage::AddMemReg(MemoryRegion::default()).to_bytes(true),
            0,
            Err(MessageError::MissingFds { name: "ADD_MEM_REG", got: 0, min: 1 }),
        ),
        (
            FrontendMessage::SetOwner.to_bytes(true),
            1,
            Err(MessageError::SurplusFds { name: "SET_OWNER", got: 1, max: 0 }),
        ),
        (
            FrontendMessage::SetLogBase(LogBase::Address(1)).to_bytes(true),
            1,
            Err(MessageError::SurplusFds { name: "SET_LOG_BASE", got: 1, max: 0 }),
        ),
    ];
    for (bytes, count, expected) in cases {
        let got = parse::<FrontendMessage>(&bytes, count).map(|(_, _, left)| left);
        assert_eq!(got, expected, "with {count} descriptors");
        assert!(got.err().is_none_or(|error| !error.ends_stream()));
    }
}

#[test]
fn replies_are_due_as_the_table_says() {
    use ProtocolFeatures as F;
    let due = |request: FrontendRequest, asked, features| request.row().reply_due(asked, features);
    assert!(due(FrontendRequest::GetFeatures, false, F::empty()));
    assert!(due(FrontendRequest::IotlbMsg, false, F::empty()));
    assert!(!due(FrontendRequest::SetVringNum, true, F::empty()));
    assert!(!due(FrontendRequest::SetVringNum, false, F::REPLY_ACK));
    assert!(due(FrontendRequest::SetVringNum, true, F::REPLY_ACK));
    assert!(due(FrontendRequest::SetMemTable, true, F::REPLY_ACK));
    assert!(due(FrontendRequest::SetLogBase, false, F::LOG_SHMFD));
    assert!(!due(FrontendRequest::SetLogBase, false, F::REPLY_ACK));
}

#[test]
fn more_than_fits_in_a_message_cannot_be_made() {
    assert_eq!(MemoryTable::new(vec![MemoryRegion::default(); 9]).unwrap_err().max, MAX_REGIONS);
    assert_eq!(Config::new(0, 0, vec![0; 257]).unwrap_err().len, 257);
    assert_eq!(CryptoSession::new(vec![0; 2049]).unwrap_err().max, MAX_CRYPTO);
}

/// A body that `size` admits, made of `noise`, with the counts that memory tables and configuration need, and what makes
/// an IOTLB message one.
fn body(name: &str, size: Size, noise: &[u8]) -> Vec<u8> {
    let spread = (size.max - size.min) as usize;
    let extra = usize::from(noise[0]);
    let len = match name {
        "SET_MEM_TABLE" => 8 + 32 * (extra % 9),
        "GET_CONFIG" | "SET_CONFIG" => 12 + extra % 257,
        "CREATE_CRYPTO_SESSION" => extra,
        _ => size.min as usize + if extra % 2 == 0 { 0 } else { spread },
    };
    let mut body: Vec<u8> = noise.iter().copied().cycle().take(len).collect();
    let mut count_at =
        |at: usize, count: usize| body[at..at + 4].copy_from_slice(&(count as u32).to_le_bytes());
    match name {
        "SET_MEM_TABLE" => count_at(0, (len - 8) / 32),
        "GET_CONFIG" | "SET_CONFIG" => count_at(4, len - 12),
        "IOTLB_MSG" => {
            // Addresses and a size that add up to less than 64 bits, a permission, and a kind.
            body[7] &= 0x7f;
            body[15] &= 0x7f;
            body[8] |= 1;
            body[23] &= 0x7f;
            body[24] = 1 + body[24] % 3;
            body[25] = 1 + body[25] % 4;
        }
        _ => {}
    }
    body
}

fn survives<M>(header: Header, body: &[u8], encode: impl Fn(&M) -> Vec<u8>)
where
    M: Incoming<Header = Header, Error = MessageError> + PartialEq + Debug,
{
    let (_, message, fds) = parse_with_any_fds::<M>(&with_header(header, body)).unwrap();
    let bytes = encode(&message);
    let (again, decoded, _) = parse::<M>(&bytes, fds).unwrap();
    assert_eq!(decoded, message);
    assert_eq!(again.request, header.request);
    assert_eq!(encode(&decoded), bytes);
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(noise in proptest::collection::vec(any::<u8>(), 64)) {
        for request in FrontendRequest::ALL {
            let row = request.row();
            let body = body(row.name, row.size, &noise);
            let header = Header::request(row.id, body.len() as u32, true);
            survives(header, &body, |message: &FrontendMessage| message.to_bytes(true));
        }
        for request in BackendRequest::ALL {
            let row = request.row();
            let body = body(row.name, row.size, &noise);
            let header = Header::request(row.id, body.len() as u32, false);
            survives(header, &body, |message: &BackendMessage| message.to_bytes(false));
        }
    }

    #[test]
    fn every_reply_survives_the_wire(noise in proptest::collection::vec(any::<u8>(), 64)) {
        for request in FrontendRequest::ALL {
            let row = request.row();
            let own = matches!(row.reply, ReplyRule::Own | ReplyRule::Postcopy);
            let body = body(if own { row.name } else { "" }, row.reply_size, &noise);
            survives(Header::reply(row.id, body.len() as u32), &body, FrontendReply::to_bytes);
            if row.is_ack(8) {
                survives(Header::reply(row.id, 8), &noise[..8], FrontendReply::to_bytes);
            }
        }
        for request in BackendRequest::ALL {
            survives(Header::reply(request.id(), 8), &noise[..8], BackendReply::to_bytes);
        }
    }
}
