use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::{Shown, vduse, vhost_vdpa};

/// Direction and number of an ioctl: bits 30 and 31, and 0 to 7.
fn parts(opcode: Opcode) -> (u32, u32) {
    (opcode >> 30, opcode & 0xff)
}

/// Direction and number of an ioctl in a header of the kernel's, if it knows the name.
fn in_header(header: &str, name: &str) -> Option<(u32, u32)> {
    let definition = header.split("#define ").find_map(|rest| {
        let rest = rest.strip_prefix(name)?;
        rest.starts_with([' ', '\t']).then(|| rest.trim_start())
    })?;
    let (macro_name, arguments) = definition.split_once('(')?;
    let direction = match macro_name {
        "_IO" => 0,
        "_IOW" => 1,
        "_IOR" => 2,
        "_IOWR" => 3,
        _ => return None,
    };
    let number = arguments.split([',', ')']).nth(1)?.trim().strip_prefix("0x")?;
    Some((direction, u32::from_str_radix(number, 16).ok()?))
}

/// The header of this machine may be older than the interface, and then does not know all names. Sizes are not compared: the
/// golden numbers have them.
#[test]
fn numbers_are_those_of_the_headers_of_this_machine() {
    let tables = [
        ("/usr/include/linux/vduse.h", vduse::tests::GOLDEN.to_vec()),
        ("/usr/include/linux/vhost.h", vhost_vdpa::tests::GOLDEN.to_vec()),
    ];
    for (path, golden) in tables {
        let Ok(header) = fs::read_to_string(path) else { continue };
        let known: Vec<_> = golden
            .iter()
            .filter_map(|(name, opcode)| Some((name, in_header(&header, name)?, opcode)))
            .collect();
        assert!(known.len() >= 5, "{path} is not read as it is written: {known:?}");
        for (name, parsed, opcode) in known {
            assert_eq!(parts(*opcode), parsed, "{name}");
        }
    }
}

#[test]
fn definitions_of_a_header_are_read() {
    let header = "#define A_B\t_IOWR(X, 0x1b, struct y)\n#define A _IO(X, 0x7D)\n#define C 1\n";
    assert_eq!(in_header(header, "A_B"), Some((3, 0x1b)));
    assert_eq!(in_header(header, "A"), Some((0, 0x7d)));
    assert_eq!((in_header(header, "C"), in_header(header, "D")), (None, None));
}

#[test]
fn call_of_a_file_that_is_no_device_is_refused_and_changes_nothing() {
    let null = File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    assert_eq!(vduse::GET_API_VERSION.get(fd), Err(Errno::NOTTY));
    assert_eq!(vduse::DEV_INJECT_CONFIG_IRQ.call(fd), Err(Errno::NOTTY));
    let mut bytes = [7; 5];
    assert_eq!(vhost_vdpa::get_config(fd, 0, &mut bytes), Err(Errno::NOTTY));
    assert_eq!(bytes, [7; 5]);
    let mut entry = vduse::IotlbEntry { start: 3, ..vduse::IotlbEntry::default() };
    assert_eq!(vduse::iotlb_get_fd(fd, &mut entry).err(), Some(Errno::NOTTY));
    assert_eq!(entry.start, 3);
}

/// The mappings of this process that show this file.
fn mappings_of(name: &str) -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
}

#[test]
fn shown_file_is_mapped_until_it_is_dropped() {
    let file = rustix::fs::memfd_create("shown_until_dropped", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 0x3000).unwrap();
    let shown = Shown::of_file(file.as_fd(), 0x1000, 0x2000, true).unwrap();
    assert_eq!((shown.len(), shown.address() % 0x1000), (0x2000, 0));
    let line = format!("{:x}-{:x} rw-s 00001000", shown.address(), shown.address() + 0x2000);
    assert!(fs::read_to_string("/proc/self/maps").unwrap().contains(&line), "{line}");
    drop(shown);
    assert_eq!(mappings_of("shown_until_dropped"), 0);
}

#[test]
fn file_that_cannot_be_shown_is_refused() {
    let file = rustix::fs::memfd_create("not_shown", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let readable = File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap();
    let show = |file: &dyn AsFd, offset, len| Shown::of_file(file.as_fd(), offset, len, true).err();
    assert_eq!(show(&file, 0, 0), Some(Errno::INVAL));
    assert_eq!(show(&file, 1, 0x1000), Some(Errno::INVAL));
    assert_eq!(show(&readable, 0, 0x1000), Some(Errno::ACCESS));
}
