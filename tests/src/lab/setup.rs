//! Making the lab's root, once per machine and version, and keeping two runs apart.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{Running, Skip};

/// How long the set-up may take: about 20 seconds with a near mirror.
const SETUP_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How long another run on this machine may keep the lab.
const LOCK_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Where the lock of all runs on this machine stands, whatever their cache folders: huge pages belong to the machine.
const LOCK: &str = "/run/lock/mdevd-lab.lock";

/// The path of a script of `tests/lab/`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab").join(name)
}

/// What the environment wants of the lab.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Skip everything (`MDEVD_LAB=off`).
    pub off: bool,
    /// A missing lab and a skipped test are failures (`MDEVD_LAB=required`, or `CI`).
    pub required: bool,
    /// The full matrix (`MDEVD_LAB=full`).
    pub full: bool,
}

impl Wanted {
    /// Read the environment.
    pub fn from_env() -> Wanted {
        let set = |name| std::env::var(name).unwrap_or_default();
        Wanted::new(&set("MDEVD_LAB"), &set("CI"))
    }

    fn new(lab: &str, ci: &str) -> Wanted {
        let off = lab == "off";
        let ci = !matches!(ci, "" | "0" | "false");
        Wanted { off, required: !off && (ci || lab == "required"), full: lab == "full" }
    }
}

/// The root of a lab that is ready, made now if it is not there yet.
pub fn root(_while_locked: &Lock) -> Result<PathBuf, Skip> {
    let cache = cache_folder().ok_or_else(|| Skip("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    let root = cache.join(format!("lab-{}", version()));
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&cache)
        .map_err(|error| Skip(format!("cannot create {}: {error}", cache.display())))?;
    eprintln!("lab: setting up {} (once, about 20 s)", root.display());
    let mut command = Command::new(script("setup.sh"));
    command.arg(&root).stdin(Stdio::null());
    let mut run = Running::spawn("setup.sh", command);
    match run.wait(SETUP_LIMIT) {
        Some(status) if status.success() => Ok(root),
        Some(_) => Err(Skip(run.last_line())),
        None => Err(Skip(format!("the set-up took longer than {SETUP_LIMIT:?}"))),
    }
}

/// The lock that keeps two runs of the lab on one machine apart; released when dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "holding it is its use")] File);

/// Take the machine's lab lock, waiting for another run to end.
pub fn lock() -> Result<Lock, Skip> {
    if !rustix::process::getuid().is_root() {
        return Err(Skip("the lab needs root".into()));
    }
    let failed = |error: std::io::Error| Skip(format!("cannot lock {LOCK}: {error}"));
    let folder = Path::new(LOCK).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed)?;
    let file = File::options().create(true).append(true).open(LOCK).map_err(failed)?;
    let give_up = Instant::now() + LOCK_LIMIT;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                if !told {
                    eprintln!("lab: waiting for another run of the lab on this machine");
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Skip(format!("another run has held {LOCK} for {LOCK_LIMIT:?}")));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("mdevd"))
}

/// A lab is as old as the script that made it: 64-bit FNV-1a over its text.
fn version() -> String {
    let hash = include_bytes!("../../lab/setup.sh").iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_wins_over_ci_so_that_a_run_without_the_lab_can_be_asked_for() {
        assert_eq!(Wanted::new("off", "true"), Wanted { off: true, required: false, full: false });
    }

    #[test]
    fn ci_and_required_make_a_missing_lab_a_failure() {
        assert!(Wanted::new("", "true").required);
        assert!(Wanted::new("required", "").required);
        assert!(Wanted::new("full", "1").required);
        assert!(!Wanted::new("", "").required);
        assert!(!Wanted::new("", "false").required);
    }

    #[test]
    fn the_scripts_are_where_the_harness_looks_for_them() {
        for name in ["setup.sh", "enter.sh", "guest-init.sh"] {
            assert!(script(name).is_file(), "{name}");
        }
    }
}
