//! mdevd beside DPDK's `net_vhost`, each under testpmd's virtio-user front-end, in turns.
//!
//! `cargo bench -p mdev-tests --bench versus_dpdk [-- --pairs N] [--near] [--seconds N] [--layout LIST] [--size LIST]
//! [--direction LIST] [--ceilings N] [--minutes N] [--file FILE]`
//!
//! Every pair is written to the file as soon as it is measured. A run that was interrupted, or that is asked for more pairs
//! than before, measures only what is missing at this commit; `--table` prints what there is. Beside the pairs stands the front-end's
//! own ceiling, and what mdevd's processor spends on a packet. The defaults take about ten minutes. Needs the lab: see
//! `tests/lab/README.md`.
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use mdev_tests::lab::{Lab, Skip, setup};
use mdev_tests::versus::turn::Turns;
use mdev_tests::versus::{Cell, Direction, Journal, State, ceiling, cell, table};
use mdevd::report::Report;

/// Compares mdevd with DPDK's vhost back-end, pair by pair, and goes on where it was interrupted
#[derive(Debug, Parser)]
struct Args {
    /// Pairs that count in each cell; at most four times as many are tried
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Only pairs count in which no round trip of a cache line took 200 ns
    #[arg(long)]
    near: bool,
    /// Seconds of each turn that count
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Pairs of each cell beside which the front-end's ceiling is measured, with a back-end that only returns descriptors
    #[arg(long, default_value_t = 3)]
    ceilings: usize,
    /// Begin no pair after so many minutes; the next run goes on
    #[arg(long)]
    minutes: Option<u32>,
    /// Ring layouts: split, split-in-order, packed, packed-in-order
    #[arg(long, value_delimiter = ',', default_value = "split,split-in-order,packed-in-order", value_parser = known_layout)]
    layout: Vec<String>,
    /// Bytes of the packets
    #[arg(long, value_delimiter = ',', default_value = "64,512,1518")]
    size: Vec<u16>,
    /// Directions: to, from, loop
    #[arg(long, value_delimiter = ',', default_value = "to,from,loop")]
    direction: Vec<Direction>,
    /// Descriptors of each ring
    #[arg(long, default_value_t = 256)]
    ring_size: u16,
    /// Do not negotiate mergeable receive buffers
    #[arg(long)]
    single: bool,
    /// The file that every pair is kept in
    #[arg(long, default_value = "versus-dpdk.json")]
    file: PathBuf,
    /// Measure nothing, print what the file says
    #[arg(long)]
    table: bool,
    /// The commit whose pairs are measured or printed, if it is not the present one
    #[arg(long)]
    commit: Option<String>,
    /// Cargo says this
    #[arg(long, hide = true)]
    bench: bool,
}

fn known_layout(name: &str) -> Result<String, String> {
    cell::layout(name).map(|_| name.to_owned())
}

fn main() -> ExitCode {
    // The device under test is this very program, started again as `versus_dpdk net ...`, and so is the ceiling.
    let done = match std::env::args().nth(1).as_deref() {
        Some("net") => return mdevd::cli::main(),
        Some(ceiling::COMMAND) => ceiling::main(std::env::args().skip(2)),
        _ => run(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus_dpdk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut journal = Journal::open(&args.file)?;
    let rings = (args.ring_size, !args.single);
    let cells = cell::matrix(&args.layout, &args.size, &args.direction, rings);
    let report = Report::new("cargo bench -p mdev-tests --bench versus_dpdk");
    let commit = args.commit.as_ref().unwrap_or(&report.commit);
    if !args.table {
        measure(args, &cells, commit, &mut journal)?;
    }
    println!(
        "{}, Linux {}, mdevd {commit}, rings of {}, {}mergeable; Mpps, medians and ranges of pairs; ceiling: Mpps with a \
         back-end that only returns descriptors; ns/pkt: mdevd's processor; line: round trip of a cache line, ns\n\n{}",
        report.machine.cpu,
        report.machine.kernel,
        args.ring_size,
        if args.single { "not " } else { "" },
        table::table(&journal, &cells, commit)
    );
    Ok(())
}

/// Pairs of one start of the programs. The same program has different rates in different starts, so a cell has several.
const PAIRS_OF_A_START: usize = 3;

/// Round by round over all cells, so that an early end leaves some pairs of each rather than all of one.
fn measure(args: &Args, cells: &[Cell], commit: &str, journal: &mut Journal) -> Result<(), Box<dyn Error>> {
    let state = args.near.then_some(State::Near);
    let needs = |journal: &Journal, cell: &Cell| journal.needs(cell, commit, args.pairs, state);
    if !cells.iter().any(|cell| needs(journal, cell)) {
        return Ok(());
    }
    let failed = |Skip(reason)| reason;
    let lock = setup::lock().map_err(failed)?;
    let root = setup::root(&lock).map_err(failed)?;
    let work = tempfile::Builder::new().prefix("mdevd-versus-").tempdir()?;
    let lab = Lab::new(root, std::env::current_exe()?, work.path().to_owned());
    let mut broken: Vec<&Cell> = Vec::new();
    let began = Instant::now();
    let late =
        || args.minutes.is_some_and(|most| began.elapsed() > Duration::from_secs(60 * u64::from(most)));
    for round in 1.. {
        let open: Vec<&Cell> =
            cells.iter().filter(|cell| !broken.contains(cell) && needs(journal, cell)).collect();
        if open.is_empty() {
            break;
        }
        for cell in open {
            if late() {
                eprintln!("the time is over; run it again to go on");
                return Ok(());
            }
            eprintln!("round {round}: {cell}");
            let with_ceiling = journal.needs_ceiling(cell, commit, args.ceilings, state);
            // A peer that fails spoils its cell, not the others.
            match catch_unwind(AssertUnwindSafe(|| {
                let mut turns = Turns::start(&lab, cell, args.seconds.into(), with_ceiling)?;
                Ok((0..PAIRS_OF_A_START).map(|_| turns.pair(commit)).collect::<Vec<_>>())
            })) {
                Ok(Ok(entries)) => entries.into_iter().try_for_each(|entry| journal.keep(entry))?,
                Ok(Err(Skip(reason))) => return Err(reason.into()),
                Err(_) => broken.push(cell),
            }
        }
    }
    match broken.is_empty() {
        true => Ok(()),
        false => {
            let names: Vec<String> = broken.into_iter().map(Cell::to_string).collect();
            eprintln!(
                "a peer failed in: {} (see above); they are not tried again in this run",
                names.join("; ")
            );
            Ok(())
        }
    }
}
