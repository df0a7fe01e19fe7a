//! Resets, and clients that go, with commands in flight.

use std::time::Instant;

use mdev_protocol::nvme::status::Status;

use super::host::Host;
use super::{ANSWER, Server, soon};
use crate::worker::Mode;

#[test]
fn a_reset_aborts_what_is_in_flight_and_is_answered_when_no_queue_runs() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    host.read();
    assert!(server.awaits(1));
    host.client.reset().unwrap();
    assert!(server.held.pending().is_empty(), "nothing is in flight when it is answered");
    assert_eq!(host.status(), 0);
}

#[test]
fn a_client_that_goes_with_commands_in_flight_leaves_a_device_for_the_next() {
    for mode in [Mode::Adaptive, Mode::Busy] {
        let server = Server::start(mode);
        let mut host = Host::new(server.client());
        host.read();
        assert!(server.awaits(1));
        drop(host);
        let since = Instant::now();
        let mut next = Host::new(server.client());
        assert!(since.elapsed() < ANSWER);
        assert!(server.held.pending().is_empty(), "what its client wanted is cancelled");
        next.read();
        assert!(server.awaits(1));
        server.held.finish_all();
        assert_eq!(next.reap().unwrap().status(), Status::SUCCESS);
    }
}

#[test]
fn a_controller_that_is_disabled_aborts_what_is_in_flight_and_posts_nothing_afterwards() {
    let server = Server::start(Mode::Adaptive);
    let mut host = Host::new(server.client());
    host.read();
    assert!(server.awaits(1));
    host.write(0x14, &0x0046_0000u32.to_le_bytes());
    assert!(soon(|| host.status() == 0));
    assert!(server.held.pending().is_empty());
    let told = host.has_completion();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(host.has_completion(), told, "nothing is posted when the controller is not ready any more");
    drop(host);
    assert!(soon(|| server.device.take_seat().is_some()), "its client is gone");
}
