//! The program from outside: its command line, its socket, its signals, and frames through it.

mod guest;
mod process;
mod regress;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use guest::Guest;
use mdev_protocol::vhost_user::{Client, ClientError};
use mdev_protocol::virtio::feature::VIRTIO_F_RING_RESET;
use process::{Daemon, WATCHDOG, mdevd, net_on, output};
use rustix::process::Signal;

#[test]
fn capabilities_are_json_whatever_the_other_options_are() {
    for others in ["", "--socket-path no/such/folder/net.sock --mode busy", "--fd 12345"] {
        let (status, stdout, stderr) = output(&format!("net {others} --print-capabilities"));
        assert_eq!((status, stderr.as_str()), (0, ""), "{others}");
        let capabilities: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(capabilities, serde_json::json!({ "type": "net" }));
    }
}

#[test]
fn a_launcher_that_knows_no_subcommands_finds_the_program_under_its_other_names() {
    let folder = tempfile::tempdir().unwrap();
    for (name, kind) in [("mdevd-net", "net"), ("mdevd-blk", "block")] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mdevd"), &link).unwrap();
        let output = std::process::Command::new(link).arg("--print-capabilities").output().unwrap();
        assert!(output.status.success());
        let capabilities: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(capabilities["type"], kind);
    }
}

#[test]
fn the_descriptions_for_launchers_are_json_that_names_the_type() {
    let net = include_str!("../../../contrib/50-mdevd-net.json");
    let blk = include_str!("../../../contrib/50-mdevd-blk.json");
    for (text, kind, name) in [(net, "net", "/mdevd-net"), (blk, "block", "/mdevd-blk")] {
        let description: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(description["type"], kind);
        assert!(description["binary"].as_str().unwrap().ends_with(name));
    }
}

#[test]
fn wrong_arguments_exit_with_2_and_say_what_is_wrong() {
    for (arguments, text) in [
        ("", "Usage"),
        ("nonsense", "nonsense"),
        ("net", "--socket-path"),
        ("net --fd 3 --queue-pairs 17", "17"),
        ("net --fd 3 --link nowhere", "loopback"),
        ("net --fd 3 --mac 01:00:00:00:00:00:00", "six pairs"),
        ("net --fd 3 --mode lazy", "adaptive"),
        ("net --fd 3 --cpus 3-1", "0,2-3"),
        ("net --socket-path a --socket-mode rw", "0660"),
        ("blk --fd 3", "--store"),
        ("blk --store null,size=1M", "--socket-path"),
        ("blk --fd 3 --store disk", "file=PATH"),
        ("blk --fd 3 --store null,size=1000", "multiple of 512"),
        ("blk --fd 3 --store null,size=1M --queues 257", "257"),
        ("blk --fd 3 --store null,size=1M --blk-file x", "--blk-file"),
    ] {
        let (status, stdout, stderr) = output(arguments);
        assert_eq!((status, stdout.as_str()), (2, ""), "{arguments}: {stderr}");
        assert!(stderr.contains(text), "{arguments}: {stderr}");
    }
}

#[test]
fn failures_at_run_time_exit_with_1_and_say_what_to_do() {
    for (arguments, text) in [
        ("net --socket-path no/such/folder/net.sock", "directory"),
        ("net --fd 12345", "--fd 12345"),
        ("net --fd 0", "Unix stream socket"),
    ] {
        let (status, _, stderr) = output(arguments);
        assert_eq!(status, 1, "{arguments}: {stderr}");
        assert!(stderr.starts_with("mdevd: ") && stderr.contains(text), "{arguments}: {stderr}");
    }
}

#[test]
fn a_processor_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let mut daemon = Daemon::spawn(&mut net_on(&socket, "--cpus 1000"), socket.clone());
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("processor 1000"));
    assert!(!socket.exists(), "nothing is left behind");
}

#[test]
fn version_and_help_go_to_standard_output() {
    let (status, stdout, _) = output("--version");
    assert_eq!(status, 0);
    assert!(stdout.starts_with("mdevd 0."), "{stdout}");
    let (status, stdout, _) = output("net --help");
    assert_eq!(status, 0);
    assert!(stdout.contains("--socket-path"));
}

#[test]
fn manual_pages_come_from_the_same_source_as_the_help() {
    let folder = tempfile::tempdir().unwrap();
    let (status, _, stderr) = output(&format!("man --out {}", folder.path().display()));
    assert_eq!(status, 0, "{stderr}");
    let page = fs::read_to_string(folder.path().join("mdevd-net.1")).unwrap();
    assert!(page.contains("socket\\-path") && page.contains("print\\-capabilities"));
    let (status, stdout, _) = output("man");
    assert_eq!(status, 0);
    assert!(stdout.contains(".TH mdevd"));
}

