use std::fs::File;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::*;
use crate::vfio_user::golden;
use crate::vfio_user::{
    DeviceFlags, DeviceInfo, DmaFlags, DmaMap, DmaRead, DmaUnmap, DmaWrite, IrqFlags, IrqInfo, RegionCaps,
    RegionFlags, RegionInfo, RegionRead, RegionReadDone, RegionWrite, RegionWriteDone, SparseArea, ToServer,
    TwinSocket, Version,
};

const TIMEOUT: Duration = Duration::from_secs(10);

type Server = Connection<ToServer>;
/// What a scripted server was asked: the command, whether a reply is wanted, the descriptors that came.
type Asked = Vec<(Request, bool, usize)>;

/// The next message, for which a server waits.
fn next(server: &mut Server) -> Option<Frame<ToServer>> {
    loop {
        match server.receive().unwrap() {
            Received::Message(frame) => return Some(frame),
            Received::Rejected { error, .. } => panic!("the client sent what is malformed: {error}"),
            Received::WouldBlock => {
                server.flush().unwrap();
                let out = if server.pending_output() > 0 { PollFlags::OUT } else { PollFlags::empty() };
                poll(&mut [PollFd::new(server, PollFlags::IN | out)], None).unwrap();
            }
            Received::Closed => return None,
        }
    }
}

/// A client, and a server on a thread that does as it is told until the client hangs up.
fn with_server<T: Send + 'static>(run: impl FnOnce(Server) -> T + Send + 'static) -> (Client, JoinHandle<T>) {
    let (front, back) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || run(Connection::new(back)));
    (Client::new(front, TIMEOUT), server)
}

/// A server that answers whatever it is asked.
fn obliging(mut server: Server) -> Asked {
    let mut asked = Asked::new();
    while let Some(Frame { header, message, fds }) = next(&mut server) {
        let ToServer::Request(request) = message else { panic!("a reply to nothing: {message:?}") };
        if header.wants_reply() {
            let file = File::open("/dev/null").unwrap();
            let reply = reply_to(&request);
            let with_file =
                matches!(&reply, Reply::DeviceGetRegionInfo(info) if info.flags.contains(RegionFlags::MMAP));
            let files = if with_file { vec![file.as_fd()] } else { vec![] };
            server.send(&reply.to_bytes(&header), &files).unwrap();
        }
        asked.push((request, header.wants_reply(), fds.len()));
    }
    asked
}

fn reply_to(request: &Request) -> Reply {
    match request {
        Request::Version(proposed) => {
            let capabilities = Capabilities { max_msg_fds: 8, ..proposed.capabilities.clone() };
            Reply::Version(Version { capabilities, ..*proposed })
        }
        Request::DmaMap(_) => Reply::DmaMap,
        Request::DmaUnmap(unmap) => Reply::DmaUnmap(*unmap),
        Request::DeviceGetInfo(_) => {
            let flags = DeviceFlags::PCI | DeviceFlags::RESET;
            Reply::DeviceGetInfo(DeviceInfo { flags, num_regions: 9, num_irqs: 5 })
        }
        Request::DeviceGetRegionInfo(query) if query.index == 0 => {
            let info = RegionInfo::new(0, RegionFlags::all(), 0x2000, 0);
            let areas = vec![SparseArea { offset: 0x1000, size: 0x1000 }];
            Reply::DeviceGetRegionInfo(info.with_areas(areas).unwrap().fit(query.argsz))
        }
        Request::DeviceGetRegionInfo(query) => {
            Reply::DeviceGetRegionInfo(RegionInfo::new(query.index, RegionFlags::READ, 256, 0))
        }
        Request::DeviceGetIrqInfo(query) => {
            Reply::DeviceGetIrqInfo(IrqInfo { flags: IrqFlags::EVENTFD, index: query.index, count: 33 })
        }
        Request::DeviceSetIrqs(_) => Reply::DeviceSetIrqs,
        Request::RegionRead(read) => {
            let mut data = Data::zeroed(read.count as usize).unwrap();
            data.fill(read.offset as u8);
            Reply::RegionRead(RegionReadDone { offset: read.offset, region: read.region, data })
        }
        Request::RegionWrite(RegionWrite { offset, region, data }) => {
            Reply::RegionWrite(RegionWriteDone { offset: *offset, region: *region, count: data.len() as u32 })
        }
        Request::RegionWriteMulti(multi) => Reply::RegionWriteMulti(multi.writes().len() as u64),
        Request::DeviceReset => Reply::DeviceReset,
        _ => Reply::Failed(95),
    }
}

