//! A report as a page for people: one file with its figures inside, which asks nothing of the network.
//!
//! Every text that comes from outside (command, machine, names) goes through [`Text`], which escapes it.
mod plot;

use super::{Measurement, Report};
use std::fmt::{self, Display, Write};

/// A text between tags or in an attribute: the characters that mean something there are escaped, control characters replaced.
pub struct Text<'t>(pub &'t str);

impl Display for Text<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '&' => out.write_str("&amp;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                '\n' | '\t' => out.write_char(letter)?,
                control if control.is_control() => out.write_char('\u{fffd}')?,
                other => out.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A value with the range that it lies in.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Bar {
    /// The bar's height.
    pub median: f64,
    /// The whisker's ends.
    pub range: [f64; 2],
}

impl Bar {
    /// Of a result: its median and the range of its samples; `None` where there are none.
    pub fn of(result: &Measurement) -> Option<Self> {
        let bar = Bar { median: result.median, range: [result.min, result.max] };
        (!result.samples.is_empty()).then_some(bar)
    }
}

/// A figure.
#[derive(Clone, Debug)]
pub enum Figure {
    /// Groups of bars with whiskers, one bar for each series; the axis begins at zero.
    Bars {
        /// What it shows.
        title: String,
        /// The unit of all values.
        unit: String,
        /// What the bars of a group are.
        series: Vec<String>,
        /// A name and as many bars as there are series.
        groups: Vec<(String, Vec<Option<Bar>>)>,
    },
    /// Lines over marks, on a logarithmic axis.
    Curves {
        /// What it shows.
        title: String,
        /// The unit of all values.
        unit: String,
        /// The marks on the horizontal axis.
        marks: Vec<String>,
        /// A name and a value for each mark.
        series: Vec<(String, Vec<Option<f64>>)>,
    },
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1b1f24;background:#fff}pre{overflow-x:auto;background:#f4f5f7;padding:1rem}svg{width:100%;height:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.1rem .8rem;text-align:right;\
border-bottom:1px solid #e1e4e8}td:first-child,th:first-child{text-align:left}.failed{color:#b00020}\
svg text{font:12px system-ui,sans-serif;fill:#444}";

/// The page of a report: its figures, the table as it was printed, every result.
pub fn page(report: &Report, printed: &str, figures: &[Figure]) -> String {
    let mut page = String::new();
    // Writing into a string does not fail.
    let _ = write_page(&mut page, report, printed, figures);
    page
}

fn write_page(page: &mut String, report: &Report, printed: &str, figures: &[Figure]) -> fmt::Result {
    let command = Text(&report.command);
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{command}</title>"
    )?;
    writeln!(page, "<style>{STYLE}</style>\n<h1>{command}</h1>")?;
    let machine = &report.machine;
    write!(
        page,
        "<p>mdevd {} ({}), {}, {} processors, Linux {}",
        Text(&report.version),
        Text(&report.commit),
        Text(&machine.cpu),
        machine.cores,
        Text(&machine.kernel)
    )?;
    match machine.cacheline_round_trip_ns {
        Some(line) => writeln!(page, ", cache line round trip {line:.0} ns</p>")?,
        None => writeln!(page, "</p>")?,
    }
    for figure in figures {
        plot::write(page, figure)?;
    }
    writeln!(page, "<h2>As printed</h2>\n<pre>{}</pre>\n<h2>All results</h2>\n<table>", Text(printed))?;
    writeln!(page, "<tr><th>result<th>median<th>least<th>greatest<th>samples<th>unit<th>status</tr>")?;
    for result in &report.results {
        let status = format!("{:?}", result.status).to_lowercase();
        writeln!(
            page,
            "<tr class=\"{status}\"><td>{}<td>{:.3}<td>{:.3}<td>{:.3}<td>{}<td>{}<td>{status}</tr>",
            Text(&result.name),
            result.median,
            result.min,
            result.max,
            result.samples.len(),
            Text(&result.unit),
        )?;
    }
    writeln!(page, "</table>\n</html>")
}

#[cfg(test)]
mod tests;
