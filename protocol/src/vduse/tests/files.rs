//! Files, on a machine that need not have VDUSE: what comes of one that is not there or is another, and messages over a socket.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::error::Call;
use super::*;

fn null() -> Device {
    Device::over(OwnedFd::from(File::open("/dev/null").unwrap()))
}

/// The daemon's end and the kernel's.
fn channel() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

#[test]
fn control_without_the_module_says_what_to_load() {
    if Path::new(CONTROL_PATH).exists() {
        assert!(!matches!(Control::open(), Err(ControlError::Absent)));
        return;
    }
    let error = Control::open().unwrap_err();
    assert_eq!(error, ControlError::Absent);
    assert!(error.to_string().contains("modprobe vduse"), "{error}");
}

#[test]
fn device_that_is_not_there_is_absent() {
    let name: DeviceName = "never-made-by-anybody".parse().unwrap();
    let error = Device::open(&name).unwrap_err();
    assert_eq!(error, DeviceError::Absent(name));
    assert!(error.to_string().contains("never-made-by-anybody"), "{error}");
}

#[test]
fn every_call_of_a_file_that_is_no_device_says_that_it_is_unsupported() {
    let device = null();
    let page = rustix::fs::memfd_create("page", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let errors = [
        device.driver_features().err(),
        device.set_config(0, &[1]).err(),
        device.inject_config_irq().err(),
        device.set_up_queue(VqSetup { index: 0, max_size: 1, group: 0 }).err(),
        device.queue(0, false).err(),
        device.set_kick(0, None).err(),
        device.inject_irq(0).err(),
        device.iotlb_file(0, 0, 1).err(),
        device.iotlb_file(1, 0, 1).err(),
        device.iotlb_info(0, 0, 1).err(),
        device.register_memory(0, page.as_fd(), 0, 4096).err(),
        device.deregister_memory(0, 4096).err(),
    ];
    let mut calls = Vec::new();
    for error in errors {
        match error {
            Some(DeviceError::Unsupported { call }) => calls.push(call),
            other => panic!("{other:?}"),
        }
    }
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(calls.len(), 12, "each call has a name of its own: {calls:?}");
}

#[test]
fn each_refusal_of_the_kernel_has_its_meaning() {
    let call = Call { name: "IT", invalid: "it is wrong" };
    assert_eq!(call.refused(Errno::PERM), DeviceError::Broken { call: "IT" });
    assert_eq!(call.refused(Errno::NOTTY), DeviceError::Unsupported { call: "IT" });
    assert_eq!(call.refused(Errno::INVAL), DeviceError::Refused { call: "IT", why: "it is wrong" });
    let other = call.refused(Errno::NOMEM);
    assert_eq!(other, DeviceError::Failed { call: "IT", errno: Errno::NOMEM });
    assert!(other.to_string().starts_with("IT failed on a VDUSE device: "), "{other}");
}

#[test]
fn each_refusal_to_open_or_to_make_a_device_has_its_meaning() {
    let name: DeviceName = "vd0".parse().unwrap();
    let other = Errno::NOMEM;
    for errno in [Errno::ACCESS, Errno::PERM] {
        assert_eq!(ControlError::of_open(errno), ControlError::Denied(errno));
        assert_eq!(DeviceError::of_open(&name, errno), DeviceError::Denied { name: name.clone(), errno });
    }
    for errno in [Errno::NOENT, Errno::NODEV, Errno::NXIO] {
        assert_eq!(ControlError::of_open(errno), ControlError::Absent);
        assert_eq!(DeviceError::of_open(&name, errno), DeviceError::Absent(name.clone()));
    }
    assert_eq!(DeviceError::of_open(&name, Errno::BUSY), DeviceError::Busy(name.clone()));
    assert_eq!(ControlError::of_open(other), ControlError::Failed { call: "open", errno: other });
    let create = |errno| ControlError::of_create(&name, errno);
    assert_eq!(create(Errno::EXIST), ControlError::Exists(name.clone()));
    assert_eq!(create(Errno::PERM), ControlError::NotPermitted(name.clone()));
    assert_eq!(create(Errno::INVAL), ControlError::Refused(name.clone()));
    assert_eq!(create(other), ControlError::Failed { call: "VDUSE_CREATE_DEV", errno: other });
    let destroy = |errno| ControlError::of_destroy(&name, errno);
    assert_eq!(destroy(Errno::BUSY), ControlError::Busy(name.clone()));
    assert_eq!(destroy(Errno::INVAL), ControlError::NoDevice(name.clone()));
    assert_eq!(destroy(other), ControlError::Failed { call: "VDUSE_DESTROY_DEV", errno: other });
}

#[test]
fn kernel_that_does_not_know_features_has_none() {
    let control = Control::over(OwnedFd::from(File::open("/dev/null").unwrap()));
    assert_eq!(control.features(), Ok(VduseFeatures::empty()));
    assert_eq!(control.set_features(VduseFeatures::SUSPEND), Err(ControlError::Features(2)));
    let failed = |call| Err(ControlError::Failed { call, errno: Errno::NOTTY });
    assert_eq!(control.api_version().map(drop), failed("VDUSE_GET_API_VERSION"));
    assert_eq!(control.set_api_version(1), failed("VDUSE_SET_API_VERSION"));
    assert_eq!(control.create(&device(DeviceKind::Net)), failed("VDUSE_CREATE_DEV"));
    assert_eq!(control.destroy(&"vd0".parse().unwrap()), failed("VDUSE_DESTROY_DEV"));
    let wrong = DeviceConfig { features: 0, ..device(DeviceKind::Net) };
    assert_eq!(control.create(&wrong), Err(ControlError::Config(ConfigError::NoAccessPlatform)));
}

#[test]
fn messages_travel_whole_and_one_by_one() {
    let (daemon, kernel) = channel();
    let requests: Vec<_> = golden::requests().into_iter().map(|(request, _)| request).collect();
    for request in &requests {
        write_request(&kernel, request).unwrap();
    }
    for request in &requests {
        assert_eq!(read_request(&daemon), Ok(Some(*request)));
    }
    assert_eq!(read_request(&daemon), Ok(None));
    for (response, expected, _) in golden::responses() {
        write_response(&daemon, &response).unwrap();
        assert_eq!(read_response(&kernel, expected), Ok(Some(response)));
    }
    assert_eq!(read_response(&kernel, Expected::Done), Ok(None));
}

#[test]
fn malformed_request_does_not_hide_the_next() {
    let (daemon, kernel) = channel();
    let suspend = Request { id: 2, kind: RequestKind::Suspend };
    rustix::io::write(&kernel, &golden::message("63000000 01000000")).unwrap();
    rustix::io::write(&kernel, &[0; MESSAGE_LEN + 8]).unwrap();
    write_request(&kernel, &suspend).unwrap();
    let unknown = RequestError::Unknown { id: 1, kind: 0x63 };
    assert_eq!(read_request(&daemon), Err(ReadError::Malformed(unknown)));
    let too_long = RequestError::Length { len: MESSAGE_LEN + 1 };
    assert_eq!(read_request(&daemon), Err(ReadError::Malformed(too_long)));
    assert_eq!(read_request(&daemon), Ok(Some(suspend)));
}

#[test]
fn end_of_the_other_side_is_told() {
    let (daemon, kernel) = channel();
    drop(kernel);
    assert_eq!(read_request(&daemon), Err(ReadError::Closed));
    let done = Response { id: 1, answer: Answer::Done };
    assert_eq!(write_response(&daemon, &done), Err(WriteError::Failed(Errno::PIPE)));
}
