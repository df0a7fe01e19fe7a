//! A Linux guest in QEMU whose NIC leads to a tap interface of this machine, in a network of the test's own.

use std::io::{Read, Write};
use std::net::TcpListener;

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial, ip, move_into_own_network};

use crate::net_guest::EXCHANGE;

/// Bytes of a bulk transfer: many full windows.
const BULK: usize = 16 << 20;

/// The script: obey the console. `up` brings the link up with an address, `ping`, `bulk BYTES` sends a file and wants it back.
const OBEY: &str = r#"
while read -r command count; do
    case $command in
        up)
            until ip link set eth0 up 2>/dev/null; do sleep 0.1; done
            ip addr add 198.18.6.2/24 dev eth0
            echo "link: up" ;;
        ping) ping -c 5 -W 20 198.18.6.1 && echo "ping: answered" ;;
        bulk)
            head -c $count /dev/urandom > /tmp/sent
            nc 198.18.6.1 9000 < /tmp/sent > /tmp/back
            cmp /tmp/sent /tmp/back && echo "bulk: same" || echo "bulk: differs, $(wc -c < /tmp/back) bytes" ;;
        off) exit 0 ;;
    esac
done
"#;

/// What QEMU does not offer the guest's driver, so that each side sums and cuts for itself.
const NO_OFFLOADS: [&str; 10] = [
    "csum",
    "guest_csum",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_uso",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "gso",
];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_guest_on_a_tap_pings_and_transfers_with_offloads", with_offloads),
        Trial::new("net_guest_on_a_tap_pings_and_transfers_without_offloads", without_offloads),
        Trial::new("net_guest_on_a_tap_with_two_queue_pairs_transfers_through_sleeping_workers", two_pairs),
    ]
}

fn with_offloads(lab: &Lab) -> Result<(), Skip> {
    let (largest, _) = transfers(lab, 1, "adaptive", |guest| guest)?;
    assert!(largest > 2000, "segments of {largest} bytes: nobody left them to the other side");
    Ok(())
}

fn without_offloads(lab: &Lab) -> Result<(), Skip> {
    let off: Vec<String> = NO_OFFLOADS.map(|name| format!("virtio-net-device.{name}=off")).into();
    let (largest, _) = transfers(lab, 1, "adaptive", |guest| {
        off.iter().fold(guest, |guest, property| guest.arguments(&["-global", property]))
    })?;
    assert!(largest <= 1518, "segments of {largest} bytes, which nobody agreed on");
    Ok(())
}

fn two_pairs(lab: &Lab) -> Result<(), Skip> {
    transfers(lab, 2, "event", |guest| guest).map(drop)
}

/// Ping and a bulk transfer. The largest mean of bytes in a frame over all queues, and all frames.
fn transfers(
    lab: &Lab,
    queue_pairs: u16,
    mode: &str,
    with: impl FnOnce(Guest<'_>) -> Guest<'_>,
) -> Result<(u64, u64), Skip> {
    move_into_own_network()?;
    ip(lab, "link set lo up");
    let mut mdevd = Mdevd::net(lab, "net.sock", queue_pairs, &["--link", "tap=vm0", "--mode", mode]);
    ip(lab, "addr add 198.18.6.1/24 dev vm0");
    ip(lab, "link set vm0 up");
    let listener = TcpListener::bind("198.18.6.1:9000").expect("the address is there");
    let guest = QemuGuest::with_script(lab, "guest", OBEY).cores(if queue_pairs > 1 { 2 } else { 1 });
    let mut guest = with(guest.vhost_user_net("net.sock", queue_pairs)).start();
    guest.booted();
    guest.type_in("up\n");
    guest.expect("link: up", EXCHANGE);
    guest.type_in("ping\n");
    guest.expect("ping: answered", EXCHANGE);
    guest.type_in(&format!("bulk {BULK}\n"));
    give_back(&listener);
    let said = guest.expect("bulk: ", EXCHANGE);
    assert!(said.contains("bulk: same") || guest.expect("\n", EXCHANGE).contains("same"), "{said}");
    let counters = mdevd.counters();
    println!("{counters:#?}");
    assert!(
        counters.iter().all(|queue| queue.get("errors") == 0 && queue.get("header") == 0),
        "{counters:#?}"
    );
    guest.type_in("off\n");
    guest.powered_off();
    mdevd.terminate();
    let mean = counters.iter().map(|queue| queue.get("bytes") / queue.packets().max(1)).max();
    let packets = counters.iter().map(|queue| queue.packets()).sum();
    Ok((mean.unwrap_or_default(), packets))
}

/// Takes one connection's bytes and sends them back.
fn give_back(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("the guest calls");
    stream.set_read_timeout(Some(EXCHANGE)).expect("a socket");
    stream.set_write_timeout(Some(EXCHANGE)).expect("a socket");
    let mut bytes = vec![0; BULK];
    stream.read_exact(&mut bytes).expect("all of it comes");
    stream.write_all(&bytes).expect("all of it goes back");
}
