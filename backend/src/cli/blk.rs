//! `mdevd blk`: a virtio block device over vhost-user.

use std::path::PathBuf;

use crate::device::blk::{BlkConfig, BlkDevice, QUEUE_NAMES};
use crate::store::{FileOptions, StoreKind};

use super::served::{Served, Serving};

/// Arguments of `mdevd blk`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mdevd blk (--socket-path <PATH> | --connect <PATH> | --fd <N> | --vduse <NAME>) --store <STORE> [OPTIONS]"
)]
pub(super) struct Args {
    #[command(flatten)]
    served: Served,

    /// What is behind the device: file=PATH[,direct=on|off][,ro=on|off] (a file or block device, locked against other writers;
    /// direct=on goes past the page cache), mem,size=N (memory of this process), null,size=N (nothing: reads leave the
    /// guest's memory as it is). Sizes may end in k, M, G or T; a comma in a path is written twice
    #[arg(long, value_name = "STORE", required_unless_present_any = ["blk_file", "print_capabilities"])]
    store: Option<StoreKind>,

    /// The same as --store file=PATH, as launchers of back-ends say it
    #[arg(long, value_name = "PATH", conflicts_with = "store")]
    blk_file: Option<PathBuf>,

    /// Queues, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,

    /// Let the guest only read
    #[arg(long)]
    read_only: bool,

    /// The serial number that the guest sees, up to 20 bytes (default: the beginning of the device's name)
    #[arg(long, value_name = "S")]
    serial: Option<String>,
}

/// Serves until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let serving = Serving {
        kind: "block",
        what: "a block device",
        queue_names: QUEUE_NAMES,
        features: &["read-only", "blk-file"],
    };
    args.served.run(&serving, |name| {
        let Args { store, blk_file, queues, read_only, serial, .. } = args;
        let file = blk_file.as_ref().map(|path| StoreKind::File(FileOptions::new(path.clone())));
        let store = store.clone().or(file).ok_or("give --store")?;
        let config =
            BlkConfig { name, store, queues: *queues, read_only: *read_only, serial: serial.clone() };
        BlkDevice::new(config).map_err(|error| error.to_string())
    })
}
