//! Several back-ends in one run, in turns: A B A B, then A C A C.
//!
//! Each turn is a connection of its own (and a process of its own, where the back-end is a device of ours), verified and warmed up like any
//! cell. Only neighbours are compared, since what crosses cores drifts; see [`super::pairs`].
use super::drive::Direction;
use super::ground::Ground;
use super::layout::Layout;
use super::outcome::Outcome;
use super::pairs::{Comparison, Pairing, STEADY};
use super::pause::Paused;
use super::size::PacketSize;
use super::table::{aligned, disturbance, value};
use super::{Findings, Options, PerfError};
use crate::report::html::{Bar, Figure};
use crate::report::{Measurement, Status};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Whom to compare with, and how.
#[derive(Clone, Debug)]
pub struct Against {
    /// The sockets of the others.
    pub sockets: Vec<PathBuf>,
    /// Pairs of each comparison.
    pub pairs: u32,
    /// Stop the processes whose turn it is not.
    pub pause: bool,
}

/// The most others: they have a letter each.
pub const MOST: usize = 25;

/// What back-ends are compared in.
pub(super) trait Contest {
    /// A line of the table is for each of these, and each of the others.
    type Cell: Copy;
    /// What a rate is in, and with how many digits it is printed.
    const RATE: (&'static str, usize);
    /// What the first columns are called: those that name a cell.
    const COLUMNS: &'static [&'static str];
    /// What explains the figures.
    const HELP: &'static str;

    /// Where the first back-end listens; `None`: a device of our own.
    fn first(&self) -> Option<&Path>;

    /// The cells, one behind the other.
    fn cells(&self) -> Vec<Self::Cell>;

    /// What is in the first columns; between slashes it is the name of results, between blanks that of a line.
    fn columns(&self, cell: Self::Cell) -> Vec<String>;

    /// One back-end for a part of the time.
    ///
    /// # Errors
    /// [`PerfError`]: it could not be measured to the end.
    fn turn(&self, at: Option<&Path>, cell: Self::Cell, pairs: u32) -> Result<Turn, PerfError>;
}

/// What came of a turn.
pub(super) struct Turn {
    /// The median rate.
    pub rate: f64,
    /// The part of the time, from 0 to 1, that the front-end had its processor.
    pub share: f64,
    /// What is wrong.
    pub complaints: Vec<String>,
}

/// One line of the table.
struct Row {
    columns: Vec<String>,
    other: String,
    comparison: Comparison,
    /// Parts of the turns' time that the front-end had its processor.
    shares: Vec<f64>,
    faults: Vec<String>,
}

/// Compares in all cells.
pub(super) fn run(
    options: &Options,
    against: &Against,
    layout: &Layout,
    stop: &AtomicBool,
) -> (Findings, Result<(), PerfError>) {
    let cells = options.directions.len() * options.sizes.len();
    let ground =
        Ground::new(options, layout, stop, cells * against.sockets.len() * against.pairs as usize * 2);
    compete(&ground, against, layout, &ground.bar)
}

impl Contest for Ground<'_> {
    type Cell = (Direction, PacketSize);
    const RATE: (&'static str, usize) = ("Mpps", 2);
    const COLUMNS: &'static [&'static str] = &["", "size"];
    const HELP: &'static str = "mdevd perf net --help";

    fn first(&self) -> Option<&Path> {
        self.options.socket.as_deref()
    }

    fn cells(&self) -> Vec<Self::Cell> {
        Ground::cells(self)
    }

    fn columns(&self, (direction, size): Self::Cell) -> Vec<String> {
        vec![direction.to_string(), size.to_string()]
    }

    fn turn(&self, at: Option<&Path>, (direction, size): Self::Cell, pairs: u32) -> Result<Turn, PerfError> {
        let cell = self.measure(at, direction, size, self.options.duration / pairs.max(1), || ())?;
        let outcome = Outcome::of(direction, size, &cell, &[]);
        Ok(Turn {
            rate: outcome.rate.median,
            share: outcome.share.median,
            complaints: outcome.complaints().collect(),
        })
    }
}

/// Compares in all cells of a contest.
pub(super) fn compete<C: Contest>(
    contest: &C,
    against: &Against,
    layout: &Layout,
    bar: &ProgressBar,
) -> (Findings, Result<(), PerfError>) {
    let mut rows = Vec::new();
    let result = all(contest, against, layout, bar, &mut rows);
    bar.finish_and_clear();
    let places =
        std::iter::once(contest.first()).chain(against.sockets.iter().map(|socket| Some(socket.as_path())));
    let who: String = places.enumerate().map(|(number, at)| described(number, at)).collect();
    (findings::<C>(&who, &rows), result)
}