#[test]
fn session_from_version_to_reset_asks_and_understands() {
    let (mut client, server) = with_server(obliging);
    let version = client.negotiate(golden::qemu()).unwrap();
    assert_eq!((version.capabilities.max_msg_fds, client.server().max_msg_fds), (8, 8));
    let file = File::open("/dev/null").unwrap();
    let map = DmaMap { flags: DmaFlags::all(), offset: 0, address: 0, size: 0x1000 };
    client.dma_map(map, Some(file.as_fd())).unwrap();
    client.dma_map(DmaMap { address: 0x1000, ..map }, None).unwrap();
    client.dma_unmap(DmaUnmap::Range { address: 0, size: 0x1000 }).unwrap();
    client.dma_unmap(DmaUnmap::All).unwrap();
    assert_eq!(client.device_info().unwrap().num_irqs, 5);
    let (info, fd) = client.region_info(0).unwrap();
    assert_eq!(info.caps(), &RegionCaps::Sparse(vec![SparseArea { offset: 0x1000, size: 0x1000 }]));
    assert!(fd.is_some());
    assert!(client.region_info(7).unwrap().1.is_none());
    assert_eq!(client.irq_info(2).unwrap().count, 33);
    client.wire_irqs(2, 1, &[file.as_fd(); 19]).unwrap();
    client.disable_irqs(2).unwrap();
    let mut bytes = [0; 5];
    client.region_read(0, 0x1c, &mut bytes).unwrap();
    assert_eq!(bytes, [0x1c; 5]);
    client.region_write(7, 4, &[6, 0]).unwrap();
    client.region_write_posted(0, 0x1000, &[1; 4]).unwrap();
    let write = RegionWrite { offset: 1, region: 2, data: Data::new(&[3]).unwrap() };
    assert_eq!(client.region_write_multi(vec![write; 3]).unwrap(), 3);
    client.reset().unwrap();
    drop(client);

    let asked = server.join().unwrap();
    let fds: Vec<_> =
        asked.iter().filter(|(.., fds)| *fds > 0).map(|(m, _, fds)| (m.command(), *fds)).collect();
    let irqs = Command::DeviceSetIrqs;
    assert_eq!(fds, [(Command::DmaMap, 1), (irqs, 8), (irqs, 8), (irqs, 3)]);
    let regions = asked.iter().filter(|(m, ..)| m.command() == Command::DeviceGetRegionInfo).count();
    assert_eq!(regions, 3, "the first is asked for twice");
    let posted: Vec<_> = asked.iter().filter(|(_, wants, _)| !wants).map(|(m, ..)| m.command()).collect();
    assert_eq!(posted, [Command::RegionWrite]);
}

#[test]
fn commands_under_way_find_their_replies_in_any_order() {
    let (mut client, server) = with_server(|mut server| {
        let frames: Vec<_> = (0..4).map(|_| next(&mut server).unwrap()).collect();
        for frame in frames.iter().rev() {
            let ToServer::Request(request) = &frame.message else { panic!() };
            server.send(&reply_to(request).to_bytes(&frame.header), &[]).unwrap();
        }
        next(&mut server).is_none()
    });
    let read = |offset| Request::RegionRead(RegionRead { offset, region: 0, count: 1 });
    let tickets: Vec<_> = (0..4).map(|offset| client.send(&read(offset), &[]).unwrap()).collect();
    assert_eq!(client.under_way(), 4);
    for (offset, ticket) in tickets.into_iter().enumerate() {
        let (Reply::RegionRead(done), _) = client.await_reply(ticket).unwrap() else { panic!() };
        assert_eq!((done.offset, done.data[0]), (offset as u64, offset as u8));
    }
    drop(client);
    assert!(server.join().unwrap());
}

