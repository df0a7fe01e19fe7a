//! The product against peers nobody here wrote. `tests/lab/README.md` says what these tests need and change.

mod peers;

use mdev_tests::lab::{Trial, runner};

fn main() -> std::process::ExitCode {
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(peers::trials());
    runner::main(&trials)
}
