//! From pieces of a stream to messages, without I/O.

use zerocopy::FromBytes;

use super::{FdError, Fds, Incoming};

/// The most bytes that stay allocated from one message to the next.
const KEPT: usize = 64 * 1024;

/// A message as it came.
#[derive(Debug)]
pub struct Frame<M: Incoming> {
    /// Its header.
    pub header: M::Header,
    /// What it says.
    pub message: M,
    /// The descriptors that belong to it, as many as its kind allows.
    pub fds: Fds,
}

/// A message that has come whole.
#[derive(Debug)]
pub enum Decoded<M: Incoming> {
    /// It is well-formed.
    Message(Frame<M>),
    /// It is not; its bytes have been taken from the stream and its descriptors closed.
    Rejected {
        /// Its header.
        header: M::Header,
        /// What is wrong with it.
        error: M::Error,
    },
}

/// Puts messages together from pieces of any length.
///
/// A piece is either copied in ([`Decoder::feed`]) or read in place ([`Decoder::space`], then
/// [`Decoder::advance`]).
#[derive(Debug)]
pub struct Decoder<M: Incoming> {
    /// The message as far as its length is known: header only, then header and body.
    buffer: Vec<u8>,
    filled: usize,
    header: Option<M::Header>,
    fds: Fds,
    fd_error: Option<FdError>,
    broken: Option<M::Error>,
}

impl<M: Incoming> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Incoming> Decoder<M> {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; size_of::<M::Header>()],
            filled: 0,
            header: None,
            fds: Fds::new(),
            fd_error: None,
            broken: None,
        }
    }

    /// Whether part of a message has come.
    pub fn mid_message(&self) -> bool {
        self.filled > 0
    }

    /// Where the next bytes of the stream belong: never empty, and never longer than what is left of the message
    /// or of its header.
    ///
    /// # Errors
    ///
    /// As [`Decoder::advance`].
    pub fn space(&mut self) -> Result<&mut [u8], M::Error> {
        match &self.broken {
            Some(error) => Err(error.clone()),
            None => Ok(self.buffer.get_mut(self.filled..).unwrap_or_default()),
        }
    }

    /// Takes note that the first `read` bytes of [`Decoder::space`] have been filled and that `fds` came with
    /// them; `fds_lost` says that more descriptors came than could be received. Returns the message that is whole
    /// now, if one is.
    ///
    /// # Errors
    ///
    /// The stream cannot be followed any further; every later call returns the same error.
    pub fn advance(&mut self, read: usize, fds: Fds, fds_lost: bool) -> Result<Option<Decoded<M>>, M::Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if read > 0 {
            self.take_fds(fds, fds_lost);
        }
        self.filled = self.filled.saturating_add(read).min(self.buffer.len());
        if self.filled < self.buffer.len() {
            return Ok(None);
        }
        let header = match self.header {
            Some(header) => header,
            None => {
                let Ok((header, _)) = M::Header::read_from_prefix(&self.buffer) else { return Ok(None) };
                let body = M::body_len(&header).inspect_err(|error| self.break_off(error))?;
                self.header = Some(header);
                self.buffer.resize(self.filled.saturating_add(body), 0);
                if body > 0 {
                    return Ok(None);
                }
                header
            }
        };
        Ok(Some(self.finish(header)))
    }

    /// Takes the start of `piece`, to the end of a message at most, and says how many bytes that were. `fds` came
    /// with the first byte of `piece`.
    ///
    /// # Errors
    ///
    /// As [`Decoder::advance`].
    pub fn feed(&mut self, piece: &[u8], mut fds: Fds) -> Result<(usize, Option<Decoded<M>>), M::Error> {
        let mut taken: usize = 0;
        loop {
            let rest = piece.get(taken..).unwrap_or_default();
            let space = self.space()?;
            let read = rest.len().min(space.len());
            for (to, from) in space.iter_mut().zip(rest) {
                *to = *from;
            }
            taken = taken.saturating_add(read);
            let done = self.advance(read, std::mem::take(&mut fds), false)?;
            if done.is_some() || read == 0 || taken == piece.len() {
                return Ok((taken, done));
            }
        }
    }

    /// Bytes of memory and descriptors that are held between two calls.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.buffer.capacity(), self.fds.len())
    }

    fn take_fds(&mut self, fds: Fds, fds_lost: bool) {
        if fds_lost || fds.len() > M::MAX_FDS {
            self.fd_error = Some(FdError::TooMany);
        } else if self.mid_message() && !fds.is_empty() {
            self.fd_error = Some(FdError::Late);
        } else if !fds.is_empty() {
            self.fds = fds;
        }
        if self.fd_error.is_some() {
            self.fds.clear();
        }
    }

    fn break_off(&mut self, error: &M::Error) {
        self.fds.clear();
        self.broken = Some(error.clone());
    }

    /// Turns the buffered message into a value and makes ready for the next one.
    fn finish(&mut self, header: M::Header) -> Decoded<M> {
        let mut fds = std::mem::take(&mut self.fds);
        let body = self.buffer.get(size_of::<M::Header>()..).unwrap_or_default();
        let decoded = match self.fd_error.take() {
            Some(error) => Err(M::Error::from(error)),
            None => M::decode(&header, body, &mut fds),
        };
        self.buffer.resize(size_of::<M::Header>(), 0);
        self.buffer.shrink_to(KEPT);
        self.filled = 0;
        self.header = None;
        match decoded {
            Ok(message) => Decoded::Message(Frame { header, message, fds }),
            Err(error) => Decoded::Rejected { header, error },
        }
    }
}
