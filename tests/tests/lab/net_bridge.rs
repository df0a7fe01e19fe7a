//! Two Linux guests whose devices are peers on one bridge of `mdevd serve`.

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

use crate::net_guest::EXCHANGE;

/// Bytes that one guest fetches from the other.
const BULK: usize = 4 << 20;

/// The script: obey the console. `up NUMBER` brings the link up with an address, `offer BYTES` makes a file, serves it and says
/// its sum, `fetch NUMBER` gets the file of the other and says the sum, `ping NUMBER`.
const OBEY: &str = r#"
sum() { echo "sum: $(md5sum < $1 | cut -c1-32) of $(wc -c < $1)"; }
while read -r command what; do
    case $command in
        up)
            until [ -d /sys/class/net/eth0 ]; do sleep 0.1; done
            ip link set eth0 address 52:54:00:00:00:0$what
            ip link set eth0 up
            ip addr add 198.18.7.$what/24 dev eth0
            echo "link: up" ;;
        ping) ping -c 5 -W 20 198.18.7.$what && echo "ping: answered" ;;
        offer)
            mkdir -p /tmp/www
            head -c $what /dev/urandom > /tmp/www/file
            httpd -h /tmp/www
            sum /tmp/www/file ;;
        fetch)
            wget -q -O /tmp/file http://198.18.7.$what/file
            sum /tmp/file ;;
        off) exit 0 ;;
    esac
done
"#;

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("net_guests_on_one_bridge_ping_and_fetch_from_each_other", peers)]
}

fn peers(lab: &Lab) -> Result<(), Skip> {
    let device = |name: &str| {
        format!("[[net]]\nname = \"{name}\"\nsocket-path = \"{name}.sock\"\nlink = \"peer=lan\"\n")
    };
    let mut mdevd = Mdevd::serve(lab, &format!("[workers]\ncount = 2\n{}{}", device("one"), device("two")));
    let mut guests = [("one", 1), ("two", 2)].map(|(name, number)| {
        let mut guest =
            QemuGuest::with_script(lab, name, OBEY).vhost_user_net(&format!("{name}.sock"), 1).start();
        guest.booted();
        guest.type_in(&format!("up {number}\n"));
        guest.expect("link: up", EXCHANGE);
        guest
    });
    let [one, two] = &mut guests;
    one.type_in("ping 2\n");
    one.expect("ping: answered", EXCHANGE);
    let sum = |guest: &mut QemuGuest, command: &str| {
        guest.type_in(command);
        let said = guest.expect("sum: ", EXCHANGE);
        let said = said.lines().last().unwrap_or_default().trim().to_owned();
        said.split_once("sum: ").map(|(_, sum)| sum.to_owned()).expect("a sum")
    };
    let offered = sum(one, &format!("offer {BULK}\n"));
    assert!(offered.ends_with(&format!("of {BULK}")), "{offered}");
    assert_eq!(sum(two, "fetch 1\n"), offered);
    for name in ["one", "two"] {
        let counters = mdevd.counters_of(name);
        println!("{name}: {counters:#?}");
        assert!(counters.iter().all(|queue| queue.get("errors") == 0), "{counters:#?}");
    }
    for mut guest in guests {
        guest.type_in("off\n");
        guest.powered_off();
    }
    mdevd.terminate();
    Ok(())
}
