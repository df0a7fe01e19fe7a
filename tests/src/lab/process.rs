//! A program under way: its output, its signals, its end.

use std::ffi::OsStr;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How many lines of a program's output are shown when a test fails.
const TAIL: usize = 60;

/// A command that the kernel kills when the thread that started it ends, however that comes about.
pub fn dying_with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A program that was started: everything it prints is collected, and it is killed with its process group when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    reader: Option<JoinHandle<()>>,
    seen: usize,
    ended: Option<ExitStatus>,
    last_words: Option<Signal>,
}

/// How a program ended and all it printed.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output and standard error, in the order in which they were written.
    pub output: String,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<Collected>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    closed: bool,
}

/// How long a program has for its last words.
const LAST_WORDS: Duration = Duration::from_millis(300);

impl Output {
    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, mut from: PipeReader) {
        let mut piece = [0; 4096];
        loop {
            let count = from.read(&mut piece).unwrap_or(0);
            let mut state = self.lock();
            state.bytes.extend_from_slice(&piece[..count]);
            state.closed = count == 0;
            drop(state);
            self.grown.notify_all();
            if count == 0 {
                return;
            }
        }
    }
}

impl Running {
    /// Start `command` in a process group of its own. Its standard input is what the command says, closed by default.
    ///
    /// # Panics
    /// Where the program cannot be started.
    pub fn spawn(name: &str, command: Command) -> Running {
        Self::start(name, command, Stdio::null())
    }

    /// Like [`Running::spawn`], with an input that [`Running::type_in`] writes to.
    pub fn spawn_with_input(name: &str, command: Command) -> Running {
        Self::start(name, command, Stdio::piped())
    }

    fn start(name: &str, mut command: Command, stdin: Stdio) -> Running {
        let (reader, writer) = pipe().expect("a pipe");
        let second = writer.try_clone().expect("a second end of the pipe");
        command.stdin(stdin).stdout(writer).stderr(second).process_group(0);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        drop(command); // it holds our copies of the pipe's writing end, without which the reader would never see its end
        let output = Arc::new(Output::default());
        let collector = Arc::clone(&output);
        let reader = std::thread::spawn(move || collector.collect(reader));
        let stdin = child.stdin.take();
        Running {
            name: name.into(),
            child,
            stdin,
            output,
            reader: Some(reader),
            seen: 0,
            ended: None,
            last_words: None,
        }
    }

    /// The signal at which the program prints its state: sent when a test fails, so that its output ends with that.
    pub fn with_last_words(mut self, signal: Signal) -> Running {
        self.last_words = Some(signal);
        self
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Write to the program's standard input.
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("started with an input");
        stdin
            .write_all(text.as_bytes())
            .unwrap_or_else(|error| panic!("{} does not read: {error}", self.name));
    }

    /// Wait until the program has printed `what` after what the last such wait found, and return everything from there up to the end of
    /// the line `what` stands on.
    ///
    /// # Panics
    /// When it did not within the time, or ended without.
    pub fn expect(&mut self, what: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        let output = Arc::clone(&self.output);
        let mut state = output.lock();
        loop {
            if let Some(end) = line_with(&state.bytes, self.seen, what) {
                let text = String::from_utf8_lossy(&state.bytes[self.seen..end]).into_owned();
                self.seen = end;
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let how = if state.closed { "ended without" } else { "has not" };
                drop(state);
                panic!("{} {how} printing {what:?} within {within:?}", self.name);
            }
            state = output.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Have the next wait look only at what is printed from now on.
    pub fn forget_output(&mut self) {
        self.seen = self.output.lock().bytes.len();
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().bytes).into_owned()
    }

    /// The last line printed so far that is not empty.
    pub fn last_line(&self) -> String {
        self.output().lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output").trim().into()
    }

    /// Send a signal to the program.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process(self.pid(), signal)
                .unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Keep the program and its children off the processors until [`Running::go_on`].
    pub fn hold(&self) {
        self.signal_group(Signal::STOP);
    }

    /// Let a program that was held run again.
    pub fn go_on(&self) {
        self.signal_group(Signal::CONT);
    }

    fn signal_group(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process_group(self.pid(), signal)
                .unwrap_or_else(|error| panic!("cannot signal the group of {}: {error}", self.name));
        }
    }

    /// Wait for the end of the program; `None` when it still runs after that time.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
            if self.ended.is_none() {
                if Instant::now() >= deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(reader) = self.reader.take() {
            let _ = kill_process_group(self.pid(), Signal::KILL); // a stray grandchild would hold the pipe open
            reader.join().expect("the reader does not panic");
        }
        self.ended
    }

    /// Send `signal` and wait for the end.
    ///
    /// # Panics
    /// When the program still runs after that time.
    pub fn end(mut self, signal: Signal, within: Duration) -> Ended {
        self.signal(signal);
        self.ended(within)
    }

    /// Wait for the program to end by itself.
    ///
    /// # Panics
    /// When it still runs after that time.
    pub fn ended(&mut self, within: Duration) -> Ended {
        let status =
            self.wait(within).unwrap_or_else(|| panic!("{} has not ended within {within:?}", self.name));
        Ended { status, output: self.output() }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if let Some(signal) = self.last_words.filter(|_| std::thread::panicking()) {
                let _ = kill_process(self.pid(), signal);
                std::thread::sleep(LAST_WORDS);
            }
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
            if let Some(reader) = self.reader.take() {
                let _ = reader.join();
            }
        }
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let from = lines.len().saturating_sub(TAIL);
            eprintln!("---- end of {}'s output ----\n{}\n----", self.name, lines[from..].join("\n"));
        }
    }
}

/// Where the line ends that holds the first `what` at or after `from`; `None` while there is none or its line is not complete.
fn line_with(bytes: &[u8], from: usize, what: &str) -> Option<usize> {
    let found =
        from + bytes.get(from..)?.windows(what.len().max(1)).position(|piece| piece == what.as_bytes())?;
    Some(found + 1 + bytes[found..].iter().position(|byte| *byte == b'\n')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_wait_goes_on_after_the_last_one() {
        let mut run = Running::spawn("sh", shell("echo up 1; echo other; echo up 2"));
        assert_eq!(run.expect("up", SOON), "up 1\n");
        assert_eq!(run.expect("up", SOON), "other\nup 2\n");
    }

    #[test]
    #[should_panic(expected = "ended without")]
    fn a_wait_for_what_a_dead_program_never_said_panics_at_once() {
        Running::spawn("sh", shell("echo no")).expect("yes", SOON);
    }

    #[test]
    fn a_dropped_program_takes_its_children_with_it() {
        let mut run = Running::spawn("sh", shell("sleep 1000 & echo $!; wait"));
        let child = run.expect("\n", SOON).trim().to_owned();
        drop(run);
        let gone = || !std::path::Path::new("/proc").join(&child).join("exe").exists(); // a zombie has no exe
        let deadline = Instant::now() + SOON;
        while !gone() {
            assert!(Instant::now() < deadline, "sleep {child} still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn input_reaches_the_program_and_its_status_comes_back() {
        let mut run = Running::spawn_with_input("sh", shell("read line; echo got $line; exit 3"));
        run.type_in("this\n");
        run.expect("got this", SOON);
        assert_eq!(run.ended(SOON).status.code(), Some(3));
    }
}
