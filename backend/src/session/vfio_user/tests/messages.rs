//! What is answered to what.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_protocol::vfio_user::{
    Capabilities, ClientError, Command, Data, DeviceFlags, Feature, Header, IrqAction, IrqData,
    MigrationRead, RegionCaps, RegionFlags, RegionWrite, Request, SetIrqs, SparseArea, SubRegions, Version,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::host::Host;
use super::{Server, refused};
use crate::sys::EventFd;
use crate::worker::Mode;

#[test]
fn nothing_is_obeyed_before_a_version_is_agreed_on() {
    let server = Server::start(Mode::Event);
    let mut client = server.stranger();
    assert_eq!(refused(client.device_info()), Errno::INVAL);
    assert_eq!(refused(client.reset()), Errno::INVAL);
    let strange = Request::Version(Version { major: 1, minor: 0, capabilities: Capabilities::default() });
    assert_eq!(refused(client.call(&strange, &[])), Errno::INVAL);
    let agreed = client.negotiate(Capabilities { write_multiple: true, ..Default::default() }).unwrap();
    assert!(agreed.capabilities.write_multiple && agreed.capabilities.twin_socket.is_none());
    assert_eq!(refused(client.negotiate(Capabilities::default())), Errno::INVAL);
    assert!(client.device_info().is_ok());
}

#[test]
fn a_function_has_the_regions_and_interrupts_of_pci() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let info = client.device_info().unwrap();
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (DeviceFlags::RESET | DeviceFlags::PCI, 9, 5));
    let sizes: Vec<u64> = (0..9).map(|index| client.region_info(index).unwrap().0.size).collect();
    assert_eq!(sizes, [0x2000, 0, 0, 0, 0x2000, 0, 0, 4096, 0]);
    let counts: Vec<u32> = (0..5).map(|index| client.irq_info(index).unwrap().count).collect();
    assert_eq!(counts, [1, 0, 3, 1, 1]);
    assert_eq!(refused(client.region_info(9)), Errno::INVAL);
    assert_eq!(refused(client.irq_info(5)), Errno::INVAL);
}

#[test]
fn no_region_is_reached_by_descriptors_and_wrong_questions_are_refused() {
    let server = Server::start(Mode::Busy);
    let mut client = server.client();
    for index in 0..9 {
        let (info, fds) = client.region_io_fds(index).unwrap();
        assert_eq!((info.index(), info.sub_regions()), (index, &SubRegions::Given(Vec::new())));
        assert!(fds.is_empty());
    }
    for index in [9, 10, u32::MAX] {
        assert_eq!(refused(client.region_io_fds(index)), Errno::INVAL);
    }
    // Argsz, flags, index, count.
    let mut socket = UnixStream::from(client.as_fd().try_clone_to_owned().unwrap());
    let mut ask = |fields: &[u32]| {
        let command = Command::DeviceGetRegionIoFds.id();
        let header = Header::command(5, command, fields.len() * 4, false);
        socket.write_all(&[header.as_bytes(), fields.as_bytes()].concat()).unwrap();
        let mut reply = [0; 16];
        socket.read_exact(&mut reply).unwrap();
        let reply = Header::read_from_bytes(&reply).unwrap();
        let mut body = vec![0; reply.size as usize - 16];
        socket.read_exact(&mut body).unwrap();
        (reply.is_failure().then(|| Errno::from_raw_os_error(reply.error as i32)), body)
    };
    let refused = (Some(Errno::INVAL), Vec::new());
    for wrong in [&[16, 1, 0, 0], &[16, 0, 0, 1], &[15, 0, 0, 0], &[0, 0, 0, 0], &[16, 0, 9, 0]] {
        assert_eq!(ask(wrong), refused, "{wrong:?}");
    }
    for wrong in [&[16, 0, 0][..], &[16, 0, 0, 0, 0]] {
        assert_eq!(ask(wrong), refused, "{wrong:?}");
    }
    for argsz in [16, 4096, u32::MAX] {
        assert_eq!(ask(&[argsz, 0, 4, 0]), (None, [16u32, 0, 4, 0].as_bytes().to_vec()), "{argsz}");
    }
}

