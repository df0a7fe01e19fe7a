use std::{fs, iter, path::Path};

use super::fuzz_operations;

/// A small generator (xorshift), so that runs repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn random_script(seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let len = random.next() % 500;
    iter::repeat_with(|| (random.next() >> 24) as u8).take(len as usize).collect()
}

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/operations")
}

/// The corpus is what the generator makes of the first seeds, and whatever a fuzzer's run has added to that.
/// `MDEVD_WRITE_CORPUS` set in the environment writes the seeds anew.
#[test]
fn corpus_holds_what_the_generator_makes() {
    for seed in 0..32 {
        let (path, script) = (corpus().join(format!("{seed:02}")), random_script(seed));
        if std::env::var_os("MDEVD_WRITE_CORPUS").is_some() {
            fs::create_dir_all(corpus()).unwrap();
            fs::write(&path, &script).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(script), "{}: set MDEVD_WRITE_CORPUS once", path.display());
    }
}

#[test]
fn corpus_agrees_with_the_naive_spaces() {
    for script in fs::read_dir(corpus()).unwrap().map(|file| file.unwrap().path()) {
        fuzz_operations(&fs::read(&script).unwrap());
    }
}

#[test]
fn random_operations_agree_with_the_naive_spaces() {
    for seed in 0..cases() {
        let script = random_script(seed);
        if let Err(found) = std::panic::catch_unwind(|| fuzz_operations(&script)) {
            let file = std::env::temp_dir().join(format!("mdev-pin-operations-{seed}"));
            fs::write(&file, shortest(script)).unwrap();
            eprintln!("seed {seed}; a shorter script of the same kind is in {}", file.display());
            std::panic::resume_unwind(found);
        }
    }
}

/// How many scripts are tried; `MDEVD_FUZZ_CASES` says otherwise.
fn cases() -> u64 {
    std::env::var("MDEVD_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(4_000)
}

/// Cuts off what the failure does not need, for a while.
fn shortest(mut script: Vec<u8>) -> Vec<u8> {
    // What failed was said once.
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |script: &[u8]| std::panic::catch_unwind(|| fuzz_operations(script)).is_err();
    let begun = std::time::Instant::now();
    while script.pop().is_some_and(|last| {
        let shorter = begun.elapsed().as_secs() < 5 && fails(&script);
        if !shorter {
            script.push(last);
        }
        shorter
    }) {}
    script
}
