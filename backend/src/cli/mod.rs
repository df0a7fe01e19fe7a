//! The command line.
//!
//! `mdevd serve` serves the devices of a file. `mdevd net` and `mdevd blk` serve one over vhost-user, `mdevd nvme` serves one over
//! vfio-user. All three follow the conventions for back-end programs of QEMU's vhost-user document; under the name
//! `mdevd-net` (a link to the same file) the program is `mdevd net`, and so on, since a launcher that follows these conventions
//! knows no subcommands.
//!
//! Exit status: 0 when all went well (also after SIGTERM), 1 when something failed at run time, 2 when the
//! command line was wrong. Messages go to standard error and say what to do; only what was asked for goes to
//! standard output.

mod blk;
mod logger;
mod man;
mod net;
mod nvme;
mod perf;
mod regress;
mod serve;
mod served;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use values::parse_duration;

/// The version with the commit it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("MDEVD_COMMIT"), ")");

const AFTER_HELP: &str = "Environment:\n  \
    MDEVD_LOG  what is logged: error, warn, info (default), debug, trace, or a list like info,mdevd::session=debug;\n             \
    RUST_LOG is read if it is not set\n\n\
    Signals:\n  \
    SIGTERM, SIGINT  stop all queues, remove the socket, exit with status 0; a second one exits at once\n  \
    SIGUSR1          write the counters of all queues to standard error\n  \
    SIGHUP           mdevd serve: read the file again";

/// Software mediated devices, served to virtual machines from a userspace process.
#[derive(Debug, Parser)]
#[command(name = "mdevd", version = VERSION, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a virtio network device over vhost-user
    Net(net::Args),
    /// Serve a virtio block device over vhost-user
    Blk(blk::Args),
    /// Serve an NVMe controller over vfio-user
    Nvme(nvme::Args),
    /// Serve many devices in one process, as a file describes them
    Serve(serve::Args),
    /// Measure a device: start one, or drive one that runs, and print what it reaches
    Perf(perf::Args),
    /// Replay what happens to a device whose memory is taken away, and check that it holds
    Regress(regress::Args),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Args),
}

/// What the program understands, for whoever compares it with what is written about it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    logger::install();
    let cli = Cli::parse_from(arguments(std::env::args_os()));
    let result = match cli.command {
        Command::Net(args) => net::run(&args),
        Command::Blk(args) => blk::run(&args),
        Command::Nvme(args) => nvme::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Perf(args) => perf::run(&args),
        Command::Regress(args) => regress::run(&args),
        Command::Man(args) => man::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr(), "mdevd: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments, with the subcommand that the program's name stands for: `mdevd-net` is `mdevd net`.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let name = arguments.first().and_then(|program| Path::new(program).file_name()?.to_str());
    if let Some(command) = name.and_then(|name| name.strip_prefix("mdevd-")).map(OsString::from) {
        arguments.insert(1, command);
    }
    arguments
}

#[cfg(test)]
mod tests;
