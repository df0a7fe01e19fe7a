//! The product's command line, as a process of its own that tests kill.

fn main() -> std::process::ExitCode {
    mdevd::cli::main()
}
