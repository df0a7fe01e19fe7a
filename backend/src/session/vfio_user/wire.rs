//! The client's memory without a file: transfers become messages, and replies their ends.
//!
//! Engines ask on their workers ([`Outbox`]); the control thread sends and receives ([`Wire`]). A transfer of any length is cut into
//! pieces, which are sent one after the other and answered in any order; it ends with its last piece, or with the first that fails.
//! A transfer that nobody waits for any more is not sent further. What was sent of it stays in the table until it is answered,
//! however late, so that its number is not used twice; then it is dropped.
//!
//! # Bounds
//!
//! [`MOST_SENT`] messages are unanswered at a time: a client that never answers gets no more. [`MOST_ASKED`](super::outbox::MOST_ASKED) transfers
//! wait for their turn; those beyond fail at once. Their bytes are bounded by whoever asks.
//!
//! # Two layouts
//!
//! QEMU 11 puts the data of both messages four bytes earlier than the specification does ([`DmaLayout`]), and says so nowhere. Which one a
//! client has is found out by its replies: to a write QEMU sends a header alone, and then the piece is sent again as it wants
//! it, to the same place. Data that it reads show it by where they begin; where that can be both, one byte of them that is not zero
//! is asked for again. Until it is known one message is under way at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use mdev_dma::Reply;
use mdev_protocol::vfio_user::{
    Command, Data, DmaLayout, DmaRead, DmaReply, DmaRequest, DmaWrite, DmaWriteDone, Header,
};
use rustix::io::Errno;

use super::outbox::{Ask, Outbox, What};

/// Messages that may be unanswered.
pub(super) const MOST_SENT: usize = 64;
/// Bytes of one message. A reply to the client's own commands must find room behind one that waits for the socket.
pub(super) const PIECE: usize = 32 * 1024;

/// The control thread's end.
pub(super) struct Wire {
    outbox: Arc<Outbox>,
    /// Transfers that something was sent of, by number.
    begun: BTreeMap<u64, Begun>,
    next: u64,
    /// The one whose next piece is to be sent.
    sending: Option<u64>,
    /// Pieces to be sent before anything else.
    again: Option<Part>,
    /// What was sent and is not answered, by message number.
    sent: BTreeMap<u16, Part>,
    next_id: u16,
    /// Bytes of one message.
    piece: usize,
    /// As far as it is known.
    layout: Option<DmaLayout>,
}

struct Begun {
    address: u64,
    writes: bool,
    /// What is written, or was read.
    bytes: Vec<u8>,
    /// Bytes that were sent or asked for.
    out: usize,
    /// Bytes that were answered.
    back: usize,
    reply: Reply,
}

/// One message's part of a transfer.
#[derive(Clone)]
struct Part {
    of: u64,
    offset: usize,
    len: usize,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Read,
    Write(DmaLayout),
    /// Reads a byte that is not zero in the narrow layout. What the data are in either.
    Probe {
        at: u64,
        specified: Data,
        narrow: Data,
    },
}

/// A reply that is no use.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stray {
    #[error("it answers nothing that was asked")]
    Unasked,
    #[error("it is not the answer to what was asked; that transfer has failed")]
    Mismatch,
}

