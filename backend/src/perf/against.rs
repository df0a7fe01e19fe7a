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

/// One line of the table.
struct Row {
    direction: Direction,
    size: PacketSize,
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
    let mut rows = Vec::new();
    let result = all(&ground, against, &mut rows);
    ground.bar.finish_and_clear();
    let places = std::iter::once(options.socket.as_deref())
        .chain(against.sockets.iter().map(|socket| Some(socket.as_path())));
    let who: String = places.enumerate().map(|(number, at)| described(number, at)).collect();
    (findings(&who, &rows), result)
}

fn all(ground: &Ground<'_>, against: &Against, rows: &mut Vec<Row>) -> Result<(), PerfError> {
    // In the order of the letters; a device of our own lives during its turns only.
    let first = ground.options.socket.as_deref();
    let paused = match against.pause {
        true => Paused::new(first.into_iter().chain(against.sockets.iter().map(PathBuf::as_path)))?,
        false => Paused::default(),
    };
    let place = |number: usize| if first.is_some() { number } else { number.wrapping_sub(1) };
    for (direction, size) in ground.cells() {
        for (other, socket) in against.sockets.iter().enumerate().map(|(number, at)| (number + 1, at)) {
            let mut row = Row {
                direction,
                size,
                other: letter(other),
                comparison: Comparison::of("", ["", ""], &[]),
                shares: Vec::new(),
                faults: Vec::new(),
            };
            let mut pairs = Vec::new();
            let mut result = Ok(());
            for pair in 0..against.pairs {
                ground.say(format!("{direction} {size} A {} {}/{}", letter(other), pair + 1, against.pairs));
                let mut turn = |number: usize, at: Option<&Path>| {
                    paused.turn(place(number), || {
                        one_turn(ground, at, direction, size, against.pairs, &mut row)
                    })
                };
                let before = ground.layout.round_trip();
                let both = turn(0, first).and_then(|first| {
                    let between = ground.layout.round_trip();
                    let second = turn(other, Some(socket))?;
                    Ok((first, between, second))
                });
                match both {
                    Ok((first, between, second)) => {
                        let lines = [before, between, ground.layout.round_trip()];
                        pairs.push(Pairing { first, second, lines: lines.into_iter().flatten().collect() });
                    }
                    Err(error) => {
                        row.faults.push(format!("{direction} {size} {}: not measured to the end", row.other));
                        result = Err(error);
                        break;
                    }
                }
            }
            row.comparison = Comparison::of(&format!("{direction}/{size}"), ["A", &row.other], &pairs);
            rows.push(row);
            result?;
        }
    }
    Ok(())
}

/// One back-end for a part of the time; its rate in millions of packets a second.
fn one_turn(
    ground: &Ground<'_>,
    at: Option<&Path>,
    direction: Direction,
    size: PacketSize,
    pairs: u32,
    row: &mut Row,
) -> Result<f64, PerfError> {
    let cell = ground.measure(at, direction, size, ground.options.duration / pairs.max(1), || ())?;
    ground.bar.inc(1);
    let outcome = Outcome::of(direction, size, &cell, &[]);
    let name = at.map_or("the device of our own".to_owned(), |at| at.display().to_string());
    row.shares.push(outcome.share.median);
    row.faults.extend(outcome.complaints().map(|complaint| format!("{name}: {complaint}")));
    Ok(outcome.rate.median)
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

fn findings(who: &str, rows: &[Row]) -> Findings {
    let results = |row: &Row| {
        let good = row.faults.is_empty();
        let status = |result: Measurement| if good { result } else { result.with_status(Status::Failed) };
        row.comparison.measurements().map(status).collect::<Vec<Measurement>>()
    };
    Findings {
        table: format!("{who}\n{}{}{}", table(rows), legend(), remarks(rows)),
        faults: rows.iter().flat_map(|row| row.faults.clone()).collect(),
        failed: rows.iter().filter(|row| !row.faults.is_empty()).count(),
        results: rows.iter().flat_map(results).collect(),
        figures: figures(rows),
        lines: rows.iter().flat_map(|row| row.comparison.cache_line.samples.clone()).collect(),
    }
}

/// Rates side by side, and ratios.
fn figures(rows: &[Row]) -> Vec<Figure> {
    let figure =
        |title: &str, unit: &str, series: &[&str], bars: &dyn Fn(&Comparison) -> Vec<Option<Bar>>| {
            let group =
                |row: &Row| (format!("{} {} {}", row.direction, row.size, row.other), bars(&row.comparison));
            Figure::Bars {
                title: title.to_owned(),
                unit: unit.to_owned(),
                series: series.iter().map(|&name| name.to_owned()).collect(),
                groups: rows.iter().map(group).collect(),
            }
        };
    vec![
        figure("Rates in turns", "Mpps, median and range of pairs", &["A", "the other"], &|each| {
            vec![Bar::of(&each.first), Bar::of(&each.second)]
        }),
        figure("A by the other", "ratio, median and range of pairs", &["A / other"], &|each| {
            vec![Bar::of(&each.ratio)]
        }),
    ]
}

fn table(rows: &[Row]) -> String {
    let heading = [
        "", "size", "", "A Mpps", "range", "other", "range", "A/other", "range", "pairs", "dropped", "line",
        "",
    ];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    for Row { direction, size, other, comparison, faults, .. } in rows {
        let Comparison { first, second, ratio, cache_line, kept, dropped } = comparison;
        let mut row = vec![direction.to_string(), size.to_string(), other.clone()];
        for result in [first, second, ratio] {
            row.extend([value(result, 2), range(result)]);
        }
        row.extend([kept.to_string(), dropped.to_string(), value(cache_line, 0)]);
        row.push(if faults.is_empty() { "" } else { "FAILED" }.to_owned());
        cells.push(row);
    }
    aligned(&cells)
}

/// The least and the greatest.
fn range(result: &Measurement) -> String {
    match result.samples.is_empty() {
        true => "-".to_owned(),
        false => format!("{:.2}-{:.2}", result.min, result.max),
    }
}

fn legend() -> String {
    format!(
        "
Medians and ranges of the pairs that count; A/other: of the two rates of each pair.
dropped: pairs in which the cache line's round trip changed by more than {:.0} %:
the machine was not the same for both. line: the round trip in ns.
More: mdevd perf net --help
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
            direction: Direction::Loop,
            size: PacketSize::Bytes(64),
            other: "B".to_owned(),
            comparison: Comparison::of("loop/64", ["A", "B"], &pairs),
            shares: vec![1.0, 0.99],
            faults,
        }
    }

    #[test]
    fn table_shows_both_rates_and_their_ratio() {
        let text = table(&[row(vec![], [60.0; 3])]);
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
        let text = table(&[row(vec!["lost".to_owned()], [60.0, 500.0, 60.0])]);
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
