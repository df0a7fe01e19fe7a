//! A driver, a front-end and a network device without a virtual machine: packets go out through one ring and
//! come back through another.
//!
//! The device is the whole of `mdevd net`, on threads of this process and at the other end of a socket pair.
//! This program is the rest: it makes a guest's memory, lays rings and buffers out in it, tells the device
//! where they are, and sleeps until the device calls.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mdev_protocol::vhost_user::Client;
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdevd::daemon::{Daemon, Endpoint, Options};
use mdevd::device::net::{NetConfig, NetDevice, QUEUE_NAMES};
use mdevd::driver::net::{QueueOptions, RxQueue, TxQueue};
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds};
use mdevd::link::LinkKind;
use mdevd::worker::Mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Destination (everybody), source, and a type that is set aside for experiments (IEEE 802).
const ETHERNET: [u8; 14] = [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];

fn main() -> Result<(), Box<dyn Error>> {
    let (front, back) = UnixStream::pair()?;
    back.set_nonblocking(true)?;

    // The device: one queue pair that gives back what it is sent, and a worker that sleeps when there is
    // nothing to do.
    let (name, link) = ("net0".to_owned(), LinkKind::Loopback);
    let device = NetDevice::new(NetConfig { name, queue_pairs: 1, mac: None, mtu: None, link })?;
    let options = Options {
        mode: Mode::Event,
        queue_names: QUEUE_NAMES,
        cpus: vec![],
        stats: None,
        sessions: Default::default(),
        counters: None,
    };
    let daemon = Daemon::new(Arc::new(device), Endpoint::Connected(back.into()), options)?;
    let daemon = thread::spawn(move || daemon.run());

    // The guest: memory in a file, and in it two rings with their buffers. Ring 0 receives, ring 1 transmits.
    let mut memory = GuestMemory::new(MemoryOptions::default())?;
    let mut receive = RxQueue::new(&mut memory, QueueOptions::plain(64))?;
    let mut transmit = TxQueue::new(&mut memory, QueueOptions::plain(64))?;
    receive.queue.want_calls(true);
    receive.offer_all()?;
    receive.queue.publish();

    // The front-end: agree on features, hand over the file, say where the rings are, start them.
    let client = Client::new(front, Duration::from_secs(5));
    let mut session =
        FrontEnd::over(client, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, FrontEnd::usual_protocol())?;
    session.share(&memory)?;
    let (receive_fds, transmit_fds) = (RingFds::new()?, RingFds::new()?);
    session.start(0, &receive.queue, &receive_fds, &memory)?;
    session.start(1, &transmit.queue, &transmit_fds, &memory)?;

    for text in ["one", "two", "three"] {
        transmit.reclaim(64, |_| ())?;
        transmit.send(1, |_, frame| {
            let bytes = [&ETHERNET, text.as_bytes()].concat();
            frame.copy_from(&bytes) as u32
        })?;
        if transmit.queue.publish() {
            transmit_fds.kick.signal();
        }
        let mut received = 0;
        while received == 0 {
            wait_for_call(&receive_fds)?;
            received = receive.receive(64, |_, packet| {
                let payload = packet.to_vec().split_off(ETHERNET.len());
                println!("sent {text}, received {}", String::from_utf8_lossy(&payload));
            })?;
        }
        receive.queue.publish();
    }

    println!("receive ring stopped at {}", session.stop(0)?);
    println!("transmit ring stopped at {}", session.stop(1)?);
    // The connection is the device's only one: it ends with it.
    drop(session);
    daemon.join().map_err(|_| "the device panicked")??;
    Ok(())
}

/// Sleeps until the device has used a buffer and said so.
fn wait_for_call(fds: &RingFds) -> Result<(), Box<dyn Error>> {
    let mut calls = [PollFd::new(&fds.call, PollFlags::IN)];
    if poll(&mut calls, Some(&Timespec { tv_sec: 5, tv_nsec: 0 }))? == 0 {
        return Err("the device has not called within five seconds".into());
    }
    fds.call.drain();
    Ok(())
}