impl Wire {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Wire {
            outbox,
            begun: BTreeMap::new(),
            next: 0,
            sending: None,
            again: None,
            sent: BTreeMap::new(),
            next_id: 0,
            piece: PIECE,
            layout: None,
        }
    }

    /// Where engines ask.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// What the client takes in one message at most.
    pub(super) fn limit(&mut self, bytes: u32) {
        self.piece = PIECE.min(bytes.max(1) as usize);
    }

    /// The next message, if one is to be sent now. It counts as sent.
    pub(super) fn next_message(&mut self) -> Option<Vec<u8>> {
        self.begun.retain(|_, begun| begun.reply.is_wanted());
        let most = if self.layout.is_some() { MOST_SENT } else { 1 };
        if self.sent.len() >= most {
            return None;
        }
        let (part, request) = loop {
            let part = match self.again.take() {
                Some(part) => part,
                None => self.next_part()?,
            };
            if let Some(request) = self.request(&part) {
                break (part, request);
            }
        };
        let id = self.free_id();
        self.sent.insert(id, part);
        Some(request.to_bytes(id, false))
    }

    /// The next piece of the transfer whose turn it is.
    fn next_part(&mut self) -> Option<Part> {
        loop {
            let Some(of) = self.sending else {
                self.begin()?;
                continue;
            };
            let layout = self.layout.unwrap_or_default();
            let piece = self.piece;
            let begun = self.begun.get_mut(&of).filter(|begun| begun.reply.is_wanted());
            let Some(begun) = begun else {
                self.end(of);
                continue;
            };
            let (offset, len) = (begun.out, begun.bytes.len().saturating_sub(begun.out).min(piece));
            begun.out = offset.saturating_add(len);
            let kind = if begun.writes { Kind::Write(layout) } else { Kind::Read };
            if begun.out >= begun.bytes.len() {
                self.sending = None;
            }
            return Some(Part { of, offset, len, kind });
        }
    }

    /// The oldest transfer that waits has its turn.
    fn begin(&mut self) -> Option<()> {
        let Ask { address, what, reply } = self.outbox.lock().pop_front()?;
        if !reply.is_wanted() {
            return Some(());
        }
        let (writes, bytes) = match what {
            What::Read(len) => (false, vec![0; len]),
            What::Write(bytes) => (true, bytes),
        };
        let of = self.next;
        self.next = of.wrapping_add(1);
        self.begun.insert(of, Begun { address, writes, bytes, out: 0, back: 0, reply });
        self.sending = Some(of);
        Some(())
    }

    /// What is sent for a piece; `None` if its transfer is over.
    fn request(&self, part: &Part) -> Option<DmaRequest> {
        let begun = self.begun.get(&part.of).filter(|begun| begun.reply.is_wanted())?;
        let address = begun.address.wrapping_add(part.offset as u64);
        let count = part.len as u64;
        Some(match &part.kind {
            Kind::Read => DmaRequest::DmaRead(DmaRead { address, count }),
            Kind::Probe { at, .. } => DmaRequest::DmaRead(DmaRead { address: *at, count: 1 }),
            Kind::Write(layout) => {
                let data = Data::new(begun.bytes.get(part.offset..)?.get(..part.len)?).ok()?;
                DmaRequest::DmaWrite(DmaWrite { address, data, layout: *layout })
            }
        })
    }

    /// A number that no message has which is not answered. There are far more than messages.
    fn free_id(&mut self) -> u16 {
        while self.sent.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    /// The client has answered.
    ///
    /// # Errors
    /// It is of no use; what to say of it.
    pub(super) fn answered(&mut self, header: &Header, reply: DmaReply) -> Result<(), Stray> {
        let Some(part) = self.sent.remove(&header.id) else { return Err(Stray::Unasked) };
        let command = if let Kind::Write(_) = part.kind { Command::DmaWrite } else { Command::DmaRead };
        let Some(begun) = self.begun.get(&part.of) else {
            // It was given up meanwhile.
            return if header.command == command.id() { Ok(()) } else { Err(Stray::Mismatch) };
        };
        let address = begun.address.wrapping_add(part.offset as u64);
        if header.command != command.id() {
            return self.mismatch(part.of);
        }
        match (reply, part.kind.clone()) {
            (DmaReply::Failed(errno), _) => {
                let errno = i32::try_from(errno).ok().filter(|errno| *errno > 0);
                self.fail(part.of, errno.unwrap_or(Errno::IO.raw_os_error()));
                Ok(())
            }
            (DmaReply::DmaWrite(DmaWriteDone::Silent), Kind::Write(DmaLayout::Specified))
                if self.layout.is_none() =>
            {
                self.layout = Some(DmaLayout::Narrow);
                self.again = Some(Part { kind: Kind::Write(DmaLayout::Narrow), ..part });
                Ok(())
            }
            (DmaReply::DmaWrite(DmaWriteDone::Silent), Kind::Write(_)) => {
                self.moved(&part, None);
                Ok(())
            }
            (DmaReply::DmaWrite(DmaWriteDone::Told { address: told, count }), Kind::Write(layout)) => {
                if told != address || count != part.len as u64 {
                    return self.mismatch(part.of);
                }
                self.layout.get_or_insert(layout);
                self.moved(&part, None);
                Ok(())
            }
            (DmaReply::DmaRead(done), Kind::Read) => {
                if done.address != address || done.data.len() != part.len {
                    return self.mismatch(part.of);
                }
                let narrow = done.narrow();
                match (self.layout, done.layout, narrow) {
                    (Some(DmaLayout::Specified), DmaLayout::Narrow, _) => return self.mismatch(part.of),
                    (Some(DmaLayout::Narrow), _, None) => return self.mismatch(part.of),
                    (None | Some(DmaLayout::Narrow), DmaLayout::Narrow, Some(data))
                    | (Some(DmaLayout::Narrow), _, Some(data)) => {
                        self.layout = Some(DmaLayout::Narrow);
                        self.moved(&part, Some(&data));
                    }
                    (Some(DmaLayout::Specified), _, _) => self.moved(&part, Some(&done.data)),
                    (None, _, None) => {
                        self.layout = Some(DmaLayout::Specified);
                        self.moved(&part, Some(&done.data));
                    }
                    (None, _, Some(narrow)) => match narrow.iter().position(|byte| *byte != 0) {
                        // The same in both.
                        None => self.moved(&part, Some(&narrow)),
                        Some(index) => {
                            let at = address.wrapping_add(index as u64);
                            let kind = Kind::Probe { at, specified: done.data, narrow };
                            self.again = Some(Part { kind, ..part });
                        }
                    },
                }
                Ok(())
            }
            (DmaReply::DmaRead(done), Kind::Probe { at, specified, narrow }) => {
                if done.address != at || done.data.len() != 1 {
                    return self.mismatch(part.of);
                }
                self.layout = Some(done.layout);
                let data = if done.layout == DmaLayout::Narrow { narrow } else { specified };
                self.moved(&part, Some(&data));
                Ok(())
            }
            _ => self.mismatch(part.of),
        }
    }

    /// A reply came that cannot be read. It ends what it answers.
    ///
    /// # Errors
    /// It answers nothing.
    pub(super) fn garbled(&mut self, header: &Header) -> Result<(), Stray> {
        let part = self.sent.remove(&header.id).ok_or(Stray::Unasked)?;
        self.fail(part.of, Errno::PROTO.raw_os_error());
        Ok(())
    }

    /// A piece has been moved.
    fn moved(&mut self, part: &Part, data: Option<&[u8]>) {
        let Some(begun) = self.begun.get_mut(&part.of) else { return };
        let place = begun.bytes.get_mut(part.offset..).and_then(|rest| rest.get_mut(..part.len));
        if let (Some(data), Some(place)) = (data, place) {
            place.copy_from_slice(data);
        }
        begun.back = begun.back.saturating_add(part.len);
        if begun.back >= begun.bytes.len()
            && let Some(Begun { bytes, writes, reply, .. }) = self.end(part.of)
        {
            reply.done(if writes { Vec::new() } else { bytes });
        }
    }

    fn mismatch(&mut self, of: u64) -> Result<(), Stray> {
        self.fail(of, Errno::PROTO.raw_os_error());
        Err(Stray::Mismatch)
    }

    fn fail(&mut self, of: u64, errno: i32) {
        if let Some(begun) = self.end(of) {
            begun.reply.failed(errno);
        }
    }

    /// Nothing more is sent of a transfer.
    fn end(&mut self, of: u64) -> Option<Begun> {
        if self.sending == Some(of) {
            self.sending = None;
        }
        self.begun.remove(&of)
    }

    /// The client is gone: all that it was asked for fails, and will.
    pub(super) fn close(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        let asked = std::mem::take(&mut *self.outbox.lock());
        drop((begun, asked));
    }
}

#[cfg(test)]
mod tests;
