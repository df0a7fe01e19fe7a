//! A transfer that goes on for as long as a test does: bytes to a guest over TCP, and back from it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many bytes are on their way at once: enough to keep the queues busy, few enough that a pause is seen at once.
const IN_FLIGHT: u64 = 128 << 10;
const PIECE: usize = 16 << 10;

/// How long the guest may take to call.
const CALL: Duration = Duration::from_secs(60);

/// One connection whose other end sends back what it gets. Each byte is looked at: none may be missing, changed or come twice.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    sent: u64,
    back: u64,
    /// When the last bytes came back.
    last: Option<Instant>,
    longest: Duration,
    ended: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: impl Into<String>) {
        self.lock().ended.get_or_insert(why.into());
        self.changed.notify_all();
    }
}

/// The byte at this place of the stream.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Stream {
    /// Take the call of a guest and begin.
    ///
    /// # Panics
    /// When none comes.
    pub fn accept(listener: &TcpListener) -> Stream {
        listener.set_nonblocking(true).expect("a socket");
        let give_up = Instant::now() + CALL;
        let socket = loop {
            match listener.accept() {
                Ok((socket, _)) => break socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < give_up, "the guest does not call");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("accept: {error}"),
            }
        };
        socket.set_nonblocking(false).expect("a socket");
        Stream::over(socket)
    }

    fn over(socket: TcpStream) -> Stream {
        let shared = Arc::<Shared>::default();
        let end = |socket: &TcpStream| (socket.try_clone().expect("a descriptor"), Arc::clone(&shared));
        let ((to, sending), (from, receiving)) = (end(&socket), end(&socket));
        let threads = vec![
            std::thread::spawn(move || send(to, &sending)),
            std::thread::spawn(move || receive(from, &receiving)),
        ];
        Stream { socket, shared, threads }
    }

    /// Wait until so many more bytes have come back.
    ///
    /// # Panics
    /// When they do not in time, or are not those that were sent.
    pub fn moves(&self, bytes: u64, within: Duration) {
        let give_up = Instant::now() + within;
        let mut state = self.shared.lock();
        let goal = state.back + bytes;
        while state.back < goal {
            let left = give_up.saturating_duration_since(Instant::now());
            let (back, missing) = (state.back, goal - state.back);
            assert!(state.ended.is_none(), "the transfer has ended after {back} bytes: {:?}", state.ended);
            assert!(!left.is_zero(), "the transfer stands still after {back} bytes; {missing} are missing");
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The longest time without a byte since this was asked last.
    pub fn gap(&self) -> Duration {
        std::mem::take(&mut self.shared.lock().longest)
    }

    /// How many bytes have come back.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().back
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.end("it is over");
        let _ = self.socket.shutdown(Shutdown::Both);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn send(mut socket: TcpStream, shared: &Shared) {
    let mut piece = [0; PIECE];
    for at in (0..).step_by(PIECE) {
        let mut state = shared.lock();
        while state.sent - state.back > IN_FLIGHT && state.ended.is_none() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended.is_some() {
            return;
        }
        state.sent += PIECE as u64;
        drop(state);
        piece.iter_mut().zip(at..).for_each(|(place, at)| *place = byte(at));
        if let Err(error) = socket.write_all(&piece) {
            return shared.end(format!("sending: {error}"));
        }
    }
}

fn receive(mut socket: TcpStream, shared: &Shared) {
    let mut piece = [0; PIECE];
    let mut at = 0;
    loop {
        let count = match socket.read(&mut piece) {
            Ok(0) => return shared.end("the guest has closed it"),
            Ok(count) => count,
            Err(error) => return shared.end(format!("receiving: {error}")),
        };
        if let Some((place, _)) = (at..).zip(&piece[..count]).find(|&(at, &got)| got != byte(at)) {
            return shared.end(format!("byte {place} is not what was sent"));
        }
        at += count as u64;
        let now = Instant::now();
        let mut state = shared.lock();
        let gap = state.last.map_or(Duration::ZERO, |last| now - last);
        state.longest = state.longest.max(gap);
        state.last = Some(now);
        state.back = at;
        drop(state);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A guest that gives everything back, but for one bit at `wrong`.
    fn guest(listener: &TcpListener, wrong: Option<u64>) -> JoinHandle<()> {
        let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        std::thread::spawn(move || {
            let (mut at, mut piece) = (0, [0; 1000]);
            while let Ok(count @ 1..) = socket.read(&mut piece) {
                let inside = wrong.and_then(|wrong| usize::try_from(wrong.checked_sub(at)?).ok());
                if let Some(byte) = inside.and_then(|inside| piece[..count].get_mut(inside)) {
                    *byte ^= 1;
                }
                at += count as u64;
                if socket.write_all(&piece[..count]).is_err() {
                    return;
                }
            }
        })
    }

    #[test]
    fn what_comes_back_whole_moves_on_and_the_gap_is_told_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let guest = guest(&listener, None);
        let stream = Stream::accept(&listener);
        stream.moves(1 << 20, SOON);
        assert!(stream.bytes() >= 1 << 20 && stream.gap() > Duration::ZERO);
        drop(stream);
        guest.join().expect("it sees the end");
    }

    #[test]
    #[should_panic(expected = "byte 300000 is not what was sent")]
    fn a_changed_bit_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _guest = guest(&listener, Some(300_000));
        Stream::accept(&listener).moves(1 << 20, SOON);
    }
}
