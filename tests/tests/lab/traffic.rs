//! A guest on a tap interface in a network of the test's own, with pings and a transfer that go on while a test does something else.

use std::net::TcpListener;
use std::time::Duration;

use mdev_tests::lab::{Counters, Guest, Lab, Mdevd, QemuGuest, Skip, Stream, ip, move_into_own_network};

use super::net_guest::EXCHANGE;

/// So much has to come back before traffic counts as flowing.
pub const FLOWS: u64 = 512 << 10;

/// The script: obey the console. `up` brings the link up with an address, `ping` begins to ping ten times a second and `pinged` ends
/// that, `call` gives back what the host sends, `pairs` pings from each processor, `rebind` takes the driver away and gives it back,
/// `rebind reset` resets the device under it first, `carrier 0` and `carrier 1` wait for the link to be down or up, `say` says that it is there.
pub const OBEY: &str = r#"
while read -r command what; do
    case $command in
        up)
            until ip link set eth0 up 2>/dev/null; do sleep 0.1; done
            ip addr add 198.18.8.2/24 dev eth0
            until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
            echo "link: up" ;;
        carrier)
            until [ "$(cat /sys/class/net/eth0/carrier)" = "$what" ]; do sleep 0.1; done
            echo "carrier: $what" ;;
        ping)
            ping -i 0.1 198.18.8.1 > /tmp/pings 2>&1 &
            pinger=$! ;;
        pinged)
            kill -INT $pinger
            wait $pinger
            echo "pings: $(grep transmitted /tmp/pings), $(grep round-trip /tmp/pings) end" ;;
        call) nc 198.18.8.1 9000 -e /bin/cat > /dev/null 2>&1 & ;;
        pairs)
            taskset 1 ping -c 3 -i 0.1 -W 20 198.18.8.1 > /dev/null &&
            taskset 2 ping -c 3 -i 0.1 -W 20 198.18.8.1 > /dev/null && echo "pairs: answered" ;;
        rebind)
            device=$(readlink -f /sys/class/net/eth0/device)
            [ "$what" = reset ] && echo 1 > $device/../reset
            echo $(basename $device) > /sys/bus/virtio/drivers/virtio_net/unbind
            echo $(basename $device) > /sys/bus/virtio/drivers/virtio_net/bind
            echo "rebind: done" ;;
        say) echo "said: $what" ;;
        reboot) reboot -f ;;
        off) exit 0 ;;
    esac
done
"#;

/// The device on a tap, and the host's end of it.
pub struct House {
    pub mdevd: Mdevd,
    listener: TcpListener,
}

impl House {
    /// Move into a network with a device of so many queue pairs.
    pub fn new(lab: &Lab, queue_pairs: u16, arguments: &[&str]) -> Result<House, Skip> {
        move_into_own_network()?;
        ip(lab, "link set lo up");
        let mdevd = Mdevd::net(lab, "net.sock", queue_pairs, &[&["--link", "tap=vm0"], arguments].concat());
        ip(lab, "addr add 198.18.8.1/24 dev vm0");
        ip(lab, "link set vm0 up");
        let listener = TcpListener::bind("198.18.8.1:9000").expect("the address is there");
        Ok(House { mdevd, listener })
    }

    /// Bring the link of a guest up that has just booted, and begin.
    pub fn begin(&self, guest: &mut QemuGuest) -> Stream {
        guest.booted();
        guest.type_in("up\n");
        guest.expect("link: up", EXCHANGE);
        self.call(guest)
    }

    /// Begin with a guest whose link is up.
    pub fn call(&self, guest: &mut QemuGuest) -> Stream {
        guest.type_in("ping\ncall\n");
        let stream = Stream::accept(&self.listener);
        flows(&stream);
        stream
    }

    /// The counters of all queues and of the memory, when nothing was dropped and nothing has failed or waited.
    pub fn clean(&mut self) -> (Vec<Counters>, Counters) {
        let (queues, memory) = self.mdevd.counters_and_memory();
        for queue in &queues {
            let bad = ["drops", "errors", "parks"].map(|title| queue.get(title));
            assert_eq!(bad, [0; 3], "drops, errors, parks: {queue:?}");
        }
        assert_eq!((memory.get("poisoned"), memory.get("revoked"), memory.get("faults")), (0, 0, 0));
        (queues, memory)
    }

    /// The end of a guest that was answered, but for one ping at the most, and of the device.
    pub fn end(self, stream: Stream, mut guest: QemuGuest) {
        let (sent, lost) = pings(&mut guest);
        assert!(sent > 0 && lost <= 1, "{lost} of {sent} pings were not answered");
        drop(stream);
        guest.quit();
        self.mdevd.terminate();
    }
}

/// A guest that obeys the console, with a NIC on the device.
pub fn guest<'a>(lab: &'a Lab, name: &str, queue_pairs: u16) -> Guest<'a> {
    QemuGuest::with_script(lab, name, OBEY)
        .cores(if queue_pairs > 1 { 2 } else { 1 })
        .vhost_user_net("net.sock", queue_pairs)
}

/// Wait until the transfer has gone on a good deal.
pub fn flows(stream: &Stream) {
    stream.moves(FLOWS, EXCHANGE);
}

/// End the pings: how many were sent, and how many of them were not answered. The last one may be under way.
pub fn pings(guest: &mut QemuGuest) -> (u64, u64) {
    guest.type_in("pinged\n");
    let said = guest.expect(" end", EXCHANGE);
    // 12 packets transmitted, 12 packets received, 0% packet loss
    let (_, line) = said.rsplit_once("pings: ").expect("what ping says at its end");
    println!("pings: {}", line.trim_end_matches(" end\n"));
    let mut numbers = line.split(' ').filter_map(|word| word.parse::<u64>().ok());
    let (Some(sent), Some(answered)) = (numbers.next(), numbers.next()) else { panic!("no pings: {line}") };
    (sent, sent - answered)
}

/// The guest still obeys.
pub fn obeys(guest: &mut QemuGuest, word: &str) {
    guest.type_in(&format!("say {word}\n"));
    guest.expect(&format!("said: {word}"), EXCHANGE);
}

/// Least, median and greatest, as a text.
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    match times[..] {
        [] => "nothing".into(),
        [least, .., greatest] => format!("{least:.1?} / {:.1?} / {greatest:.1?}", times[times.len() / 2]),
        [only] => format!("{only:.1?}"),
    }
}