#[test]
fn doorbells_can_be_mapped_only_where_workers_poll() {
    for (mode, mappable) in [(Mode::Event, false), (Mode::Adaptive, false), (Mode::Busy, true)] {
        let server = Server::start(mode);
        let mut client = server.client();
        let (info, file) = client.region_info(0).unwrap();
        assert_eq!(info.flags.contains(RegionFlags::MMAP), mappable);
        assert_eq!(file.is_some(), mappable);
        let page = RegionCaps::Sparse(vec![SparseArea { offset: 4096, size: 4096 }]);
        assert_eq!(*info.caps(), if mappable { page } else { RegionCaps::None });
    }
}

#[test]
fn an_access_beyond_a_region_is_refused_and_an_odd_one_is_not() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let mut byte = [0];
    for (region, offset) in [(0, 0x2000), (7, 4096), (7, u64::MAX), (1, 0), (8, 0), (9, 0), (u32::MAX, 0)] {
        assert_eq!(refused(client.region_read(region, offset, &mut byte)), Errno::INVAL, "{region} {offset}");
        assert_eq!(refused(client.region_write(region, offset, &byte)), Errno::INVAL, "{region} {offset}");
    }
    for (offset, len) in [(0, 3), (1, 1), (0x13, 4), (0x1fff, 1), (0, 0x2000), (0x1001, 2)] {
        client.region_read(0, offset, &mut vec![0; len]).unwrap();
        client.region_write(0, offset, &vec![0xff; len]).unwrap();
    }
    let mut ids = [0; 4];
    client.region_read(7, 0, &mut ids).unwrap();
    assert_eq!(ids, [0x36, 0x1b, 0x10, 0x00]);
}

#[test]
fn migration_and_features_are_refused_and_the_stream_goes_on() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let feature = Feature { argsz: 8, flags: Feature::GET | 1, data: Data::default() };
    assert_eq!(refused(client.call(&Request::DeviceFeature(feature), &[])), Errno::NOTSUP);
    let read = MigrationRead { argsz: 8, size: 16 };
    assert_eq!(refused(client.call(&Request::MigDataRead(read), &[])), Errno::NOTSUP);
    assert!(client.device_info().is_ok());
}

#[test]
fn several_writes_in_one_message_are_all_done() {
    let server = Server::start(Mode::Event);
    let mut client = server.client();
    let write = |offset, value: u32| RegionWrite {
        offset,
        region: 0,
        data: Data::new(&value.to_le_bytes()).unwrap(),
    };
    assert_eq!(client.region_write_multi(vec![write(0x24, 0x000f_000f), write(0x28, 0x7000)]).unwrap(), 2);
    let mut register = [0; 4];
    client.region_read(0, 0x24, &mut register).unwrap();
    assert_eq!(register, [0x0f, 0, 0x0f, 0]);
    client.region_read(0, 0x28, &mut register).unwrap();
    assert_eq!(register, [0, 0x70, 0, 0]);
}

#[test]
fn interrupts_are_wired_within_their_number_only() {
    let server = Server::start(Mode::Event);
    let mut host = Host::new(server.client());
    let events: Vec<EventFd> = (0..3).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = events.iter().map(|event| event.as_fd()).collect();
    host.client.wire_irqs(2, 0, &fds).unwrap();
    assert_eq!(refused(host.client.wire_irqs(2, 1, &fds)), Errno::INVAL);
    assert_eq!(refused(host.client.wire_irqs(1, 0, &fds)), Errno::INVAL);
    let wrong = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(refused(host.client.wire_irqs(0, 0, &[wrong.as_fd()])), Errno::INVAL);
    let mask = SetIrqs::new(2, 0, IrqAction::Mask, IrqData::None { count: 1 }).unwrap();
    assert_eq!(refused(host.client.set_irqs(mask, &[])), Errno::NOTSUP);
    host.client.disable_irqs(2).unwrap();
    assert!(host.client.device_info().is_ok());
}

#[test]
fn a_second_client_is_sent_away_while_the_first_is_there_and_served_after_it() {
    let server = Server::start(Mode::Event);
    let host = Host::new(server.client());
    let mut second = server.stranger();
    assert!(matches!(
        second.negotiate(Capabilities::default()),
        Err(ClientError::Closed { .. } | ClientError::Receive(_))
    ));
    let mut third = server.stranger();
    let gone = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(host);
    });
    third.negotiate(Capabilities::default()).unwrap();
    gone.join().unwrap();
    assert_eq!(Host::new(third).status(), 1);
}