fn all<C: Contest>(
    contest: &C,
    against: &Against,
    layout: &Layout,
    bar: &ProgressBar,
    rows: &mut Vec<Row>,
) -> Result<(), PerfError> {
    // In the order of the letters; a device of our own lives during its turns only.
    let first = contest.first();
    let paused = match against.pause {
        true => Paused::new(first.into_iter().chain(against.sockets.iter().map(PathBuf::as_path)))?,
        false => Paused::default(),
    };
    let place = |number: usize| if first.is_some() { number } else { number.wrapping_sub(1) };
    for cell in contest.cells() {
        for (other, socket) in against.sockets.iter().enumerate().map(|(number, at)| (number + 1, at)) {
            let columns = contest.columns(cell);
            let (line, name) = (columns.join(" "), columns.join("/"));
            let mut row = Row {
                columns,
                other: letter(other),
                comparison: Comparison::of("", ["", ""], &[]),
                shares: Vec::new(),
                faults: Vec::new(),
            };
            let mut pairs = Vec::new();
            let mut result = Ok(());
            for pair in 0..against.pairs {
                bar.set_message(format!("{line} A {} {}/{}", letter(other), pair + 1, against.pairs));
                bar.tick();
                let mut turn = |number: usize, at: Option<&Path>| {
                    paused.turn(place(number), || {
                        let turn = contest.turn(at, cell, against.pairs)?;
                        bar.inc(1);
                        let name =
                            at.map_or("the device of our own".to_owned(), |at| at.display().to_string());
                        row.shares.push(turn.share);
                        row.faults
                            .extend(turn.complaints.iter().map(|complaint| format!("{name}: {complaint}")));
                        Ok::<_, PerfError>(turn.rate)
                    })
                };
                let before = layout.round_trip();
                let both = turn(0, first).and_then(|first| {
                    let between = layout.round_trip();
                    let second = turn(other, Some(socket))?;
                    Ok((first, between, second))
                });
                match both {
                    Ok((first, between, second)) => {
                        let lines = [before, between, layout.round_trip()];
                        pairs.push(Pairing { first, second, lines: lines.into_iter().flatten().collect() });
                    }
                    Err(error) => {
                        row.faults.push(format!("{line} {}: not measured to the end", row.other));
                        result = Err(error);
                        break;
                    }
                }
            }
            row.comparison = Comparison::in_unit(C::RATE.0, &name, ["A", &row.other], &pairs);
            rows.push(row);
            result?;
        }
    }
    Ok(())
}

/// A, B, C ...
fn letter(number: usize) -> String {
    let offset = u8::try_from(number.min(MOST)).unwrap_or(0);
    char::from(b'A' + offset).to_string()
}

fn described(number: usize, at: Option<&Path>) -> String {
    match at {
        Some(path) => format!("{}: {}\n", letter(number), path.display()),
        None => format!("{}: this program's own device\n", letter(number)),
    }
}

fn findings<C: Contest>(who: &str, rows: &[Row]) -> Findings {
    let results = |row: &Row| {
        let good = row.faults.is_empty();
        let status = |result: Measurement| if good { result } else { result.with_status(Status::Failed) };
        row.comparison.measurements().map(status).collect::<Vec<Measurement>>()
    };
    Findings {
        table: format!("{who}\n{}{}{}", table::<C>(rows), legend(C::HELP), remarks(rows)),
        faults: rows.iter().flat_map(|row| row.faults.clone()).collect(),
        failed: rows.iter().filter(|row| !row.faults.is_empty()).count(),
        results: rows.iter().flat_map(results).collect(),
        figures: figures(C::RATE.0, rows),
        lines: rows.iter().flat_map(|row| row.comparison.cache_line.samples.clone()).collect(),
    }
}

