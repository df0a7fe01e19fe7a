//! `mdevd perf` from outside: what it prints and writes, and what it leaves behind. Here of network devices; block devices are in
//! [`blk`].

mod blk;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mdevd::report::{Report, Status};
use rustix::process::{Pid, Signal, kill_process};

/// No run here takes a tenth of it, unless other programs keep both processors busy.
const WATCHDOG: Duration = Duration::from_secs(300);

/// A run wants two processors for itself, so there is one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A run in a temporary directory of its own.
struct Run {
    child: Child,
    temporary: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Run {
    fn start(arguments: &str) -> Run {
        Run::of("net", arguments)
    }

    /// Of a kind of device.
    fn of(device: &str, arguments: &str) -> Run {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mdevd"))
            .args(["perf", device])
            .args(arguments.split_whitespace())
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Run { child, temporary, _alone: alone }
    }

    /// Its children.
    fn devices(&self) -> Vec<Pid> {
        let id = self.child.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)).collect()
    }

    /// Waits until it drives a device.
    fn device(&self) -> Pid {
        wait_for(|| {
            let device = self.devices().first().copied()?;
            let listens = |path: &String| {
                ["net.sock", "blk.sock"].iter().any(|name| Path::new(path).join(name).exists())
            };
            self.left_behind().iter().any(listens).then_some(device)
        })
    }

    fn left_behind(&self) -> Vec<String> {
        let entries = fs::read_dir(self.temporary.path()).unwrap();
        entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
    }

    /// Its status, what it printed and what it complained about; nothing must be left of it.
    fn end(mut self) -> (ExitStatus, String, String) {
        let status = wait_for(|| self.child.try_wait().unwrap());
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(self.left_behind(), Vec::<String>::new());
        (status, out, err)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn exists(process: Pid) -> bool {
    rustix::process::test_kill_process(process).is_ok()
}

#[test]
fn all_directions_are_measured_and_verified_and_the_report_says_so() {
    let run = Run::start("--size 64,imix --duration 200ms --json -");
    let (status, out, err) = run.end();
    assert!(status.success(), "{err}");
    let report: Report = serde_json::from_str(&out).expect("nothing but the report");
    assert_eq!(report.command, "mdevd perf net --size 64,imix --duration 200ms --json -");
    for direction in ["to", "from", "loop"] {
        for size in ["64", "imix"] {
            for (what, unit) in [("rate", "Mpps"), ("throughput", "Gbit/s"), ("device-time", "ns")] {
                let result = report.result(&format!("{direction}/{size}/{what}")).unwrap();
                assert_eq!((result.status, result.unit.as_str()), (Status::Ok, unit), "{}", result.name);
                assert!(result.median > 0.0, "{}", result.name);
            }
            assert!(report.result(&format!("{direction}/{size}/latency-p99.9")).is_some());
        }
    }
}

#[test]
fn table_has_a_line_for_each_cell_and_the_file_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let arguments = format!(
        "--size 60,1518,9018 --direction loop --queue-pairs 2 --ring-size 64 --duration 100ms --json {}",
        file.display()
    );
    let (status, out, err) = Run::start(&arguments).end();
    assert!(status.success(), "{err}{out}");
    let rows: Vec<&str> = out.lines().filter(|line| line.ends_with(" ok")).collect();
    assert_eq!(rows.len(), 3, "{out}");
    assert!(rows.iter().all(|row| row.starts_with("loop ")));
    let report: Report = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert!(!report.failed());
}

#[test]
fn interrupted_run_fails_and_leaves_neither_device_nor_directory() {
    for signal in [Signal::INT, Signal::TERM] {
        let run = Run::start("--size 64 --duration 60s");
        let device = run.device();
        kill_process(Pid::from_child(&run.child), signal).unwrap();
        let (status, _, err) = run.end();
        assert_eq!(status.code(), Some(1));
        assert!(err.contains("interrupted"), "{err}");
        assert!(!exists(device));
    }
}

#[test]
fn device_that_dies_ends_the_run_with_an_error() {
    let run = Run::start("--size 64 --direction from --duration 60s");
    let device = run.device();
    kill_process(device, Signal::KILL).unwrap();
    let (status, out, err) = run.end();
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("has ended (signal: 9"), "{err}");
    assert!(out.contains("FAILED"), "{out}");
}

#[test]
fn device_ends_when_the_measuring_process_is_killed() {
    let mut run = Run::start("--size 64 --duration 60s");
    let device = run.device();
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    // An orphan is somebody else's child: it is gone once its process number is free or a zombie's.
    wait_for(|| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", device.as_raw_nonzero())).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn socket_that_nobody_listens_on_is_an_error_that_names_it() {
    let (status, _, err) = Run::start("--socket-path /nonexistent/net.sock --size 64 --direction to").end();
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("/nonexistent/net.sock"), "{err}");
}

