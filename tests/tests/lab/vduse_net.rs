//! NICs that a host's own kernel has from `mdevd net --vduse`.
//!
//! A NIC on a tap goes to a network namespace, as that of a container would: the tap is on this side (10.9.0.1), and the NIC on the far
//! one (10.9.0.2). Files come over HTTP and are compared.

use mdev_tests::lab::{Lab, Skip, Trial};

use super::vduse::{DOES, Host, host};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("vduse_nic_gets_its_frames_back_from_a_loopback", loopback),
        Trial::new("vduse_nic_on_a_tap_carries_files_both_ways", |lab| on_a_tap(lab, true)),
        Trial::new("vduse_nic_without_offloads_on_a_tap_carries_files_both_ways", |lab| on_a_tap(lab, false)),
        Trial::new("vduse_nic_loses_and_gets_its_carrier_with_the_tap", carrier),
        Trial::new("vduse_daemon_of_a_nic_killed_under_a_transfer_and_started_again_goes_on", killed),
    ]
}

fn loopback(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs("start vn0 net --vduse vn0 --link loopback --mac 02:00:00:00:00:01");
    host.runs("plug vn0 && find vn0 net");
    assert_eq!(host.runs("cat /sys/class/net/$nic/address").trim(), "02:00:00:00:00:01");
    host.runs("ip link set $nic up");
    host.waits("[ $(cat /sys/class/net/$nic/carrier) = 1 ]");
    let said = host.runs("guest-frames $nic 1000");
    assert!(said.contains("frames: 1000 sent and back"), "{said}");
    let queues = host.clean("vn0");
    assert!(queues.len() == 2 && queues.iter().all(|queue| queue.packets() >= 1000), "{queues:?}");
    host.runs("leave vn0");
    host.off();
    Ok(())
}

/// A NIC on a tap, in a network namespace of its own.
fn tap(host: &mut Host, arguments: &str) {
    host.runs("ip link set lo up && unshare -n sleep 100000 & far=$!");
    host.runs("mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/file bs=1M count=6");
    host.runs(&format!("start vn0 net --vduse vn0 {arguments} && plug vn0 && find vn0 net"));
    host.runs("ip addr add 10.9.0.1/24 dev t0 && ip link set t0 up");
    host.waits("[ $(readlink /proc/$far/ns/net) != $(readlink /proc/$$/ns/net) ]");
    host.runs("ip link set $nic netns $far");
    host.runs("far ip addr add 10.9.0.2/24 dev $nic && far ip link set $nic up");
    host.runs("httpd -p 10.9.0.1:80 -h /tmp/www && far httpd -p 10.9.0.2:80 -h /tmp/www");
    host.runs("ping -c 3 10.9.0.2 && far ping -c 3 10.9.0.1");
}

/// The file comes from there to here and from here to there.
fn transfers(host: &mut Host) {
    host.runs("wget -q -O - http://10.9.0.2/file | cmp - /tmp/www/file");
    host.runs("far wget -q -O - http://10.9.0.1/file | cmp - /tmp/www/file");
}

fn on_a_tap(lab: &Lab, offloads: bool) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    if !offloads {
        host.runs("rmmod virtio_net && insmod /modules/*-virtio_net.ko csum=0 gso=0");
    }
    tap(&mut host, "--link tap=t0");
    transfers(&mut host);
    let queues = host.clean("vn0");
    let [receives, sends] = &queues[..] else { panic!("{queues:?}") };
    let frame = sends.get("bytes") / sends.packets();
    // What the driver sends is cut by the tap, or by the driver.
    assert_eq!(frame > 1514, offloads, "{frame} bytes in a frame");
    assert!(receives.packets() > 100, "{receives:?}");
    host.runs("leave vn0");
    host.off();
    Ok(())
}

fn carrier(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    tap(&mut host, "--link tap=t0");
    for (set, shown) in
        [("down", "NO-CARRIER"), ("up", "LOWER_UP"), ("down", "NO-CARRIER"), ("up", "LOWER_UP")]
    {
        host.runs(&format!("ip link set t0 {set}"));
        host.waits(&format!("far ip link show $nic | grep -q {shown}"));
    }
    host.runs("ping -c 3 10.9.0.2");
    host.clean("vn0");
    host.runs("leave vn0");
    host.off();
    Ok(())
}

/// A tap that is there already stays when its daemon does not.
fn killed(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab).lab_programs(&["/usr/bin/ip"]));
    host.runs("iproute=$(ls /usr/bin/ip /bin/ip 2>/dev/null | head -n 1); $iproute tuntap add dev t0 mode tap vnet_hdr");
    tap(&mut host, "--link tap=t0");
    for _ in 0..5 {
        host.guest().type_in("do wget -q -O /tmp/got http://10.9.0.2/file & got=$!\n");
        host.guest().expect("did: 0", DOES);
        host.runs("usleep 200000; leave vn0 KILL; start vn0 net --vduse vn0 --link tap=t0");
        host.runs("wait $got && cmp /tmp/got /tmp/www/file");
    }
    transfers(&mut host);
    host.clean("vn0");
    host.runs("leave vn0");
    host.off();
    Ok(())
}