#[test]
fn front_ends_come_one_after_another_and_at_once() {
    let mut daemon = Daemon::net("--link null --queue-pairs 2 --mac 52:54:00:00:00:01");
    for _ in 0..3 {
        let (mut first, mut second) = (daemon.client(), daemon.client());
        for client in [&mut first, &mut second] {
            client.set_owner().unwrap();
            assert_ne!(client.features().unwrap(), 0);
            let protocol = client.protocol_features().unwrap();
            client.set_protocol_features(protocol).unwrap();
            assert_eq!(client.queue_num().unwrap(), 2);
        }
        drop(first);
        assert_ne!(second.features().unwrap(), 0);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn frames_go_through_every_link_in_every_mode() {
    for mode in ["busy", "adaptive", "event"] {
        let daemon = Daemon::net(&format!("--mode {mode} --link loopback"));
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        for _ in 0..20 {
            guest.send();
            guest.receive(1);
        }
        guest.stop();

        let daemon = Daemon::net(&format!("--mode {mode} --link pktgen,size=64"));
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        guest.receive(1000);
        guest.send_all(10);

        let daemon = Daemon::net(&format!("--mode {mode} --link null"));
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        guest.send_all(1000);
    }
}

#[test]
fn ring_that_is_reset_alone_goes_on_with_another_size_while_the_others_run() {
    let mut daemon = Daemon::net("--link loopback --ring-reset");
    let mut guest = Guest::connect_with(daemon.socket(), VIRTIO_F_RING_RESET);
    guest.start();
    for size in [64, 16, 128] {
        guest.reset_transmit(size);
        for _ in 0..2 * size {
            guest.send_all(1);
            guest.receive(1);
        }
    }
    daemon.signal(Signal::USR1);
    let starts: Vec<String> = ["receive", "transmit"]
        .map(|queue| daemon.expect(queue).split_whitespace().nth(5).unwrap_or_default().to_owned())
        .into();
    assert_eq!(starts, ["1", "4"], "{}", daemon.log());
}

#[test]
fn rings_start_on_the_second_connection_when_the_first_lets_go() {
    let daemon = Daemon::net("--link null");
    let mut first = Guest::connect(daemon.socket());
    first.start();
    first.send_all(10);

    let mut second = Guest::connect(daemon.socket());
    second.start();
    second.send();
    first.send_all(100);
    assert!(!second.all_sent(), "the first still runs");
    first.stop();
    second.send_all(100);

    // The other way round, and by the end of a connection instead of a stop.
    first.start();
    drop(second);
    first.send_all(100);
}

#[test]
fn a_front_end_that_vanishes_leaves_the_device_to_the_next_one() {
    let daemon = Daemon::net("--link loopback");
    for _ in 0..20 {
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        guest.send();
        guest.receive(1);
    }
}

#[test]
fn sigterm_stops_running_rings_and_removes_the_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::net("--link pktgen");
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        guest.receive(100);
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
        assert!(!daemon.socket().exists());
        assert!(guest.front_end.peer_is_gone());
    }
}

#[test]
fn sigterm_at_any_moment_of_the_start_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    for tenths in 0..60 {
        let socket = folder.path().join(format!("{tenths}.sock"));
        let mut daemon = Daemon::spawn(&mut net_on(&socket, ""), socket);
        std::thread::sleep(Duration::from_micros(100) * tenths);
        daemon.signal(Signal::TERM);
        // With status 0, or by the signal itself if that came before the program's own handler.
        assert!(daemon.wait().code().is_none_or(|code| code == 0), "{}", daemon.log());
    }
}

