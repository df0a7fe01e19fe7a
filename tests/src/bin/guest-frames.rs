//! `guest-frames INTERFACE COUNT [LOSSES]`: run inside the lab's guest. Sends COUNT numbered frames of many sizes to the interface's own
//! address and expects each of them back, byte for byte, from a device whose link is `loopback`. Up to LOSSES times what is missing is sent
//! again, for tests that interrupt the device; without it nothing may be missing.
//!
//! UNSAFETY: no safe library knows the address of a packet socket, so its C layout is given to `bind` here.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::sockopt::Timeout;
use rustix::net::{self, AddressFamily, Protocol, SocketType};

/// EtherType for local experiments (IEEE 802), so that nobody else in the guest takes our frames.
const ETHER_TYPE: u16 = 0x88b5;
const HEADER: usize = 14;
const LARGEST: usize = 1514;
/// How many frames are on their way at once.
const WINDOW: u32 = 16;
/// How long to wait for a frame: where losses are expected, and where each is a failure.
const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(interface), Some(Ok(count))) =
        (arguments.next(), arguments.next().map(|text| text.parse::<u32>()))
    else {
        eprintln!("usage: guest-frames INTERFACE COUNT [LOSSES]");
        return ExitCode::FAILURE;
    };
    let losses = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    match exchange(&interface, count, losses) {
        Ok(bytes) => {
            println!("frames: {count} sent and back, {bytes} bytes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_state(&interface);
            println!("frames: failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Send all frames, a window at a time, and expect exactly those of the window back, in any order: with several queues the guest itself
/// sends them on different ones. Returns the bytes that came back.
fn exchange(interface: &str, count: u32, losses: u32) -> io::Result<u64> {
    let (mut socket, address) = open(interface, if losses > 0 { SOON } else { LATE })?;
    let mut losses_left = losses;
    let mut bytes = 0;
    let mut next = 0;
    while next < count {
        let last = (next + WINDOW).min(count);
        let mut missing: Vec<Vec<u8>> = (next..last).map(|number| frame(address, number)).collect();
        for frame in &missing {
            socket.write_all(frame)?;
        }
        let mut late: Option<Vec<u32>> = None;
        while !missing.is_empty() {
            let mut back = [0; LARGEST + 1];
            let length = match socket.read(&mut back) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && losses_left > 0 => {
                    losses_left -= 1;
                    for frame in &missing {
                        socket.write_all(frame)?;
                    }
                    continue;
                }
                // A failure already. Whether they are lost or late is worth as long again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && late.is_none() => {
                    late = Some(missing.iter().map(|frame| number(frame)).collect());
                    continue;
                }
                length => length.map_err(|error| {
                    let numbers: Vec<u32> = missing.iter().map(|frame| number(frame)).collect();
                    io::Error::other(format!("of frames {next} to {last} {numbers:?} are missing: {error}"))
                })?,
            };
            let Some(which) = missing.iter().position(|frame| *frame == back[..length]) else {
                if losses > 0 {
                    continue; // it was late, not lost
                }
                return Err(io::Error::other(format!(
                    "frame {} of {length} bytes came back changed, twice or late",
                    number(&back)
                )));
            };
            missing.swap_remove(which);
            bytes += length as u64;
        }
        if let Some(numbers) = late {
            return Err(io::Error::other(format!("of frames {next} to {last} {numbers:?} were late")));
        }
        next = last;
    }
    Ok(bytes)
}

/// The frame of this number: its size and its bytes follow from it. At least 60 bytes, so that nobody pads it.
fn frame(address: [u8; 6], number: u32) -> Vec<u8> {
    let size = 60 + (number as usize * 97) % (LARGEST - 60 + 1);
    let mut frame = Vec::with_capacity(size);
    frame.extend_from_slice(&address);
    frame.extend_from_slice(&address);
    frame.extend_from_slice(&ETHER_TYPE.to_be_bytes());
    frame.extend_from_slice(&number.to_be_bytes());
    let body = size - HEADER - 4;
    frame.extend((0..body).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8));
    frame
}

fn number(frame: &[u8]) -> u32 {
    frame.get(HEADER..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// What the guest's kernel has counted, which tells on which way a frame was lost.
fn print_state(interface: &str) {
    for (file, of_interest) in
        [("/proc/net/dev", interface), ("/proc/net/softnet_stat", ""), ("/proc/interrupts", "virtio")]
    {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter(|line| line.contains(of_interest)).for_each(|line| println!("{file}: {line}"));
    }
}

/// A packet socket bound to the interface, and the interface's address. Reads give up after this time.
fn open(interface: &str, patience: Duration) -> io::Result<(fs::File, [u8; 6])> {
    let read = |what: &str| fs::read_to_string(format!("/sys/class/net/{interface}/{what}"));
    let index: i32 = read("ifindex")?.trim().parse().map_err(io::Error::other)?;
    let mut address = [0; 6];
    for (byte, text) in address.iter_mut().zip(read("address")?.trim().split(':')) {
        *byte = u8::from_str_radix(text, 16).map_err(io::Error::other)?;
    }
    let protocol = NonZeroU32::new(ETHER_TYPE.to_be().into()).map(Protocol::from_raw);
    let socket = net::socket(AddressFamily::PACKET, SocketType::RAW, protocol)?;
    net::bind(&socket, &LinkAddress::of(index))?;
    net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    Ok((socket.into(), address))
}

/// `struct sockaddr_ll` of packet(7).
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hardware: u16,
    packet: u8,
    length: u8,
    address: [u8; 8],
}

impl LinkAddress {
    /// The address to which a socket is bound that wants our frames of this interface.
    fn of(index: i32) -> LinkAddress {
        LinkAddress {
            family: AddressFamily::PACKET.as_raw(),
            protocol: ETHER_TYPE.to_be(),
            index,
            hardware: 0,
            packet: 0,
            length: 0,
            address: [0; 8],
        }
    }
}

// SAFETY: the pointer is to `self`, which is alive and initialised for the whole call, with its true size; the layout is the kernel's.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<LinkAddress>() as SocketAddrLen)
    }
}
