//! Fuzz entries without a fuzzer.

/// Runs an entry on the seeds of its corpus, and on noise in them: the same noise every time. `place` picks one of the bytes of a
/// script, with a choice of numbers below what it asks for.
pub fn corpus_and_noise(
    corpus: &str,
    entry: impl Fn(&[u8]),
    place: impl Fn(&[u8], &mut dyn FnMut(usize) -> usize) -> usize,
) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let seeds: Vec<Vec<u8>> =
        std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| entry(seed));
    // A small generator of our own.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..400 {
        let mut script = seeds[round % seeds.len()].clone();
        for _ in 0..=random(8) {
            let at = place(&script, &mut random);
            script[at] = if random(2) == 0 { random(20) as u8 } else { random(256) as u8 };
        }
        entry(&script);
    }
}
