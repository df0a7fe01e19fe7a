//! The `mdevd` program; all of it is in the library, see [`mdevd::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    mdevd::cli::main()
}
