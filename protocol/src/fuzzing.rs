//! Every parser as a plain function of a byte slice, for libFuzzer and for `cargo test` alike.
//!
//! The input is a script of what a peer sends: `[length, descriptors, bytes ...]` again and again, each a piece of
//! the stream with that many bytes and (modulo eighteen) descriptors. Where messages are kept apart (VDUSE, vhost-vdpa) each
//! piece is one. The functions panic if a parser breaks what it promises: bounded memory, descriptors as the table says, and
//! messages that survive being encoded and decoded again.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use zerocopy::FromBytes;

use crate::frame::{Decoded, Decoder, Fds, Frame, Incoming, MAX_FDS};
use crate::vduse::{self, Answer, Expected, Request, RequestError, Response};
use crate::vfio_user::{self, ToClient, ToServer};
use crate::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, FrontendMessage, FrontendReply, FrontendRequest, Header,
    MAX_BODY, MessageError, Row,
};
use crate::vhost_vdpa::IotlbMessage;

/// More than any message may carry, so that surplus descriptors are tried as well.
const FD_CHOICES: u8 = MAX_FDS as u8 + 2;

/// What a parser of `M` promises.
struct Promise<M: Incoming> {
    /// The most bytes of a message, header included.
    longest: usize,
    /// The message as bytes again; the header is the one it came with.
    encode: fn(&M, &M::Header) -> Vec<u8>,
    /// Whether so many descriptors may be left with it.
    fds: fn(&M, &M::Header, usize) -> bool,
    /// Whether an error is one that ends the stream.
    ends_stream: fn(&M::Error) -> bool,
}

/// A promise of vhost-user's parsers.
fn vhost<M: Incoming<Header = Header, Error = MessageError>>(
    encode: fn(&M, &Header) -> Vec<u8>,
    fds: fn(&M, &Header, usize) -> bool,
) -> Promise<M> {
    Promise {
        longest: Header::LEN.saturating_add(MAX_BODY),
        encode,
        fds,
        ends_stream: MessageError::ends_stream,
    }
}

/// What a back-end receives on the main channel.
pub fn fuzz_frontend_stream(script: &[u8]) {
    run::<FrontendMessage>(
        script,
        &vhost(
            |message, _| message.to_bytes(true),
            |message, _, got| message.request().row().fds.range().contains(&got),
        ),
    );
}

/// What a front-end receives on the main channel.
pub fn fuzz_frontend_replies(script: &[u8]) {
    run::<FrontendReply>(
        script,
        &vhost(
            |reply, _| reply.to_bytes(),
            |_, header, got| {
                reply_fds(FrontendRequest::from_id(header.request).map(FrontendRequest::row)).contains(&got)
            },
        ),
    );
}

/// What a front-end receives on the back-end channel.
pub fn fuzz_backend_stream(script: &[u8]) {
    run::<BackendMessage>(
        script,
        &vhost(
            |message, _| message.to_bytes(true),
            |message, _, got| message.request().row().fds.range().contains(&got),
        ),
    );
}

/// What a back-end receives on the back-end channel.
pub fn fuzz_backend_replies(script: &[u8]) {
    run::<BackendReply>(
        script,
        &vhost(
            |reply, _| reply.to_bytes(),
            |_, header, got| {
                reply_fds(BackendRequest::from_id(header.request).map(BackendRequest::row)).contains(&got)
            },
        ),
    );
}

/// The descriptors that a reply to the request with this row may have.
fn reply_fds(row: Option<&Row>) -> RangeInclusive<usize> {
    row.map_or(0..=0, |row| row.reply_fds.range())
}

/// A promise of vfio-user's parsers.
fn vfio<M: Incoming<Header = vfio_user::Header, Error = vfio_user::MessageError>>(
    encode: fn(&M, &vfio_user::Header) -> Vec<u8>,
    fds: fn(&M, &vfio_user::Header, usize) -> bool,
) -> Promise<M> {
    let longest = vfio_user::Header::LEN.saturating_add(vfio_user::MAX_BODY);
    Promise { longest, encode, fds, ends_stream: vfio_user::MessageError::ends_stream }
}

/// What a vfio-user server receives.
pub fn fuzz_vfio_user_server(script: &[u8]) {
    run::<ToServer>(
        script,
        &vfio(
            |message, header| match message {
                ToServer::Request(request) => request.to_bytes(header.id, !header.wants_reply()),
                ToServer::Reply(reply) => reply.to_bytes(header),
            },
            |message, _, got| match message {
                ToServer::Request(request) => request.fds().admits(got),
                ToServer::Reply(reply) => reply.fds().admits(got),
            },
        ),
    );
}

