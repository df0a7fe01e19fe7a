use std::path::{Path, PathBuf};
use std::{fs, iter};

use super::*;
use crate::vhost_user::golden;
use crate::vhost_vdpa;

/// A parser under test: the name of its libFuzzer target and corpus, itself, and messages it should accept.
struct Target {
    name: &'static str,
    parse: fn(&[u8]),
    layout: &'static Layout,
    messages: Vec<Seed>,
}

/// What is to be known of a header in order to damage it well. Offsets in bytes.
struct Layout {
    /// Bytes of it.
    len: usize,
    /// How many bytes the first piece of a message has.
    piece: usize,
    /// Where the request's number is.
    number: usize,
    /// Where the size is.
    size: usize,
    /// How many of its own bytes the size counts.
    counted: usize,
}

const VHOST: Layout = Layout { len: Header::LEN, piece: Header::LEN, number: 0, size: 8, counted: 0 };
const VFIO: Layout = Layout { len: 16, piece: 16, number: 2, size: 4, counted: 16 };
/// Messages that are one piece. They do not tell their size; what stands there is another field.
const VDUSE: Layout = Layout { len: 24, piece: 255, number: 0, size: 4, counted: 0 };
const VDPA: Layout = Layout { len: 8, piece: 255, number: 33, size: 4, counted: 0 };

/// A message's name, bytes and descriptors.
type Seed = (String, Vec<u8>, u8);

fn seed(message: &impl Debug, hex: &str, fds: RangeInclusive<usize>) -> Seed {
    (name_of(message), golden::bytes(hex), *fds.end() as u8)
}

fn name_of(message: &impl Debug) -> String {
    format!("{message:?}").split(['(', ' ']).next().unwrap_or_default().to_string()
}

/// What either end of vfio-user receives: commands of the other, then replies.
fn to_server() -> Vec<Seed> {
    let requests = vfio_user::golden::requests().into_iter();
    let requests = requests.map(|(m, bytes, fds)| (name_of(&m), bytes, fds as u8));
    let replies = vfio_user::golden::dma_replies().into_iter();
    requests.chain(replies.map(|(_, m, bytes)| (name_of(&m), bytes, 0))).collect()
}

fn to_client() -> Vec<Seed> {
    let requests = vfio_user::golden::dma_requests().into_iter();
    let requests = requests.map(|(m, bytes)| (name_of(&m), bytes, 0));
    let replies = vfio_user::golden::replies().into_iter();
    requests.chain(replies.map(|(_, m, bytes, fds)| (name_of(&m), bytes, fds as u8))).collect()
}

fn targets() -> Vec<Target> {
    let request = |r: FrontendRequest| r.row().fds.range();
    vec![
        Target {
            name: "frontend_stream",
            parse: fuzz_frontend_stream,
            layout: &VHOST,
            messages: golden::frontend_messages()
                .iter()
                .map(|(m, hex)| match m {
                    FrontendMessage::SetMemTable(table) => seed(m, hex, 0..=table.regions().len()),
                    FrontendMessage::SetVringCall(_) => seed(m, hex, 0..=0),
                    _ => seed(m, hex, request(m.request())),
                })
                .collect(),
        },
        Target {
            name: "frontend_replies",
            parse: fuzz_frontend_replies,
            layout: &VHOST,
            messages: golden::frontend_replies()
                .iter()
                .map(|(m, hex)| {
                    let own = !matches!(m, FrontendReply::Ack { .. });
                    let row = FrontendRequest::from_id(m.request_id()).unwrap().row();
                    seed(m, hex, if own { reply_fds(Some(row)) } else { 0..=0 })
                })
                .collect(),
        },
        Target {
            name: "backend_stream",
            parse: fuzz_backend_stream,
            layout: &VHOST,
            messages: golden::backend_messages()
                .iter()
                .map(|(m, hex)| seed(m, hex, m.request().row().fds.range()))
                .collect(),
        },
        Target {
            name: "backend_replies",
            parse: fuzz_backend_replies,
            layout: &VHOST,
            messages: golden::backend_replies().iter().map(|(m, hex)| seed(m, hex, 0..=0)).collect(),
        },
        Target {
            name: "vfio_user_server",
            parse: fuzz_vfio_user_server,
            layout: &VFIO,
            messages: to_server(),
        },
        Target {
            name: "vfio_user_client",
            parse: fuzz_vfio_user_client,
            layout: &VFIO,
            messages: to_client(),
        },
        Target {
            name: "vduse_requests",
            parse: fuzz_vduse_requests,
            layout: &VDUSE,
            messages: vduse::golden::requests()
                .into_iter()
                .map(|(m, b)| (m.kind.name().into(), b, 0))
                .collect(),
        },
        Target {
            name: "vduse_responses",
            parse: fuzz_vduse_responses,
            layout: &VDUSE,
            messages: vduse::golden::responses()
                .into_iter()
                .map(|(m, expected, bytes)| (name_of(&m.answer), bytes, expected as u8))
                .collect(),
        },
        Target {
            name: "vhost_vdpa_messages",
            parse: fuzz_vhost_vdpa_messages,
            layout: &VDPA,
            messages: vhost_vdpa::golden::messages()
                .into_iter()
                .map(|(m, bytes)| (name_of(&m.change), bytes, 0))
                .collect(),
        },
    ]
}

