//! The product under test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Ended, Lab, Running, dying_with_us};

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);

/// A running `mdevd`.
#[derive(Debug)]
pub struct Mdevd {
    run: Running,
    queues: u16,
}

/// The counters of one queue, as the product prints them: a name and a number each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One counter, by the title of its column; a column that is not printed stands for 0.
    pub fn get(&self, title: &str) -> u64 {
        self.0.get(title).copied().unwrap_or_default()
    }

    /// Requests that went through the queue of a disk, or commands through that of a controller.
    pub fn requests(&self) -> u64 {
        self.get("requests") + self.get("commands")
    }

    /// Packets that went through the queue.
    pub fn packets(&self) -> u64 {
        self.get("packets")
    }

    /// The counters in a log of one device, one entry for each queue; those of its last table if there are several.
    pub fn in_log(log: &str) -> Vec<Counters> {
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.iter().rposition(|line| line.starts_with("  queue "));
        let table = last.and_then(|at| lines.get(at..)).unwrap_or_default();
        let Some((titles, rows)) = table.split_first() else { return Vec::new() };
        rows.iter().map_while(|row| Counters::parse(titles, row)).collect()
    }

    /// Read a line of `number name, number name`.
    fn named(line: &str) -> Option<Counters> {
        let pair = |pair: &str| {
            let (number, name) = pair.trim().split_once(' ')?;
            Some((name.to_owned(), number.parse().ok()?))
        };
        line.split(',').map(pair).collect::<Option<BTreeMap<_, _>>>().map(Counters)
    }

    /// Read a row of the table under its line of titles. The first column is the queue's number and name, two words under one title.
    fn parse(titles: &str, row: &str) -> Option<Counters> {
        let numbers =
            row.split_whitespace().skip(2).map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let titles: Vec<&str> = titles.split_whitespace().skip(1).collect();
        let whole = titles.len() == numbers.len() && !titles.is_empty();
        whole.then(|| Counters(titles.into_iter().map(String::from).zip(numbers).collect()))
    }
}

impl Mdevd {
    /// Start `mdevd net` on `socket` in the test's working folder with this many queue pairs and more arguments, and wait until it listens.
    ///
    /// # Panics
    /// When it does not listen in time.
    pub fn net(lab: &Lab, socket: &str, queue_pairs: u16, arguments: &[&str]) -> Mdevd {
        let mut command = lab.product();
        command
            .args(["net", "--socket-path", socket, "--queue-pairs", &queue_pairs.to_string()])
            .args(arguments);
        command.env("RUST_LOG", "info");
        let mut run = served(command);
        let path = lab.work().join(socket);
        let deadline = Instant::now() + START;
        while !path.exists() {
            let ended = run.wait(Duration::from_millis(5)).is_some();
            assert!(!ended && Instant::now() < deadline, "mdevd does not listen on {socket}");
        }
        Mdevd { run, queues: 2 * queue_pairs }
    }

