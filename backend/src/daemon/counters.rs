//! Counters for the process that started this one and measures it: a question a byte, an answer a line.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::report::CounterLine;

/// The answering end of a stream socket. Each byte that is read, whatever it is, is answered by one line of JSON
/// ([`CounterLine`]).
#[derive(Debug)]
pub struct CounterSocket(UnixStream);

impl CounterSocket {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// It is no descriptor that can be made non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(CounterSocket(socket))
    }

    /// Answers what was asked. False: nobody asks any more, the socket's other end is gone or does not read.
    pub(super) fn answer(&self, line: impl FnOnce() -> CounterLine) -> bool {
        let mut questions = [0; 16];
        let asked = match (&self.0).read(&mut questions) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let Ok(line) = line().to_json() else { return false };
        // An answer that does not fit into the socket's buffer is one to somebody who asks and does not read.
        (0..asked).all(|_| (&self.0).write_all(line.as_bytes()).is_ok())
    }
}

impl AsFd for CounterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::net::{NetConfig, NetDevice};
    use mdev_dma::Windows;
    use std::io::{BufRead, BufReader};

    fn line() -> CounterLine {
        CounterLine::of(&device(), &Windows::new().unwrap())
    }

    fn device() -> NetDevice {
        let config = NetConfig {
            name: "net".into(),
            queue_pairs: 2,
            mac: None,
            mtu: None,
            link: "null".parse().unwrap(),
        };
        NetDevice::new(config).unwrap()
    }

    #[test]
    fn each_byte_is_answered_by_a_line_with_all_queues() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = CounterSocket::new(theirs.into()).unwrap();
        assert!(socket.answer(line), "nothing asked, nothing answered");
        (&ours).write_all(b"??").unwrap();
        assert!(socket.answer(line));
        for line in BufReader::new(&ours).lines().take(2) {
            let line: CounterLine = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(line.queues.len(), 4);
        }
    }

    #[test]
    fn peer_that_is_gone_or_never_reads_ends_the_answers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = CounterSocket::new(theirs.into()).unwrap();
        drop(ours);
        assert!(!socket.answer(line));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = CounterSocket::new(theirs.into()).unwrap();
        let mut answers = 0;
        while {
            (&ours).write_all(&[0; 16]).unwrap();
            socket.answer(line)
        } {
            answers += 1;
            assert!(answers < 100_000, "the buffer ends somewhere");
        }
    }
}