#[test]
fn numbers_start_at_0_and_wrap_around() {
    let (mut client, server) = with_server(|mut server| {
        let mut last = None;
        let mut count = 0u32;
        while let Some(frame) = next(&mut server) {
            let expected = last.map_or(0, |id: u16| id.wrapping_add(1));
            assert_eq!(frame.header.id, expected);
            last = Some(frame.header.id);
            count += 1;
        }
        count
    });
    for _ in 0..70_000 {
        client.post(&Request::DeviceReset, &[]).unwrap();
    }
    drop(client);
    assert_eq!(server.join().unwrap(), 70_000);
}

#[test]
fn refusal_tells_the_errno() {
    let (mut client, _server) = with_server(|mut server| {
        while let Some(frame) = next(&mut server) {
            server.send(frame.header.failure(17).as_bytes(), &[]).unwrap();
        }
    });
    let map = DmaMap { flags: DmaFlags::READ, offset: 0, address: 0, size: 1 };
    let error = client.dma_map(map, None).unwrap_err();
    assert!(matches!(error, ClientError::Refused { name: "DMA_MAP", errno: 17 }), "{error}");
    assert!(error.to_string().contains("File exists"), "{error}");
    // The client can go on.
    assert!(matches!(client.reset(), Err(ClientError::Refused { errno: 17, .. })));
}

#[test]
fn silence_ends_in_a_time_out() {
    let (front, _back) = UnixStream::pair().unwrap();
    let mut client = Client::new(front, Duration::from_millis(20));
    let error = client.reset().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { name: "DEVICE_RESET", .. }), "{error}");
}

#[test]
fn server_that_reads_nothing_ends_in_a_time_out() {
    let (front, _back) = UnixStream::pair().unwrap();
    let mut client = Client::new(front, Duration::from_millis(20));
    let write = [0; 1 << 20];
    let error = (0..10).find_map(|_| client.region_write_posted(0, 0, &write).err()).unwrap();
    assert!(matches!(error, ClientError::TimedOut { name: "REGION_WRITE", .. }), "{error}");
}

#[test]
fn closed_connection_is_told_with_the_command() {
    let (mut client, server) = with_server(|mut server| drop(next(&mut server)));
    let error = client.reset().unwrap_err();
    assert!(matches!(error, ClientError::Closed { name: "DEVICE_RESET" }), "{error}");
    server.join().unwrap();
}

#[test]
fn reply_to_nothing_or_to_something_else_is_unexpected() {
    for other in [Header::command(0, 9, 0, false), Header::command(1, 13, 0, false)] {
        let (mut client, _server) = with_server(move |mut server| {
            next(&mut server).unwrap();
            server.send(other.failure(1).as_bytes(), &[]).unwrap();
            next(&mut server).is_none()
        });
        let error = client.reset().unwrap_err();
        assert!(matches!(error, ClientError::Unexpected { .. }), "{error}");
    }
}

#[test]
fn malformed_reply_is_told() {
    let (mut client, _server) = with_server(|mut server| {
        let frame = next(&mut server).unwrap();
        let reply = frame.header.reply(1);
        server.send(&[reply.as_bytes(), &[0]].concat(), &[]).unwrap();
        next(&mut server).is_none()
    });
    let error = client.reset().unwrap_err();
    assert!(matches!(error, ClientError::Malformed(MessageError::Size { .. })), "{error}");
}

#[test]
fn version_that_was_not_proposed_is_unexpected() {
    let settle = |version: Version| {
        let (mut client, _server) = with_server(move |mut server| {
            let frame = next(&mut server).unwrap();
            server.send(&Reply::Version(version).to_bytes(&frame.header), &[]).unwrap();
            next(&mut server).is_none()
        });
        client.negotiate(Capabilities::default())
    };
    let twin = TwinSocket { supported: true, fd_index: None };
    let twin = Capabilities { twin_socket: Some(twin), ..Capabilities::default() };
    for version in [
        Version { major: 1, ..Version::default() },
        Version { minor: 1, ..Version::default() },
        Version { capabilities: twin, ..Version::default() },
    ] {
        assert!(matches!(settle(version), Err(ClientError::Unexpected { name: "VERSION", .. })));
    }
    assert!(settle(Version::default()).is_ok());
}

/// Memory from address 0x1000 on.
struct Page(Arc<Mutex<Vec<u8>>>);