#[test]
fn a_front_end_with_a_full_call_eventfd_holds_up_neither_worker_nor_end() {
    let mut daemon = Daemon::net("--link loopback");
    let mut guest = Guest::connect(daemon.socket());
    guest.start();
    guest.send();
    guest.receive(1);
    guest.block_calls();
    guest.send();
    guest.receive(1);
    guest.send();
    guest.receive(1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn sigusr1_prints_what_went_through_each_queue() {
    let mut daemon = Daemon::net("--link null");
    let mut guest = Guest::connect(daemon.socket());
    guest.start();
    guest.send_all(123);
    daemon.signal(Signal::USR1);
    let head = daemon.expect("packets");
    for column in ["queue", "bytes", "drops", "parks", "kicks", "calls", "errors", "polls", "busy-ns"] {
        assert!(head.contains(column), "{head}");
    }
    daemon.expect("receive");
    let row = daemon.expect("transmit");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["1", "transmit", "123", "7872"], "{row}");
}

#[test]
fn rates_are_printed_from_time_to_time() {
    let mut daemon = Daemon::net("--link null --stats 10ms");
    let mut guest = Guest::connect(daemon.socket());
    guest.start();
    guest.send_all(10);
    let line = daemon.expect("transmit");
    assert!(line.starts_with("net: receive ") && line.contains("pps"), "{line}");
}

#[test]
fn the_log_has_times_and_obeys_its_variable() {
    let mut daemon = Daemon::net("");
    drop(daemon.client());
    let line = daemon.expect("connection 1");
    assert!(line.contains("Z INFO ") && line.starts_with("20"), "{line}");
    assert!(!line.contains('\u{1b}'));

    let socket = daemon.socket().with_file_name("quiet.sock");
    let mut quiet = Daemon::spawn(net_on(&socket, "").env("MDEVD_LOG", "error"), socket);
    while !quiet.socket().exists() {
        std::thread::yield_now();
    }
    drop(Client::connect(quiet.socket(), WATCHDOG));
    quiet.signal(Signal::TERM);
    quiet.wait();
    assert_eq!(quiet.log(), "");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut killed = Daemon::net("");
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(killed.socket().exists(), "nobody removed it");

    let socket = killed.socket().to_owned();
    let mut next = Daemon::spawn(&mut net_on(&socket, ""), socket.clone());
    next.expect("removed the stale socket");
    next.expect("serving");

    let mut third = Daemon::spawn(&mut net_on(&socket, ""), socket);
    assert_eq!(third.wait().code(), Some(1));
    let log = third.log();
    assert!(log.contains("another process is listening") && log.contains("--socket-path"), "{log}");
    assert_ne!(next.client().features().unwrap(), 0);
}

#[test]
fn the_socket_has_the_permissions_asked_for() {
    let daemon = Daemon::net("--socket-mode 0660");
    assert_eq!(fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777, 0o660);
}

#[test]
fn a_listening_socket_can_be_inherited() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("parent.sock");
    let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let mut daemon = Daemon::spawn(mdevd("net --fd 0").stdin(listener), socket);
    for _ in 0..2 {
        assert_ne!(daemon.client().features().unwrap(), 0);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.socket().exists(), "it is its maker's to remove");
}

#[test]
fn a_connected_socket_can_be_inherited_and_the_program_ends_with_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = Daemon::spawn(mdevd("net --fd 0").stdin(OwnedFd::from(theirs)), PathBuf::new());
    let mut client = Client::new(ours, WATCHDOG);
    assert_ne!(client.features().unwrap(), 0);
    drop(client);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn connections_beyond_the_limit_are_closed_and_others_do_not_notice() {
    let mut daemon = Daemon::net("");
    let mut clients: Vec<Client> = (0..mdevd::daemon::MAX_CONNECTIONS).map(|_| daemon.client()).collect();
    for client in &mut clients {
        client.features().unwrap();
    }
    let refused = daemon.client().features();
    assert!(matches!(
        refused,
        Err(ClientError::Closed { .. } | ClientError::Send(_) | ClientError::Receive(_))
    ));
    daemon.expect("refused a front-end");
    for client in &mut clients {
        client.features().unwrap();
    }
    clients.pop();
    daemon.expect("closed the connection");
    assert_ne!(daemon.client().features().unwrap(), 0);
}

#[test]
fn a_process_without_descriptors_waits_for_some_and_then_goes_on() {
    let mut daemon = Daemon::net("");
    let mut client = daemon.client();
    client.features().unwrap();
    daemon.limit_files(Some(3));
    let mut waiting = daemon.client();
    daemon.expect("cannot accept a front-end");
    client.features().unwrap();
    daemon.limit_files(None);
    assert_ne!(waiting.features().unwrap(), 0);
}

#[test]
fn an_idle_device_with_running_rings_uses_next_to_no_processor_time() {
    for mode in ["adaptive", "event"] {
        let daemon = Daemon::net(&format!("--mode {mode} --link loopback --queue-pairs 1"));
        let mut guest = Guest::connect(daemon.socket());
        guest.start();
        guest.send();
        guest.receive(1);
        let watched = Duration::from_secs(1);
        let before = daemon.cpu_time();
        std::thread::sleep(watched);
        let used = daemon.cpu_time() - before;
        assert!(used < watched / 100, "{mode}: {used:?} of {watched:?}");
        guest.send();
        guest.receive(1);
    }
}