/// A script that sends these bytes with descriptors: a piece of so many bytes first, then the rest.
fn script(first: usize, bytes: &[u8], fds: u8) -> Vec<u8> {
    let (header, body) = bytes.split_at(first.min(bytes.len()));
    iter::once((header, fds))
        .chain(body.chunks(255).map(|piece| (piece, 0)))
        .flat_map(|(piece, fds)| [piece.len() as u8, fds].into_iter().chain(piece.iter().copied()))
        .collect()
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// A small generator (xorshift), so that runs repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The corpus is the table of messages, and whatever a fuzzer's run has added to that. `MDEVD_WRITE_CORPUS` set in
/// the environment writes the messages anew.
#[test]
fn corpus_holds_every_message_of_the_table() {
    for target in targets() {
        for (index, (name, bytes, fds)) in target.messages.iter().enumerate() {
            let path = corpus(target.name).join(format!("{index:02}-{name}"));
            let script = script(target.layout.piece, bytes, *fds);
            if std::env::var_os("MDEVD_WRITE_CORPUS").is_some() {
                fs::create_dir_all(corpus(target.name)).unwrap();
                fs::write(&path, &script).unwrap();
            }
            assert_eq!(fs::read(&path).ok(), Some(script), "{}: set MDEVD_WRITE_CORPUS once", path.display());
        }
    }
}

#[test]
fn corpus_is_parsed_without_a_panic() {
    for target in targets() {
        for file in fs::read_dir(corpus(target.name)).unwrap().map(|file| file.unwrap().path()) {
            (target.parse)(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn a_hundred_thousand_random_messages_neither_panic_nor_hoard() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for target in targets() {
        for _ in 0..25_000 / 8 {
            let messages: Vec<_> = (0..8).map(|_| random_message(&mut random, &target)).collect();
            // Alone, because a broken stream hides what follows; and in a row, because state may be left behind.
            messages.iter().for_each(|message| (target.parse)(message));
            (target.parse)(&messages.concat());
        }
    }
}

/// A message with random damage: anything from none to nothing but noise.
fn random_message(random: &mut Random, target: &Target) -> Vec<u8> {
    let (_, bytes, fds) = &target.messages[random.below(target.messages.len())];
    let (mut bytes, mut fds) = (bytes.clone(), *fds);
    let Layout { len: header, piece, number, size, counted } = *target.layout;
    match random.below(8) {
        0 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
        1 => fds = random.next() as u8,
        2 => {
            let len = random.below(300);
            bytes.resize(header + len, 0xa5);
            bytes[size..size + 4].copy_from_slice(&((len + counted) as u32).to_le_bytes());
        }
        3 => bytes[number] = random.next() as u8,
        4 if bytes.len() > header => {
            let at = header + random.below(bytes.len() - header);
            bytes[at] = random.next() as u8;
        }
        _ => {}
    }
    let mut out = script(piece, &bytes, fds);
    if random.below(64) == 0 {
        out.truncate(random.below(out.len()));
    }
    out
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(42);
    for target in targets() {
        for _ in 0..5_000 {
            let len = random.below(200);
            let noise: Vec<u8> = iter::repeat_with(|| random.next() as u8).take(len).collect();
            (target.parse)(&noise);
        }
    }
}
