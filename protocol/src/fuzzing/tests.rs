use std::path::{Path, PathBuf};
use std::{fs, iter};

use super::*;
use crate::vhost_user::golden;

/// A parser under test: the name of its libFuzzer target and corpus, itself, and messages it should accept.
struct Target {
    name: &'static str,
    parse: fn(&[u8]),
    messages: Vec<(String, Vec<u8>, u8)>,
}

fn seed(message: &impl Debug, hex: &str, fds: RangeInclusive<usize>) -> (String, Vec<u8>, u8) {
    let name = format!("{message:?}").split(['(', ' ']).next().unwrap_or_default().to_string();
    (name, golden::bytes(hex), *fds.end() as u8)
}

fn targets() -> Vec<Target> {
    let request = |r: FrontendRequest| r.row().fds.range();
    vec![
        Target {
            name: "frontend_stream",
            parse: fuzz_frontend_stream,
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
            messages: golden::frontend_replies()
                .iter()
                .map(|(m, hex)| {
                    let own = !matches!(m, FrontendReply::Ack { .. });
                    let row = FrontendRequest::from_id(m.request_id()).unwrap().row();
                    seed(m, hex, if own { reply_fds(row) } else { 0..=0 })
                })
                .collect(),
        },
        Target {
            name: "backend_stream",
            parse: fuzz_backend_stream,
            messages: golden::backend_messages()
                .iter()
                .map(|(m, hex)| seed(m, hex, m.request().row().fds.range()))
                .collect(),
        },
        Target {
            name: "backend_replies",
            parse: fuzz_backend_replies,
            messages: golden::backend_replies().iter().map(|(m, hex)| seed(m, hex, 0..=0)).collect(),
        },
    ]
}

/// A script that sends these bytes with descriptors: the header first, then the body.
fn script(bytes: &[u8], fds: u8) -> Vec<u8> {
    let (header, body) = bytes.split_at(Header::LEN.min(bytes.len()));
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
            let script = script(bytes, *fds);
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
    match random.below(8) {
        0 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
        1 => fds = random.next() as u8,
        2 => {
            let len = random.below(300);
            bytes.resize(Header::LEN + len, 0xa5);
            bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        }
        3 => bytes[0] = random.next() as u8,
        4 if bytes.len() > Header::LEN => {
            let at = Header::LEN + random.below(bytes.len() - Header::LEN);
            bytes[at] = random.next() as u8;
        }
        _ => {}
    }
    let mut out = script(&bytes, fds);
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
