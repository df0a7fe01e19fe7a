//! `mdevd net`: a virtio network device over vhost-user.

use crate::device::net::{NetConfig, NetDevice, QUEUE_NAMES, parse_mac};
use crate::link::LinkKind;

use super::served::{Served, Serving};

/// Arguments of `mdevd net`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mdevd net (--socket-path <PATH> | --connect <PATH> | --fd <N> | --vduse <NAME>) [OPTIONS]"
)]
pub(super) struct Args {
    #[command(flatten)]
    served: Served,

    /// What the device is connected to: null (drop and count), loopback (every frame comes back),
    /// pktgen[,size=N|imix] (fill the guest's receive rings as fast as it empties them, count what it sends),
    /// tap=NAME (an interface of the host, made if there is none), peer=NAME (the other devices of this process on the
    /// bridge NAME: mdevd serve)
    #[arg(long, value_name = "LINK", default_value = "loopback")]
    link: LinkKind,

    /// Pairs of a receive and a transmit queue, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queue_pairs: u16,

    /// The guest's MAC address (default: the front-end chooses)
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    mac: Option<[u8; 6]>,

    /// The largest packet that the guest should send, without its Ethernet header, 68 to 65535 bytes (default:
    /// the front-end chooses)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,
}

/// Serves until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let serving = Serving { kind: "net", what: "a network device", queue_names: QUEUE_NAMES, features: &[] };
    args.served.run(&serving, |name| {
        let Args { queue_pairs, mac, mtu, link, .. } = *args;
        NetDevice::new(NetConfig { name, queue_pairs, mac, mtu, link }).map_err(|error| error.to_string())
    })
}
