//! Answers: who gets one, and what a refusal looks like on the wire.
//!
//! A request that is refused is answered in a way its sender cannot take for success: a non-zero acknowledgement
//! where one was asked for, and no payload at all where the reply would have been a value. So the stream stays in
//! step, whatever came. A refusal that nobody asked to hear of is logged, and where it concerns a ring, that ring
//! fails when it is started.

use std::os::fd::{AsFd, OwnedFd};

use mdev_protocol::vhost_user::{FrontendReply, FrontendRequest, Header, ReplyRule};
use zerocopy::IntoBytes;

use super::Session;
use super::error::Refusal;

/// The message that is being served: all that is needed to answer it later.
#[derive(Copy, Clone, Debug)]
pub(super) struct Asker {
    header: Header,
    /// The ring it is about.
    pub(super) ring: Option<u16>,
}

/// What became of a message.
pub(super) enum Outcome {
    /// It was obeyed.
    Done,
    /// It has a reply of its own.
    Reply(FrontendReply),
    /// The same, with a descriptor.
    ReplyWith(FrontendReply, OwnedFd),
    /// The rest follows: a barrier holds it.
    Later,
}

impl Asker {
    pub(super) fn new(header: Header, ring: Option<u16>) -> Self {
        Self { header, ring }
    }

    fn request(&self) -> Option<FrontendRequest> {
        FrontendRequest::from_id(self.header.request)
    }

    fn name(&self) -> &'static str {
        self.request().map_or("message", FrontendRequest::name)
    }
}

impl Session {
    /// Answers a message, if it is due an answer now.
    pub(super) fn conclude(&mut self, asker: Asker, outcome: Result<Outcome, Refusal>) {
        let header = asker.header;
        let Some(request) = asker.request() else {
            // Nobody knows what reply belongs to an unknown request, except when an acknowledgement is wanted.
            let Err(refusal) = outcome else { return };
            self.complain(asker, &refusal);
            if self.negotiated.acknowledges(&header) {
                self.send(&FrontendReply::ack(&header, 1).to_bytes(), &[]);
            }
            return;
        };
        let row = request.row();
        let due = row.reply_due(header.needs_reply(), self.negotiated.protocol);
        match outcome {
            Ok(Outcome::Later) => {}
            Ok(Outcome::Reply(reply)) => self.send(&reply.to_bytes(), &[]),
            Ok(Outcome::ReplyWith(reply, fd)) => self.send(&reply.to_bytes(), &[fd.as_fd()]),
            Ok(Outcome::Done) if due => self.send(&FrontendReply::ack(&header, 0).to_bytes(), &[]),
            Ok(Outcome::Done) => {}
            Err(refusal) => {
                self.complain(asker, &refusal);
                match (due, row.reply) {
                    (true, ReplyRule::Own) => self.send(Header::reply(header.request, 0).as_bytes(), &[]),
                    (true, _) => self.send(&FrontendReply::ack(&header, 1).to_bytes(), &[]),
                    (false, _) => self.distrust(asker.ring),
                }
            }
        }
    }

    fn complain(&self, asker: Asker, refusal: &Refusal) {
        let Some(left_out) = self.log_limit.permit() else { return };
        let (device, conn, name, id) = (&self.name, self.conn, asker.name(), asker.header.request);
        match asker.ring {
            Some(ring) => {
                log::warn!("{device}: connection {conn}: {name} ({id}) of ring {ring}: {refusal}{left_out}")
            }
            None => log::warn!("{device}: connection {conn}: {name} ({id}): {refusal}{left_out}"),
        }
    }
}