    /// Start `mdevd blk` on `socket` in the test's working folder with this many queues, this store and more arguments, and wait until it
    /// serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn blk(lab: &Lab, socket: &str, queues: u16, store: &str, arguments: &[&str]) -> Mdevd {
        let mut command = lab.product();
        command
            .args(["blk", "--socket-path", socket, "--queues", &queues.to_string(), "--store", store])
            .args(arguments);
        command.env("RUST_LOG", "info");
        let mut run = served(command);
        run.expect("serving a block device", START); // a killed one has left its socket
        Mdevd { run, queues }
    }

    /// Start `mdevd nvme` on `socket` in the test's working folder with this many pairs of queues, these stores as namespaces and more
    /// arguments, and wait until it serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn nvme(lab: &Lab, socket: &str, queues: u16, namespaces: &[&str], arguments: &[&str]) -> Mdevd {
        let mut command = lab.product();
        command.args(["nvme", "--socket-path", socket, "--queues", &queues.to_string()]);
        command.args(namespaces.iter().flat_map(|store| ["--namespace", store])).args(arguments);
        command.env("RUST_LOG", "info");
        let mut run = served(command);
        run.expect("serving an NVMe controller", START);
        Mdevd { run, queues }
    }

    /// Start `mdevd net` so that it connects to whoever listens on `socket`, now or later.
    pub fn dialing(lab: &Lab, socket: &str, queue_pairs: u16, arguments: &[&str]) -> Mdevd {
        let mut command = lab.product();
        command.args(["net", "--connect", socket, "--queue-pairs", &queue_pairs.to_string()]).args(arguments);
        command.env("RUST_LOG", "info");
        Mdevd { run: served(command), queues: 2 * queue_pairs }
    }

    /// Start `mdevd serve` with this text as its file `mdevd.toml`, and wait until it says that it serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn serve(lab: &Lab, text: &str) -> Mdevd {
        std::fs::write(lab.work().join("mdevd.toml"), text).expect("a file");
        let mut command = lab.product();
        command.args(["serve", "mdevd.toml"]).env("RUST_LOG", "info");
        let mut run = served(command);
        run.expect("mdevd.toml says", START);
        Mdevd { run, queues: 2 }
    }

    /// Write another file for `mdevd serve`, ask it to read it, and wait until it has, and says `done`.
    pub fn reload(&mut self, lab: &Lab, text: &str, done: &str) -> String {
        std::fs::write(lab.work().join("mdevd.toml"), text).expect("a file");
        self.run.signal(Signal::HUP);
        self.run.expect(done, START)
    }

    /// The counters of one of several devices, all with one queue pair.
    pub fn counters_of(&mut self, device: &str) -> Vec<Counters> {
        self.run.signal(Signal::USR1);
        self.run.expect(&format!("{device}:\n"), STOP);
        self.table()
    }

    /// Start the product with exactly these arguments, for tests of its command line.
    pub fn run(lab: &Lab, arguments: &[&str]) -> Running {
        let mut command = lab.product();
        command.args(arguments);
        Running::spawn("mdevd", command)
    }

    /// Keep it off the processors until [`Mdevd::go_on`].
    pub fn hold(&self) {
        self.run.hold();
    }

    /// Let it run again.
    pub fn go_on(&self) {
        self.run.go_on();
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.run.id()
    }

    /// Processor time it has used so far, all threads together.
    pub fn processor_time(&self) -> Duration {
        let pid = self.run.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        // proc(5): after the name in parentheses, utime and stime are the 12th and 13th field
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_millis(ticks.saturating_mul(1000) / per_second)
    }

    /// The memory files of guests that it has mapped, by inode: how often. Its own, and logs of requests in flight, are not among them.
    pub fn mapped_files(&self) -> BTreeMap<u64, usize> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.run.id())).expect("it is there");
        let mut files = BTreeMap::new();
        let is_guests = |line: &&str| {
            line.contains("/memfd:")
                && !["vhost-inflight", "mdevd-store"].iter().any(|name| line.contains(name))
        };
        for line in maps.lines().filter(is_guests) {
            // proc(5): address, permissions, offset, device, inode, path
            let inode = line.split_whitespace().nth(4).and_then(|inode| inode.parse().ok());
            *files.entry(inode.expect("an inode")).or_default() += 1;
        }
        files
    }

    /// In pages of which sizes, in bytes, the memory files that it has mapped are.
    pub fn mapped_page_sizes(&self) -> BTreeSet<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.run.id())).expect("it is there");
        let (mut sizes, mut is_memory) = (BTreeSet::new(), false);
        for line in maps.lines() {
            if let Some(size) = line.strip_prefix("KernelPageSize:") {
                let size = size.split_whitespace().next().and_then(|size| size.parse::<u64>().ok());
                if is_memory {
                    sizes.insert(size.expect("a number of KiB") << 10);
                }
            } else if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
                is_memory = line.contains("/memfd:");
            }
        }
        sizes
    }

    /// How many memory files it has open.
    pub fn open_files(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.run.id())).expect("it is there");
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("/memfd:")).count()
    }

    /// Kill it without a word to anybody.
    pub fn kill(self) {
        self.run.end(Signal::KILL, STOP);
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.run.wait(Duration::ZERO).is_none()
    }

    /// Wait for `what` in its log.
    pub fn expect(&mut self, what: &str, within: Duration) -> String {
        self.run.expect(what, within)
    }

    /// Ask for its counters: one entry for each queue; those of a NIC are receive queues (even) and transmit queues (odd) in turn.
    ///
    /// # Panics
    /// When it prints no such table in time.
    pub fn counters(&mut self) -> Vec<Counters> {
        self.run.signal(Signal::USR1);
        self.table()
    }

    fn table(&mut self) -> Vec<Counters> {
        let up_to_titles = self.run.expect("  queue ", STOP);
        let titles = up_to_titles.lines().last().unwrap_or_default().to_owned();
        let mut row = || self.run.expect("\n", STOP);
        let rows: Vec<String> = (0..self.queues).map(|_| row()).collect();
        let parse = |row: &String| {
            Counters::parse(&titles, row).unwrap_or_else(|| panic!("no counters: {titles}{row}"))
        };
        rows.iter().map(parse).collect()
    }

    /// Ask for its counters as above, and for those of the memory of all front-ends: a number for each word of their line.
    ///
    /// # Panics
    /// When it does not print them in time.
    pub fn counters_and_memory(&mut self) -> (Vec<Counters>, Counters) {
        let queues = self.counters();
        (queues, self.named("  memory: "))
    }

    /// Ask what front-ends have translated: a number for each word of its line.
    ///
    /// # Panics
    /// When it prints no such line in time.
    pub fn translations(&mut self) -> Counters {
        self.run.signal(Signal::USR1);
        self.named("  iotlb: ")
    }

    fn named(&mut self, title: &str) -> Counters {
        let said = self.run.expect(title, STOP);
        let line = said.rsplit(title).next().unwrap_or_default();
        Counters::named(line).unwrap_or_else(|| panic!("no counters: {said}"))
    }

    /// Ask it to drain and end; it must do so with status 0.
    pub fn terminate(self) -> Ended {
        let ended = self.run.end(Signal::TERM, STOP);
        assert!(ended.status.success(), "mdevd ended with {}:\n{}", ended.status, ended.output);
        ended
    }
}