impl LentMemory for Page {
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), u32> {
        let page = self.0.lock().unwrap();
        let at = address.checked_sub(0x1000).ok_or(14u32)? as usize;
        data.copy_from_slice(page.get(at..at + data.len()).ok_or(14u32)?);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), u32> {
        let mut page = self.0.lock().unwrap();
        let at = address.checked_sub(0x1000).ok_or(14u32)? as usize;
        page.get_mut(at..at + data.len()).ok_or(14u32)?.copy_from_slice(data);
        Ok(())
    }
}

/// A server that, before it answers a reset, reads and writes the client's memory and returns what it was told.
fn reaching(mut server: Server) -> Vec<DmaReply> {
    let asked = next(&mut server).unwrap();
    let write = DmaWrite { address: 0x1004, data: Data::new(&[7; 4]).unwrap(), layout: Default::default() };
    let requests = [
        DmaRequest::DmaRead(DmaRead { address: 0x1000, count: 2 }),
        DmaRequest::DmaWrite(write),
        DmaRequest::DmaRead(DmaRead { address: 0x1002, count: 4 }),
        DmaRequest::DmaRead(DmaRead { address: 0, count: 1 }),
    ];
    let mut told = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        server.send(&request.to_bytes(id as u16, false), &[]).unwrap();
        let reply = next(&mut server).unwrap();
        assert_eq!(reply.header.id, id as u16);
        let ToServer::Reply(reply) = reply.message else { panic!("{:?}", reply.message) };
        told.push(reply);
    }
    // An unknown command is refused, too, and a posted write is not answered.
    server.send(Header::command(9, 99, 0, false).as_bytes(), &[]).unwrap();
    server.send(&requests[1].to_bytes(10, true), &[]).unwrap();
    server.send(&Reply::DeviceReset.to_bytes(&asked.header), &[]).unwrap();
    loop {
        match server.receive().unwrap() {
            Received::Rejected { header, error } => {
                assert!(header.is_failure() && header.error == 95 && header.id == 9);
                assert_eq!(error, MessageError::UnknownCommand { command: 99 });
            }
            Received::Message(frame) => panic!("{frame:?}"),
            Received::WouldBlock => {
                poll(&mut [PollFd::new(&server, PollFlags::IN)], None).unwrap();
            }
            Received::Closed => return told,
        }
    }
}

#[test]
fn lent_memory_is_served_while_a_reply_is_awaited() {
    let (mut client, server) = with_server(reaching);
    let page = Arc::new(Mutex::new((0..16).collect::<Vec<u8>>()));
    client.lend(Box::new(Page(page.clone())));
    client.reset().unwrap();
    drop(client);
    let told = server.join().unwrap();
    let read = |address, bytes: &[u8]| {
        let (data, layout) = (Data::new(bytes).unwrap(), Default::default());
        DmaReply::DmaRead(DmaReadDone { address, data, layout })
    };
    let written = DmaReply::DmaWrite(DmaWriteDone::Told { address: 0x1004, count: 4 });
    assert_eq!(told, [read(0x1000, &[0, 1]), written, read(0x1002, &[2, 3, 7, 7]), DmaReply::Failed(14)]);
    assert_eq!(page.lock().unwrap()[..9], [0, 1, 2, 3, 7, 7, 7, 7, 8]);
}

#[test]
fn memory_that_was_not_lent_is_refused() {
    let (mut client, server) = with_server(reaching);
    client.reset().unwrap();
    drop(client);
    assert_eq!(server.join().unwrap(), vec![DmaReply::Failed(14); 4]);
}

#[test]
fn replies_that_pile_up_do_not_stop_what_is_being_sent() {
    let (mut client, server) = with_server(obliging);
    let big = vec![5; 200_000];
    let read = Request::RegionRead(RegionRead { offset: 5, region: 0, count: 60_000 });
    let mut tickets = Vec::new();
    for _ in 0..40 {
        tickets.push(client.send(&read, &[]).unwrap());
        client.region_write_posted(0, 0, &big).unwrap();
    }
    for ticket in tickets {
        let (Reply::RegionRead(done), _) = client.await_reply(ticket).unwrap() else { panic!() };
        assert_eq!(done.data[..], big[..60_000]);
    }
    drop(client);
    assert_eq!(server.join().unwrap().len(), 80);
}
