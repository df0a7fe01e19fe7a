//! Processes of this program that are going to be killed: a front-end, and a daemon.
use super::front::start;
use super::leaving::Driven;
use super::server::Place;
use crate::driver::vdpa::VdpaFrontEnd;
use crate::regress::scenario::{Failure, Outcome, expect};
use crate::regress::socket::requests::{Asked, Memory, SLOTS};
use crate::regress::space::{await_that, pause};
use crate::store::Operation;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to begin.
const START: Duration = Duration::from_secs(20);

/// A process, which is killed when this is dropped.
pub struct Child(Process);

impl Child {
    /// A front-end that has requests in flight, until it is killed.
    pub fn front_end(device: &Path, way: Driven) -> Result<Child, Failure> {
        let mut command = this_program()?;
        command.args(["regress", "--transport", "vduse", "--filter", way.word(), "--drive"]).arg(device);
        Child::start(command)
    }

    /// A daemon that serves a file.
    pub fn daemon(place: &Place, file: &Path) -> Result<Child, Failure> {
        let mut command = this_program()?;
        command.args(["blk", "--vduse", place.name.as_str(), "--store"]);
        command.arg(format!("file={}", file.display())).arg("--state-dir").arg(&place.folder);
        Child::start(command)
    }

    /// Waits until it has come so far. A process takes its time to begin.
    pub fn await_that(&mut self, what: &str, done: impl Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + START;
        while !done() {
            if let Some(status) = self.0.try_wait()? {
                return Err(Failure::new(format!("in vain: {what}: the process ended with {status}")));
            }
            expect(Instant::now() < deadline, &format!("in vain: {what}"))?;
            pause();
        }
        Ok(())
    }

    fn start(mut command: Command) -> Result<Child, Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if std::env::var_os("MDEVD_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        Ok(Child(command.spawn()?))
    }

    /// Kills it, and waits until it is gone with all that it had open.
    pub fn kill(mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Asks it to end, which it must do well.
    pub fn end(mut self) -> Outcome {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let process = &mut self.0;
        await_that("the process ends", || !matches!(process.try_wait(), Ok(None)))?;
        let status = process.wait()?;
        expect(status.success(), &format!("a daemon ended with {status}"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may be gone by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn this_program() -> Result<Command, Failure> {
    Ok(Command::new(std::env::current_exe()?))
}

/// What such a front-end does: it has a request in flight for each slot, and then changes its memory, for ever.
pub fn drive(device: &Path, filter: Option<&str>) -> Outcome {
    let (memory, rings) = Memory::new(1, 2)?;
    let Ok([mut ring]) = <[_; 1]>::try_from(rings) else {
        return Err(Failure::new("there is no ring"));
    };
    let front = VdpaFrontEnd::open(device, 0, 0)?;
    front.share(&memory.guest)?;
    start(&front, &[&ring])?;
    for slot in 0..SLOTS {
        ring.ask(Asked { slot, operation: Operation::Read, region: 1 })?;
    }
    let number = if filter == Some(Driven::There.word()) { 1 } else { 2 };
    let region = super::front::region(&memory, number)?;
    loop {
        front.take_back(region)?;
        front.lend(region)?;
    }
}