/// What a vfio-user client receives.
pub fn fuzz_vfio_user_client(script: &[u8]) {
    run::<ToClient>(
        script,
        &vfio(
            |message, header| match message {
                ToClient::Request(request) => request.to_bytes(header.id, !header.wants_reply()),
                ToClient::Reply(reply) => reply.to_bytes(header),
            },
            |message, _, got| match message {
                ToClient::Request(request) => request.fds().admits(got),
                ToClient::Reply(reply) => reply.fds().admits(got),
            },
        ),
    );
}

/// What a daemon of VDUSE reads.
pub fn fuzz_vduse_requests(script: &[u8]) {
    each_message(script, |bytes, _| match Request::decode(bytes) {
        Ok(request) => {
            assert_eq!(Request::decode(&request.to_bytes()), Ok(request), "encoding changed a message");
        }
        Err(RequestError::Length { len }) => {
            assert!(len == bytes.len() && len != vduse::MESSAGE_LEN, "{len} bytes are no length");
        }
        Err(error) => {
            let failed = error.response().map(|response| response.answer);
            assert_eq!(failed, Some(Answer::Failed), "{error:?} goes without an answer");
        }
    });
}

/// What the kernel reads from a daemon of VDUSE. The second byte of a piece (modulo three) says what it expects.
pub fn fuzz_vduse_responses(script: &[u8]) {
    each_message(script, |bytes, choice| {
        let expected = match choice % 3 {
            0 => Expected::Done,
            1 => Expected::Split,
            _ => Expected::Packed,
        };
        if let Ok(response) = Response::decode(bytes, expected) {
            let again = Response::decode(&response.to_bytes(), expected);
            assert_eq!(again, Ok(response), "encoding changed a message");
        }
    });
}

/// What the kernel reads from a front-end of vhost-vdpa.
pub fn fuzz_vhost_vdpa_messages(script: &[u8]) {
    each_message(script, |bytes, _| {
        if let Ok(message) = IotlbMessage::decode(bytes) {
            let again = IotlbMessage::decode(&message.to_bytes());
            assert_eq!(again, Ok(message), "encoding changed a message");
        }
    });
}

/// The pieces of `script`, each with its second byte.
fn each_message(script: &[u8], check: impl Fn(&[u8], u8)) {
    let mut rest = script;
    while let [len, choice, after @ ..] = rest {
        let (message, after) = after.split_at(after.len().min(usize::from(*len)));
        check(message, *choice);
        rest = after;
    }
}

/// Plays `script` to a decoder until it ends or the stream is broken.
fn run<M>(script: &[u8], promise: &Promise<M>)
where
    M: Incoming<Error: PartialEq> + PartialEq + Debug,
{
    let Ok(null) = File::open("/dev/null") else { return };
    let mut decoder = Decoder::<M>::new();
    let mut rest = script;
    while let [len, fds, after @ ..] = rest {
        let (mut piece, after) = after.split_at(after.len().min(usize::from(*len)));
        let Ok(mut fds) = copies(&null, usize::from(fds % FD_CHOICES)) else { return };
        while !piece.is_empty() {
            let fed = decoder.feed(piece, std::mem::take(&mut fds));
            let (memory, held) = decoder.held();
            assert!(memory <= promise.longest.saturating_mul(2) && held <= M::MAX_FDS, "the decoder hoards");
            match fed {
                Ok((taken, decoded)) => {
                    piece = piece.get(taken..).unwrap_or_default();
                    if let Some(decoded) = decoded {
                        check(&decoded, promise, &null);
                    }
                }
                Err(error) => {
                    assert!((promise.ends_stream)(&error), "a stream ended by {error:?}");
                    assert_eq!(decoder.space().err(), Some(error), "a broken stream came alive");
                    return;
                }
            }
        }
        rest = after;
    }
}

fn check<M>(decoded: &Decoded<M>, promise: &Promise<M>, null: &File)
where
    M: Incoming<Error: PartialEq> + PartialEq + Debug,
{
    let Frame { header, message, fds } = match decoded {
        Decoded::Message(frame) => frame,
        Decoded::Rejected { error, .. } => {
            assert!(!(promise.ends_stream)(error), "a stream went on after {error:?}");
            return;
        }
    };
    assert!((promise.fds)(message, header, fds.len()), "{message:?} came with {} descriptors", fds.len());
    let Ok(mut again) = copies(null, fds.len()) else { return };
    let bytes = (promise.encode)(message, header);
    let Ok((header, body)) = M::Header::read_from_prefix(&bytes) else { return };
    assert_eq!(M::body_len(&header), Ok(body.len()), "{message:?} was encoded beyond what can be decoded");
    assert_eq!(M::decode(&header, body, &mut again).as_ref(), Ok(message), "encoding changed a message");
}

fn copies(file: &File, count: usize) -> io::Result<Fds> {
    (0..count).map(|_| file.try_clone().map(OwnedFd::from)).collect()
}

#[cfg(test)]
mod tests;