/// Start the product, whose counters tell more of a failure than its log.
fn served(command: Command) -> Running {
    Running::spawn("mdevd", command).with_last_words(Signal::USR1)
}

/// Build the product with the profile this test was built with, and return the binary. `MDEVD_BIN` names another one.
///
/// A test binary has no way to depend on the binary of another package, so cargo is asked here; its own lock is free while tests run.
pub(super) fn build() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("MDEVD_BIN") {
        return Path::new(&path).canonicalize().map_err(|error| format!("MDEVD_BIN: {error}"));
    }
    // With the profile and into the target folder that this test was built with.
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile_folder =
        this.parent().and_then(Path::parent).ok_or("the test binary stands in no target folder")?;
    let target = profile_folder.parent().ok_or("the profile's folder stands nowhere")?;
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = dying_with_us(cargo);
    command.args(["build", "--quiet", "--profile", profile, "--package", "mdevd", "--bin", "mdevd"]);
    command.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    match command.status() {
        Ok(status) if status.success() => Ok(profile_folder.join("mdevd")),
        Ok(status) => Err(format!("cargo build of mdevd ended with {status}")),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str = "  queue       packets  bytes  drops  parks\n";

    #[test]
    fn a_line_of_numbers_and_names_is_read() {
        let counters = Counters::named("5 entries, 6 misses\n").expect("a line");
        assert_eq!((counters.get("entries"), counters.get("misses")), (5, 6));
        assert!(Counters::named("entries 5").is_none());
    }

    #[test]
    fn a_row_is_read_by_its_titles() {
        let counters =
            Counters::parse(TITLES, "  1 transmit       12    768      3      0\n").expect("a row");
        assert_eq!((counters.packets(), counters.get("bytes"), counters.get("drops")), (12, 768, 3));
        assert_eq!(counters.get("receiver-full"), 0);
    }

    #[test]
    fn the_last_table_of_a_log_counts() {
        let log = format!(
            "{TITLES}  0 receive 1 2 3 4\nother\n{TITLES}  0 receive 5 6 7 8\n  1 transmit 9 1 2 3\n\n"
        );
        let packets: Vec<u64> = Counters::in_log(&log).iter().map(Counters::packets).collect();
        assert_eq!(packets, [5, 9]);
        assert!(Counters::in_log("no table\n").is_empty());
    }

    #[test]
    fn a_row_that_does_not_fit_its_titles_is_none() {
        assert_eq!(Counters::parse(TITLES, "  1 transmit  12  768\n"), None);
        assert_eq!(Counters::parse(TITLES, "  1 transmit  12  x  1  2\n"), None);
    }
}
