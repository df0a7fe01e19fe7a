//! `mdevd nvme`: an NVMe controller over vfio-user.

use crate::device::nvme::{DEFAULT_QUEUES, NamespaceConfig, NvmeConfig, NvmeDevice, QUEUE_NAMES};
use crate::store::StoreKind;

use super::served::{Function, Serving};

/// Arguments of `mdevd nvme`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "mdevd nvme (--socket-path <PATH> | --fd <N>) --namespace <STORE>... [OPTIONS]")]
pub(super) struct Args {
    #[command(flatten)]
    served: Function,

    /// A namespace, and what is behind it: file=PATH[,direct=on|off][,ro=on|off] (a file or block device, locked against
    /// other writers; direct=on goes past the page cache), mem,size=N (memory of this process), null,size=N (nothing: reads
    /// leave the guest's memory as it is). Sizes may end in k, M, G or T; a comma in a path is written twice. Given several
    /// times, the namespaces are numbered from 1
    #[arg(long = "namespace", value_name = "STORE", required_unless_present = "print_capabilities")]
    namespaces: Vec<StoreKind>,

    /// Pairs of I/O queues, 1 to 128
    #[arg(long, value_name = "N", default_value_t = DEFAULT_QUEUES, value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: u16,

    /// The serial number that the guest sees, up to 20 bytes (default: the beginning of the device's name)
    #[arg(long, value_name = "S")]
    serial: Option<String>,
}

/// Serves until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let serving =
        Serving { kind: "nvme", what: "an NVMe controller", queue_names: QUEUE_NAMES, features: &[] };
    args.served.run(&serving, |name| {
        let Args { namespaces, queues, serial, .. } = args;
        let namespaces = (1..).zip(namespaces.iter().cloned());
        let namespaces = namespaces.map(|(nsid, store)| NamespaceConfig::new(nsid, store)).collect();
        let config = NvmeConfig { name, namespaces, queues: *queues, serial: serial.clone() };
        NvmeDevice::new(config).map_err(|error| error.to_string())
    })
}