/// Rates side by side, and ratios.
fn figures(rate: &str, rows: &[Row]) -> Vec<Figure> {
    let figure =
        |title: &str, unit: &str, series: &[&str], bars: &dyn Fn(&Comparison) -> Vec<Option<Bar>>| {
            let group =
                |row: &Row| (format!("{} {}", row.columns.join(" "), row.other), bars(&row.comparison));
            Figure::Bars {
                title: title.to_owned(),
                unit: unit.to_owned(),
                series: series.iter().map(|&name| name.to_owned()).collect(),
                groups: rows.iter().map(group).collect(),
            }
        };
    vec![
        figure(
            "Rates in turns",
            &format!("{rate}, median and range of pairs"),
            &["A", "the other"],
            &|each| vec![Bar::of(&each.first), Bar::of(&each.second)],
        ),
        figure("A by the other", "ratio, median and range of pairs", &["A / other"], &|each| {
            vec![Bar::of(&each.ratio)]
        }),
    ]
}

fn table<C: Contest>(rows: &[Row]) -> String {
    let (rate, digits) = C::RATE;
    let rate = format!("A {rate}");
    let others = ["", &rate, "range", "other", "range", "A/other", "range", "pairs", "dropped", "line", ""];
    let mut cells = vec![C::COLUMNS.iter().chain(&others).map(|&name| name.to_owned()).collect()];
    for Row { columns, other, comparison, faults, .. } in rows {
        let Comparison { first, second, ratio, cache_line, kept, dropped } = comparison;
        let mut row = columns.clone();
        row.push(other.clone());
        for (result, digits) in [(first, digits), (second, digits), (ratio, 2)] {
            row.extend([value(result, digits), range(result, digits)]);
        }
        row.extend([kept.to_string(), dropped.to_string(), value(cache_line, 0)]);
        row.push(if faults.is_empty() { "" } else { "FAILED" }.to_owned());
        cells.push(row);
    }
    aligned(&cells)
}

/// The least and the greatest.
fn range(result: &Measurement, digits: usize) -> String {
    match result.samples.is_empty() {
        true => "-".to_owned(),
        false => format!("{:.digits$}-{:.digits$}", result.min, result.max),
    }
}

fn legend(help: &str) -> String {
    format!(
        "
Medians and ranges of the pairs that count; A/other: of the two rates of each pair.
dropped: pairs in which the cache line's round trip changed by more than {:.0} %:
the machine was not the same for both. line: the round trip in ns.
More: {help}
",
        100.0 * (STEADY - 1.0)
    )
}

/// What keeps the figures from saying much.
fn remarks(rows: &[Row]) -> String {
    let none = rows.iter().any(|row| row.comparison.kept == 0 && row.comparison.dropped > 0);
    let words = if none {
        "\nNo pair of a comparison counts: the machine never stood still for two turns.\n"
    } else {
        ""
    };
    words.to_owned() + &disturbance(rows.iter().flat_map(|row| row.shares.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(faults: Vec<String>, lines: [f64; 3]) -> Row {
        let pairs = [Pairing { first: 10.0, second: 4.0, lines: lines.to_vec() }];
        Row {
            columns: vec![Direction::Loop.to_string(), PacketSize::Bytes(64).to_string()],
            other: "B".to_owned(),
            comparison: Comparison::of("loop/64", ["A", "B"], &pairs),
            shares: vec![1.0, 0.99],
            faults,
        }
    }

    #[test]
    fn table_shows_both_rates_and_their_ratio() {
        let text = table::<Ground<'_>>(&[row(vec![], [60.0; 3])]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "loop",
                "64",
                "B",
                "10.00",
                "10.00-10.00",
                "4.00",
                "4.00-4.00",
                "2.50",
                "2.50-2.50",
                "1",
                "0",
                "60"
            ]
        );
    }

    #[test]
    fn table_shows_dashes_where_every_pair_was_dropped_and_failures_at_the_end() {
        let text = table::<Ground<'_>>(&[row(vec!["lost".to_owned()], [60.0, 500.0, 60.0])]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["loop", "64", "B", "-", "-", "-", "-", "-", "-", "0", "1", "-", "FAILED"]);
    }

    #[test]
    fn remark_is_made_where_no_pair_counts() {
        assert_eq!(remarks(&[row(vec![], [60.0; 3])]), "");
        assert!(remarks(&[row(vec![], [60.0, 600.0, 60.0])]).contains("No pair"));
    }

    #[test]
    fn back_ends_are_named_by_letters_and_told_above_the_table() {
        assert_eq!((letter(0), letter(2), letter(MOST)), ("A".to_owned(), "C".to_owned(), "Z".to_owned()));
        assert_eq!(described(0, None), "A: this program's own device\n");
        assert_eq!(described(1, Some(Path::new("/s"))), "B: /s\n");
    }
}
