//! `mdevd man`: the manual pages, from the same source as `--help`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::CommandFactory;
use clap_mangen::Man;

use super::Cli;

/// Arguments of `mdevd man`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write one file for each command into this directory, instead of mdevd(1) to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the pages.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let result = match &args.out {
        None => render().and_then(|page| io::stdout().write_all(&page)),
        Some(dir) => fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir)),
    };
    result.map_err(|error| match &args.out {
        None => format!("cannot write the manual page: {error}"),
        Some(dir) => format!("cannot write manual pages to {}: {error}", dir.display()),
    })
}

fn render() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}
