//! QEMU's monitor protocol: one JSON object a line, over a unix socket.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer: it stops answering while it waits for a back-end.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
    passed: VecDeque<Value>,
}

impl Qmp {
    /// Connect to the monitor's socket once it is there, and leave the greeting behind.
    ///
    /// # Panics
    /// When there is no monitor within the time.
    pub fn connect(socket: &Path, within: Duration) -> Qmp {
        let deadline = Instant::now() + within;
        loop {
            match Qmp::greeted(socket) {
                Ok(mut qmp) => {
                    qmp.execute("qmp_capabilities", json!({}));
                    return qmp;
                }
                Err(error) => {
                    assert!(Instant::now() < deadline, "no monitor at {}: {error}", socket.display());
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A connection that was greeted. One that a QEMU accepted which is about to go, and no greeting came, is an error.
    fn greeted(socket: &Path) -> io::Result<Qmp> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut lines = BufReader::new(stream);
        if lines.read_line(&mut String::new())? == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
        Ok(Qmp { lines, passed: VecDeque::new() })
    }

    /// Execute a command and return what it returned. Events that arrive before its answer are kept for [`Qmp::event`], those that came
    /// before the command are forgotten.
    ///
    /// # Panics
    /// When QEMU answers with an error or not at all.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The same for a command that may be refused.
    ///
    /// # Errors
    /// What QEMU says.
    ///
    /// # Panics
    /// When QEMU does not answer.
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.passed.clear();
        self.lines.get_mut().write_all(request.as_bytes()).expect("the monitor listens");
        loop {
            let mut answer = self.line();
            if let Some(error) = answer.get_mut("error") {
                return Err(error.take());
            }
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            self.passed.push_back(answer);
        }
    }

    /// Wait for an event of this name that is the one meant, and return it.
    ///
    /// # Panics
    /// When none arrives.
    pub fn event(&mut self, name: &str, meant: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = match self.passed.pop_front() {
                Some(event) => event,
                None => self.line(),
            };
            if line["event"] == name && meant(&line) {
                return line;
            }
        }
    }

    /// Wait until QEMU has closed the monitor.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn until_gone(&mut self) {
        let mut rest = String::new();
        loop {
            match self.lines.read_line(&mut rest) {
                Ok(1..) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("the monitor stays open: {error}: {rest}")
                }
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let count =
            self.lines.read_line(&mut line).unwrap_or_else(|error| panic!("the monitor is silent: {error}"));
        assert!(count > 0, "the monitor has gone");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
    }
}
