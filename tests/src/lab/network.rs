//! A network of the test's own: a namespace with interfaces that nobody else sees.

use std::fs::{File, read_link};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Lab, Skip, dying_with_us};

const OURS: &str = "/proc/thread-self/ns/net";
const START: Duration = Duration::from_secs(20);

/// Move the calling thread into a network namespace that was just made; what it starts from here on is in it too. The
/// namespace is gone when all of them are.
///
/// # Errors
/// Why there can be none: no rights, or no `/dev/net/tun` to put an interface into it.
///
/// # Panics
/// When it is not there in time.
pub fn move_into_own_network() -> Result<(), Skip> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(Skip("there is no /dev/net/tun".into()));
    }
    let refused = |error: std::io::Error| Skip(format!("no network namespace: {error}"));
    let mut keeper = dying_with_us("unshare");
    keeper.args(["--net", "sleep", "60"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut keeper = keeper.spawn().map_err(refused)?;
    let theirs = format!("/proc/{}/ns/net", keeper.id());
    let before = read_link(OURS).map_err(refused)?;
    let give_up = Instant::now() + START;
    while read_link(&theirs).map_err(refused)? == before {
        let ended = keeper.try_wait().map_err(refused)?;
        if let Some(status) = ended {
            return Err(Skip(format!("no network namespace: unshare ended with {status}")));
        }
        assert!(Instant::now() < give_up, "unshare makes no network namespace");
        std::thread::sleep(Duration::from_millis(2));
    }
    let space = File::open(&theirs).map_err(refused)?;
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| refused(errno.into()))?;
    let _ = keeper.kill();
    let _ = keeper.wait();
    Ok(())
}

/// Configure the network with the `ip` of the lab's busybox.
///
/// # Panics
/// When it refuses.
pub fn ip(lab: &Lab, arguments: &str) {
    let mut command = lab.command("/usr/bin/busybox");
    let done = command.arg("ip").args(arguments.split(' ')).output().expect("the lab's busybox");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}
