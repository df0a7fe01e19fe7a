//! `mdevd regress`: regression tests of the device's side.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::regress::{Options, Transport, chosen, drive, run as play, table};
use crate::sys::with_signals_held;

/// What is printed; below the options.
const MEANINGS: &str = "\
A scenario is something that happens to a device on somebody else's memory: it is closed
while it pins, its memory is unmapped, truncated, or its owner is killed. Each is played for
some rounds; no operation may take ten times its bound, and at the end there must be no pins,
descriptors or mappings left. But for vduse it needs no privileges and no virtual machine.

On vhost-user it is a virtio device, on vfio-user an NVMe controller, over a real socket in
this process. On vduse it is a virtio device of this host's kernel, which this process serves
and drives: that needs root, the modules vduse and vhost_vdpa (without virtio_vdpa), and the
program vdpa of iproute2.

Results: ok; FAILED, with the reason below the table; skipped, with what it needs; not on this
transport, where only others play it.

The exit status is 1 if a scenario failed, and if this host lacks what the transport needs;
then nothing is played.";

/// Arguments of `mdevd regress`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = MEANINGS, after_help = "--help says more")]
pub(super) struct Args {
    /// Only scenarios with this text in their name, or of this number
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Rounds of the quickest scenarios; slower ones are repeated less often
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Where chance begins, to play the same rounds again [default: another each time, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,

    /// What the scenarios act on
    #[arg(long, value_name = "TRANSPORT", value_enum, default_value_t = Transport::Memory)]
    transport: Transport,

    /// Write the results as JSON to this file; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Say which scenarios there are and what they show, and exit
    #[arg(long)]
    list: bool,

    /// Drive this device of vhost-vdpa until killed, as a scenario wants it
    #[arg(long, value_name = "PATH", hide = true)]
    drive: Option<PathBuf>,
}

/// Plays, prints, and says whether all scenarios hold.
pub(super) fn run(args: &Args) -> Result<(), String> {
    if let Some(device) = &args.drive {
        return drive(device, args.filter.as_deref()).map_err(|failure| failure.to_string());
    }
    let seed = args.seed.unwrap_or_else(any_seed);
    let mut command = super::perf::command();
    if args.seed.is_none() {
        command.push_str(&format!(" --seed {seed}"));
    }
    let options = Options {
        command,
        filter: args.filter.clone(),
        rounds: args.rounds,
        seed,
        transport: args.transport,
        json: args.json.clone(),
    };
    if args.list {
        let scenarios = chosen(&options).map_err(|error| error.to_string())?;
        // A reader that is gone has read enough.
        let _ = io::stdout().write_all(table::list(&scenarios).as_bytes());
        return Ok(());
    }
    if ["MDEVD_LOG", "RUST_LOG"].iter().all(|name| std::env::var_os(name).is_none()) {
        // What a device says of front-ends that vanish is no news here.
        log::set_max_level(log::LevelFilter::Off);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the process at once: a scenario may be long.
        with_signals_held(&[signal], || {
            signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
        })
        .map_err(|error| format!("cannot catch signals: {error}"))?;
    }
    play(&options, &stop, &mut io::stdout().lock()).map_err(|error| error.to_string())
}

/// A seed that nobody has chosen.
fn any_seed() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos())
}