/// Another device, which listens in a folder of its own.
struct Other {
    child: Child,
    folder: tempfile::TempDir,
}

impl Other {
    fn start(link: &str) -> Other {
        Other::of(&["net", "--link", link])
    }

    /// Of any kind.
    fn of(arguments: &[&str]) -> Other {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mdevd"))
            .args(arguments)
            .arg("--socket-path")
            .arg(folder.path().join("net.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let other = Other { child, folder };
        wait_for(|| other.socket().exists().then_some(()));
        other
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("net.sock")
    }

    /// How its process is: R, S, T ...
    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = kill_process(Pid::from_child(&self.child), Signal::CONT);
        let _ = self.child.wait();
    }
}

#[test]
fn back_end_that_sends_nothing_is_an_error_that_says_so() {
    let device = Other::start("null");
    let arguments = format!("--socket-path {} --size 64 --direction from", device.socket().display());
    let (status, out, err) = Run::start(&arguments).end();
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("no packet for"), "{err}");
    assert!(out.contains("FAILED"), "{out}");
}

#[test]
fn shapes_of_rings_are_verified_in_a_loop() {
    let shapes = [
        "--indirect --burst 4",
        "--mergeable off --burst 64",
        "--mergeable on --in-order",
        "--ring packed",
        "--ring packed --in-order --mergeable off",
        "--ring packed --indirect --burst 8",
    ];
    for shape in shapes {
        let arguments = format!("--size imix --direction loop --duration 100ms {shape}");
        let (status, out, err) = Run::start(&arguments).end();
        assert!(status.success(), "{shape}: {err}{out}");
    }
}

#[test]
fn two_back_ends_are_compared_in_turns_and_the_one_that_waits_is_stopped() {
    let other = Other::start("loopback");
    let arguments = format!(
        "--size 64 --direction loop --duration 400ms --pairs 2 --pause --json - --against {}",
        other.socket().display()
    );
    let run = Run::start(&arguments);
    wait_for(|| (other.state() == Some('T')).then_some(()));
    let (status, out, err) = run.end();
    assert!(status.success(), "{err}{out}");
    assert_ne!(other.state(), Some('T'), "it goes on in the end");
    let report: Report = serde_json::from_str(&out).expect("nothing but the report");
    let count = |name: &str| report.result(name).map_or(0, |result| result.samples.len());
    let dropped = report.result("loop/64/B/pairs-dropped").unwrap().median as usize;
    assert_eq!(count("loop/64/A-by-B/ratio") + dropped, 2);
    assert_eq!(count("loop/64/A-beside-B/rate"), count("loop/64/B/rate"));
}

#[test]
fn other_that_nobody_listens_for_is_an_error_that_names_it() {
    let (status, _, err) =
        Run::start("--size 64 --direction to --duration 500ms --against /nonexistent/other.sock").end();
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("/nonexistent/other.sock"), "{err}");
}

#[test]
fn search_without_loss_prints_its_trials_and_reports_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let arguments = format!(
        "--zero-loss --size 64 --direction to,from,loop --duration 100ms --resolution 25 --max-rate 200k --json {}",
        file.display()
    );
    let (status, out, err) = Run::start(&arguments).end();
    assert!(status.success(), "{err}{out}");
    let report: Report = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    for direction in ["to", "loop"] {
        let result = |what: &str| report.result(&format!("{direction}/64/{what}")).unwrap();
        let trials = result("trials-wanted").samples.clone();
        assert_eq!(trials.first(), Some(&0.2));
        assert_eq!(trials.len(), result("trials-lost").samples.len());
        assert!(out.lines().filter(|line| line.starts_with(direction)).count() > trials.len(), "{out}");
    }
    assert!(report.result("from/64/zero-loss-rate").is_none());
}

#[test]
fn latency_of_every_frame_is_reported_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let arguments = format!(
        "--latency one,20k --size 64 --direction loop --duration 200ms --json - --html {}",
        page.display()
    );
    let (status, out, err) = Run::start(&arguments).end();
    assert!(status.success(), "{err}");
    let report: Report = serde_json::from_str(&out).expect("nothing but the report");
    for load in ["one", "20k"] {
        let value = |what: &str| report.result(&format!("loop/64/{load}/{what}")).unwrap().median;
        let latencies = ["latency-min", "latency-p50", "latency-p99", "latency-max"].map(value);
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{latencies:?}");
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("loop/64/20k/latency-p99.9"));
}

#[test]
fn page_of_a_plain_run_shows_its_rates_and_escapes_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("<b>&.html");
    let arguments = format!("--size 64 --direction to --duration 100ms --html {}", page.display());
    let (status, _, err) = Run::start(&arguments).end();
    assert!(status.success(), "{err}");
    let text = fs::read_to_string(page).unwrap();
    assert!(text.contains("&lt;b&gt;&amp;.html") && !text.contains("<b>"));
    assert!(text.contains("Rate by frame size"));
}
