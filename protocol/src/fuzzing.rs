//! Every parser as a plain function of a byte slice, for libFuzzer and for `cargo test` alike.
//!
//! The input is a script of what a peer sends: `[length, descriptors, bytes ...]` again and again, each a piece of
//! the stream with that many bytes and (modulo ten) descriptors. The functions panic if a parser breaks what it
//! promises: bounded memory, descriptors as the table says, and messages that survive being encoded and decoded
//! again.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use crate::frame::{Decoded, Decoder, Fds, Frame, Incoming, MAX_FDS};
use crate::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, FrontendMessage, FrontendReply, FrontendRequest, Header,
    MAX_BODY, MessageError, Row,
};

/// More than any message may carry, so that surplus descriptors are tried as well.
const FD_CHOICES: u8 = MAX_FDS as u8 + 2;

/// What a back-end receives on the main channel.
pub fn fuzz_frontend_stream(script: &[u8]) {
    let fds = |id| FrontendRequest::from_id(id).map_or(0..=0, |request| request.row().fds.range());
    run(script, |message: &FrontendMessage| message.to_bytes(true), fds);
}

/// What a front-end receives on the main channel.
pub fn fuzz_frontend_replies(script: &[u8]) {
    let fds = |id| FrontendRequest::from_id(id).map_or(0..=0, |request| reply_fds(request.row()));
    run(script, FrontendReply::to_bytes, fds);
}

/// What a front-end receives on the back-end channel.
pub fn fuzz_backend_stream(script: &[u8]) {
    let fds = |id| BackendRequest::from_id(id).map_or(0..=0, |request| request.row().fds.range());
    run(script, |message: &BackendMessage| message.to_bytes(true), fds);
}

/// What a back-end receives on the back-end channel.
pub fn fuzz_backend_replies(script: &[u8]) {
    let fds = |id| BackendRequest::from_id(id).map_or(0..=0, |request| reply_fds(request.row()));
    run(script, BackendReply::to_bytes, fds);
}

fn reply_fds(row: &Row) -> RangeInclusive<usize> {
    row.reply_fds.range()
}

/// Plays `script` to a decoder until it ends or the stream is broken.
fn run<M>(script: &[u8], encode: impl Fn(&M) -> Vec<u8>, fds_of: impl Fn(u32) -> RangeInclusive<usize>)
where
    M: Incoming<Header = Header, Error = MessageError> + PartialEq + Debug,
{
    let Ok(null) = File::open("/dev/null") else { return };
    let mut decoder = Decoder::<M>::new();
    let mut rest = script;
    while let [len, fds, after @ ..] = rest {
        let (mut piece, after) = after.split_at(after.len().min(usize::from(*len)));
        let Ok(mut fds) = copies(&null, fds % FD_CHOICES) else { return };
        while !piece.is_empty() {
            let fed = decoder.feed(piece, std::mem::take(&mut fds));
            let (memory, held) = decoder.held();
            assert!(memory <= 2 * (Header::LEN + MAX_BODY) && held <= MAX_FDS, "the decoder hoards");
            match fed {
                Ok((taken, decoded)) => {
                    piece = piece.get(taken..).unwrap_or_default();
                    if let Some(decoded) = decoded {
                        check(&decoded, &encode, &fds_of, &null);
                    }
                }
                Err(error) => {
                    assert!(error.ends_stream(), "a stream ended by {error:?}");
                    assert_eq!(decoder.space().err(), Some(error), "a broken stream came alive");
                    return;
                }
            }
        }
        rest = after;
    }
}

fn check<M>(
    decoded: &Decoded<M>,
    encode: impl Fn(&M) -> Vec<u8>,
    fds_of: impl Fn(u32) -> RangeInclusive<usize>,
    null: &File,
) where
    M: Incoming<Header = Header, Error = MessageError> + PartialEq + Debug,
{
    let Frame { header, message, fds } = match decoded {
        Decoded::Message(frame) => frame,
        Decoded::Rejected { error, .. } => {
            assert!(!error.ends_stream(), "a stream went on after {error:?}");
            return;
        }
    };
    assert!(fds_of(header.request).contains(&fds.len()), "{message:?} came with {} descriptors", fds.len());
    let Ok(mut again) = copies(null, fds.len() as u8) else { return };
    let bytes = encode(message);
    let Some(body) = bytes.get(Header::LEN..) else { return };
    let header = Header { size: body.len() as u32, ..*header };
    assert_eq!(M::body_len(&header), Ok(body.len()), "{message:?} was encoded beyond what can be decoded");
    assert_eq!(M::decode(&header, body, &mut again).as_ref(), Ok(message), "encoding changed a message");
}

fn copies(file: &File, count: u8) -> io::Result<Fds> {
    (0..count).map(|_| file.try_clone().map(OwnedFd::from)).collect()
}

#[cfg(test)]
mod tests;
