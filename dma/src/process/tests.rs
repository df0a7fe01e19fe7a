use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;

/// A shell that can be told to execute something else, and where its stack lies.
fn shell() -> (Child, Arc<Process>, UserAddr) {
    let mut child =
        Command::new("/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    // It answers when it has become what it is.
    writeln!(child.stdin.as_mut().unwrap(), "echo ready").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let process = Process::open(child.id()).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = u64::from_str_radix(stack.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
    (child, process, UserAddr(end - 64))
}

#[test]
fn bytes_of_this_process_are_read_and_written_where_they_are() {
    let me = Process::open(std::process::id()).unwrap();
    let bytes = vec![7u8; 10_000];
    let at = UserAddr(bytes.as_ptr() as u64);
    let mut seen = vec![0; bytes.len()];
    me.read(at, &mut seen).unwrap();
    assert_eq!(seen, bytes);
    me.write(UserAddr(at.0 + 5), b"hello").unwrap();
    me.read(UserAddr(at.0 + 4), &mut seen[..7]).unwrap();
    assert_eq!(&seen[..7], b"\x07hello\x07");
    assert!(!me.ended());
    for nowhere in [8, 1 << 63, u64::MAX, u64::MAX - 2] {
        assert_eq!(me.read(UserAddr(nowhere), &mut [0; 4]), Err(Unreachable(UserAddr(nowhere))));
        assert!(me.write(UserAddr(nowhere), &[0; 4]).is_err());
    }
    me.read(UserAddr(8), &mut []).unwrap();
}

#[test]
fn process_that_has_ended_has_no_memory_and_cannot_be_opened() {
    let (mut child, process, at) = shell();
    let pidfd = pidfd_open(Pid::from_raw(child.id() as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let again = Process::from_pidfd(pidfd.try_clone().unwrap()).unwrap();
    process.read(at, &mut [0; 8]).unwrap();
    again.read(at, &mut [0; 8]).unwrap();
    child.kill().unwrap();
    // A zombie has its number still.
    while !process.ended() {
        std::thread::yield_now();
    }
    assert!(Process::open(child.id()).is_err());
    assert!(process.read(at, &mut [0; 8]).is_err() && again.write(at, &[0; 8]).is_err());
    child.wait().unwrap();
    assert_eq!(Process::open(child.id()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    assert_eq!(Process::from_pidfd(pidfd).unwrap_err().raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn program_that_a_process_executes_is_not_reached() {
    let (mut child, process, at) = shell();
    process.read(at, &mut [0; 8]).unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "exec /bin/sh -c 'echo other; read line'").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "other\n");
    assert!(!process.ended());
    assert_eq!(process.read(at, &mut [0; 8]), Err(Unreachable(at)), "the old program's memory is gone");
    Process::open(child.id()).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn what_names_no_process_is_refused() {
    assert_eq!(Process::open(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    assert_eq!(Process::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    let file = File::open("/dev/null").unwrap();
    assert_eq!(Process::from_pidfd(file.into()).unwrap_err().raw_os_error(), Some(libc::EBADF));
}
