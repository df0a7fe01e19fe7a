//! The main function of the lab's tests.
//!
//! Cargo's own harness cannot say "skipped, because", runs tests beside each other and cannot end one that hangs. Here each test runs
//! alone in a process of its own (this program once more, with the test's name in its environment) under a time limit, and everything it
//! started dies with that process. The lines printed are cargo's own, so that whoever reads those can read these.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::setup::{self, Lock, Wanted};
use super::{Lab, Running, dying_with_us, mdevd};

/// How long one test may take that says nothing else.
const LIMIT: Duration = Duration::from_secs(180);

/// How long a round may take, of a test that plays some.
const LIMIT_OF_A_ROUND: Duration = Duration::from_secs(30);

/// How often tests repeat what may go well by chance; 2 if it is not set.
const ROUNDS: &str = "MDEVD_LAB_ROUNDS";

/// How many rounds a test is to play of what it repeats.
pub fn rounds() -> u32 {
    std::env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Names the test that this process is to run, and where its lab, the product and its working folder are.
const TRIAL: &str = "MDEVD_LAB_TRIAL";
const ROOT: &str = "MDEVD_LAB_ROOT";
const PRODUCT: &str = "MDEVD_LAB_PRODUCT";
const WORK: &str = "MDEVD_LAB_WORK";

/// The exit status of a test's process that skipped.
const SKIPPED: u8 = 77;
const SKIP_MARK: &str = "skipped: ";

/// Why a test cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip(pub String);

/// One test: a name and a function that panics when it fails.
pub struct Trial {
    name: String,
    run: Box<Body>,
    limit: Duration,
    /// It needs what a machine may lack, and nobody can do anything about it.
    where_possible: bool,
}

type Body = dyn Fn(&Lab) -> Result<(), Skip>;

impl Trial {
    /// A test called `name`.
    pub fn new(name: impl Into<String>, run: impl Fn(&Lab) -> Result<(), Skip> + 'static) -> Trial {
        Trial { name: name.into(), run: Box::new(run), limit: LIMIT, where_possible: false }
    }

    /// The same, but it may take so long.
    pub fn within(self, limit: Duration) -> Trial {
        Trial { limit, ..self }
    }

    /// The same, but it repeats something [`rounds`] times.
    pub fn in_rounds(self) -> Trial {
        self.within(LIMIT + LIMIT_OF_A_ROUND * rounds())
    }

    /// The same, but it needs something of the machine that not every machine has: skipping it is no failure anywhere.
    pub fn where_possible(self) -> Trial {
        Trial { where_possible: true, ..self }
    }
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trial").field(&self.name).finish()
    }
}

/// What the command line asks for, as far as cargo's own harness knows it too.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    show_output: bool,
    only_ignored: bool,
}

impl Asked {
    fn from(arguments: impl Iterator<Item = String>) -> Asked {
        let mut asked = Asked::default();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => asked.exact = true,
                "--list" => asked.list = true,
                "--nocapture" | "--no-capture" | "--show-output" => asked.show_output = true,
                "--ignored" => asked.only_ignored = true,
                "--skip" => asked.skips.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(arguments.next()),
                option if option.starts_with('-') => {}
                _ => asked.filters.push(argument),
            }
        }
        asked
    }

    fn wants(&self, name: &str) -> bool {
        let matches =
            |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        let asked_for = self.filters.is_empty() || self.filters.iter().any(matches);
        asked_for && !self.skips.iter().any(matches) && !self.only_ignored // none is ignored by nature
    }
}

