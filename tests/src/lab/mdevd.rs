//! The product under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Ended, Lab, Running};

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);

/// A running `mdevd net`.
#[derive(Debug)]
pub struct Mdevd {
    run: Running,
}

impl Mdevd {
    /// Start `mdevd net` on `socket` in the test's working folder with more arguments, and wait until it listens.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn net(lab: &Lab, socket: &str, arguments: &[&str]) -> Mdevd {
        let mut command = lab.product();
        command.args(["net", "--socket-path", socket]).args(arguments);
        command.env("RUST_LOG", "info");
        let mut run = Running::spawn("mdevd", command);
        let path = lab.work().join(socket);
        let deadline = Instant::now() + START;
        while !path.exists() {
            let ended = run.wait(Duration::from_millis(5)).is_some();
            assert!(!ended && Instant::now() < deadline, "mdevd does not listen on {socket}");
        }
        Mdevd { run }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.run.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.run.wait(Duration::ZERO).is_none()
    }

    /// Wait for `what` in its log.
    pub fn expect(&mut self, what: &str, within: Duration) -> String {
        self.run.expect(what, within)
    }

    /// Ask it to drain and end; it must do so with status 0.
    pub fn terminate(self) -> Ended {
        let ended = self.run.end(Signal::TERM, STOP);
        assert!(ended.status.success(), "mdevd ended with {}:\n{}", ended.status, ended.output);
        ended
    }
}

/// Build the product with the profile this test was built with, and return the binary. `MDEVD_BIN` names another one.
///
/// A test binary has no way to depend on the binary of another package, so cargo is asked here; its own lock is free while tests run.
pub(super) fn build() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("MDEVD_BIN") {
        return Path::new(&path).canonicalize().map_err(|error| format!("MDEVD_BIN: {error}"));
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile_folder =
        this.parent().and_then(Path::parent).ok_or("the test binary stands in no target folder")?;
    let target = profile_folder.parent().ok_or("the profile's folder stands nowhere")?;
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "mdevd", "--bin", "mdevd", "--profile", profile]);
    command.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    match command.status() {
        Ok(status) if status.success() => Ok(profile_folder.join("mdevd")),
        Ok(status) => Err(format!("cargo build of mdevd ended with {status}")),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
