//! `mdevd serve`: many devices in one process, as a file describes them.

mod config;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::{Daemon, Kind, Model, Plan, Plans, Shared};
use crate::device::blk::BlkDevice;
use crate::device::net::{Bridges, NetDevice};
use crate::device::nvme::NvmeDevice;
use crate::worker::Mode;

use super::values::parse_duration;
use config::Config;

/// Arguments of `mdevd serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGHUP reads the file again: devices are added, removed or changed, the others are not touched."
)]
pub(super) struct Args {
    /// The devices and the workers, in TOML
    #[arg(value_name = "CONFIG")]
    config: PathBuf,

    /// Say what is wrong with the file, a line each with the place, and exit: status 0 if nothing is
    #[arg(long)]
    check: bool,

    /// Write a line of rates of each device to standard error so often: 1s, 500ms
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    stats: Option<Duration>,
}

/// Serves until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let path = args.config.as_path();
    let config = match load(path, None) {
        Ok(config) => config,
        Err(problems) => {
            let mut stderr = io::stderr().lock();
            for problem in &problems {
                let _ = writeln!(stderr, "{problem}");
            }
            return Err(format!("{} has {} errors; nothing is served", path.display(), problems.len()));
        }
    };
    let (devices, workers) = (config.plans.len(), config.workers.len());
    if args.check {
        let path = path.display();
        return writeln!(io::stdout(), "{path}: {devices} devices on {workers} workers")
            .map_err(|error| format!("cannot write: {error}"));
    }
    let shared = Shared { mode: config.mode, workers: config.workers.clone(), stats: args.stats };
    let file = ConfigFile {
        path: path.to_owned(),
        workers: config.workers,
        mode: config.mode,
        bridges: Bridges::default(),
    };
    let daemon = Daemon::of_plans(Box::new(file), &shared).map_err(|error| error.to_string())?;
    log::info!("serving {devices} devices on {workers} workers as {} says", path.display());
    daemon.run().map_err(|error| error.to_string())
}

/// The file, and the workers that were started for it.
struct ConfigFile {
    path: PathBuf,
    workers: Vec<Option<usize>>,
    mode: Mode,
    /// On which devices with the link `peer` meet.
    bridges: Bridges,
}

impl Plans for ConfigFile {
    fn read(&mut self) -> Result<Vec<Plan>, Vec<String>> {
        let config = load(&self.path, Some(self.workers.len()))?;
        let asked = config.asked_workers.is_some_and(|workers| workers != self.workers);
        if asked || config.mode != self.mode {
            let path = self.path.display();
            log::warn!("{path}: [workers] has changed; that takes effect when mdevd is started anew");
        }
        Ok(config.plans)
    }

    fn make(&mut self, plan: &Plan) -> Result<Model, String> {
        match &plan.kind {
            Kind::Net(config) => NetDevice::among(config.clone(), &self.bridges)
                .map(Model::from)
                .map_err(|error| error.to_string()),
            Kind::Blk(config) => {
                BlkDevice::new(config.clone()).map(Model::from).map_err(|error| error.to_string())
            }
            Kind::Nvme(config) => {
                NvmeDevice::new(config.clone()).map(Model::from).map_err(|error| error.to_string())
            }
        }
    }
}

/// What the file says now. `running`: so many workers run already.
fn load(path: &Path, running: Option<usize>) -> Result<Config, Vec<String>> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|error| vec![format!("{shown}: cannot read: {error}")])?;
    config::parse(&text, &shown, running)
}

#[cfg(test)]
mod tests;