#[derive(Clone)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Run the tests that the command line asks for.
pub fn main(trials: &[Trial]) -> ExitCode {
    if let Ok(name) = std::env::var(TRIAL) {
        return run_here(trials, &name);
    }
    let asked = Asked::from(std::env::args().skip(1));
    let chosen: Vec<&Trial> = trials.iter().filter(|trial| asked.wants(&trial.name)).collect();
    if asked.list {
        chosen.iter().for_each(|trial| println!("{}: test", trial.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let started = Instant::now();
    let wanted = Wanted::from_env();
    let ready = if chosen.is_empty() { Err(Outcome::Passed) } else { prepare(wanted) };
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for trial in &chosen {
        let begun = Instant::now();
        let outcome = match &ready {
            Ok(ready) => run_apart(trial, ready, asked.show_output),
            Err(same_for_all) => same_for_all.clone(),
        };
        let name = &trial.name;
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Outcome::Skipped(reason) if !wanted.required || (trial.where_possible && ready.is_ok()) => {
                skipped += 1;
                println!("test {name} ... ignored, {reason}");
            }
            Outcome::Skipped(reason) => {
                failed += 1;
                println!("test {name} ... FAILED: skipped, which MDEVD_LAB or CI does not allow: {reason}");
            }
            Outcome::Failed(output) => {
                failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n\n---- {name} ----\n{output}\n");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let left_out = trials.len() - chosen.len();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {left_out} filtered out; \
         finished in {seconds:.2}s\n\nlab: {passed} passed, {failed} failed, {skipped} skipped\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What all tests of a run need.
struct Ready {
    root: PathBuf,
    product: PathBuf,
    _lock: Lock,
}

/// Get the machine for this run alone, the lab set up and the product built; otherwise the outcome of every test.
fn prepare(wanted: Wanted) -> Result<Ready, Outcome> {
    let skipped = |Skip(reason)| Outcome::Skipped(reason);
    if wanted.off {
        return Err(Outcome::Skipped("MDEVD_LAB=off".into()));
    }
    let lock = setup::lock().map_err(skipped)?;
    let root = setup::root(&lock).map_err(skipped)?;
    let product = mdevd::build().map_err(Outcome::Failed)?;
    Ok(Ready { root, product, _lock: lock })
}

/// In the test's own process: run it.
fn run_here(trials: &[Trial], name: &str) -> ExitCode {
    let path = |variable| std::env::var_os(variable).map(PathBuf::from).unwrap_or_default();
    let lab = Lab::new(path(ROOT), path(PRODUCT), path(WORK));
    let trial = trials.iter().find(|trial| trial.name == name).expect("a test of this name");
    match (trial.run)(&lab) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Skip(reason)) => {
            println!("{SKIP_MARK}{reason}");
            ExitCode::from(SKIPPED)
        }
    }
}

/// In the runner: start the test's process, wait for it, and say how it went.
fn run_apart(trial: &Trial, ready: &Ready, show_output: bool) -> Outcome {
    let mut command = match std::env::current_exe() {
        Ok(this) => dying_with_us(this),
        Err(error) => return Outcome::Failed(format!("this program cannot find itself: {error}")),
    };
    let work = match tempfile::Builder::new().prefix("mdevd-lab-").tempdir() {
        Ok(work) => work,
        Err(error) => return Outcome::Failed(format!("no working folder: {error}")),
    };
    command
        .env(TRIAL, &trial.name)
        .env(ROOT, &ready.root)
        .env(PRODUCT, &ready.product)
        .env(WORK, work.path());
    let mut run = Running::spawn(&trial.name, command);
    let status = run.wait(trial.limit);
    let output = run.output();
    if show_output {
        println!("{output}");
    }
    match status {
        Some(status) if status.success() => Outcome::Passed,
        Some(status) if status.code() == Some(SKIPPED.into()) => {
            let line = run.last_line();
            Outcome::Skipped(line.strip_prefix(SKIP_MARK).unwrap_or(&line).into())
        }
        Some(status) => Outcome::Failed(format!("{output}\n{status}")),
        None => Outcome::Failed(format!("{output}\nkilled: it took longer than {:?}", trial.limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Asked {
        Asked::from(line.split_whitespace().map(String::from))
    }

    #[test]
    fn without_arguments_every_test_is_wanted() {
        assert!(asked("").wants("net_sends"));
    }

    #[test]
    fn filters_and_skips_are_parts_of_names_unless_exact() {
        assert!(asked("net").wants("net_sends"));
        assert!(!asked("net --exact").wants("net_sends"));
        assert!(!asked("--skip sends").wants("net_sends"));
        assert!(!asked("blk").wants("net_sends"));
    }

    #[test]
    fn values_of_options_are_no_filters() {
        assert!(asked("--test-threads 1 --nocapture --format pretty").wants("net_sends"));
    }

    #[test]
    fn no_test_is_ignored_by_nature() {
        assert!(!asked("--ignored").wants("net_sends"));
    }
}
