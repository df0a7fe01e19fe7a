//! Figures as SVG.
use super::{Bar, Figure, Text};
use std::fmt::{Result, Write};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;
/// Height of a line of the legend.
const LINE: f64 = 18.0;
/// Colours that are told apart by those who see few, too (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f"];

fn colour(number: usize) -> &'static str {
    COLOURS.get(number % COLOURS.len()).copied().unwrap_or("#000")
}

pub(super) fn write(out: &mut String, figure: &Figure) -> Result {
    let (title, unit, names): (_, _, Vec<&String>) = match figure {
        Figure::Bars { title, unit, series, .. } => (title, unit, series.iter().collect()),
        Figure::Curves { title, unit, series, .. } => {
            (title, unit, series.iter().map(|(name, _)| name).collect())
        }
    };
    let height = HEIGHT + LINE * names.len() as f64;
    writeln!(out, "<h2>{} ({})</h2>", Text(title), Text(unit))?;
    writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", Text(title))?;
    match figure {
        Figure::Bars { groups, series, .. } => bars(out, groups, series.len())?,
        Figure::Curves { marks, series, .. } => curves(out, marks, series)?,
    }
    for (number, name) in names.into_iter().enumerate() {
        let y = HEIGHT + LINE * number as f64;
        let fill = colour(number);
        writeln!(out, "<rect x=\"{LEFT}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{fill}\"/>")?;
        writeln!(out, "<text x=\"{}\" y=\"{}\">{}</text>", LEFT + 18.0, y + 11.0, Text(name))?;
    }
    writeln!(out, "</svg>")
}

/// An axis from the bottom of the plot to its top.
#[derive(Copy, Clone, Debug)]
enum Axis {
    Linear { top: f64 },
    Logarithmic { bottom: f64, top: f64 },
}

impl Axis {
    /// From zero to a round number at or above all values.
    fn linear(values: impl Iterator<Item = f64>) -> Self {
        let greatest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let unit = 10f64.powf(greatest.max(1e-9).log10().floor());
        let step = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
        let top = step.into_iter().map(|step| step * unit).find(|&top| top >= greatest);
        Axis::Linear { top: top.unwrap_or(10.0 * unit) }
    }

    /// From a power of ten at or below all values to one above them.
    fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (least, greatest) = positive
            .fold((f64::INFINITY, 0.0f64), |(least, most), value| (least.min(value), most.max(value)));
        if greatest == 0.0 {
            return Axis::Logarithmic { bottom: 0.0, top: 1.0 };
        }
        let bottom = least.log10().floor();
        Axis::Logarithmic { bottom, top: greatest.log10().ceil().max(bottom + 1.0) }
    }

    /// Where a value lies on the page.
    fn y(&self, value: f64) -> f64 {
        let share = match *self {
            Axis::Linear { top } => value / top,
            Axis::Logarithmic { bottom, top } => (value.max(1e-12).log10() - bottom) / (top - bottom),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - BOTTOM - TOP)
    }

    fn ticks(&self) -> Vec<f64> {
        match *self {
            Axis::Linear { top } => (0..=5u8).map(|fifth| top * f64::from(fifth) / 5.0).collect(),
            Axis::Logarithmic { bottom, top } => {
                (bottom as i32..=top as i32).map(|power| 10f64.powi(power)).collect()
            }
        }
    }

    fn write(&self, out: &mut String) -> Result {
        for tick in self.ticks() {
            let y = self.y(tick);
            let right = WIDTH - RIGHT;
            writeln!(out, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>")?;
            let label = if tick >= 100.0 || tick == 0.0 { format!("{tick:.0}") } else { format!("{tick}") };
            let label = if label.len() > 6 { format!("{tick:.2}") } else { label };
            writeln!(
                out,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            )?;
        }
        Ok(())
    }
}

/// A name under the plot, in the middle of its place.
fn mark(out: &mut String, name: &str, x: f64) -> Result {
    let y = HEIGHT - BOTTOM + 18.0;
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", Text(name))
}

fn bars(out: &mut String, groups: &[(String, Vec<Option<Bar>>)], series: usize) -> Result {
    let tops =
        groups.iter().flat_map(|(_, bars)| bars.iter().flatten().map(|bar| bar.range[1].max(bar.median)));
    let axis = Axis::linear(tops);
    axis.write(out)?;
    let place = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
    let width = (0.8 * place / series.max(1) as f64).min(60.0);
    for (number, (name, bars)) in groups.iter().enumerate() {
        let middle = LEFT + place * (number as f64 + 0.5);
        mark(out, name, middle)?;
        let first = middle - width * series as f64 / 2.0;
        for (which, bar) in bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let x = first + width * which as f64;
            let (top, bottom) = (axis.y(bar.median), axis.y(0.0));
            let fill = colour(which);
            writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"><title>{:.3} ({:.3} to {:.3})</title></rect>",
                x + 1.0,
                (width - 2.0).max(1.0),
                bottom - top,
                bar.median,
                bar.range[0],
                bar.range[1]
            )?;
            let (low, high) = (axis.y(bar.range[0]), axis.y(bar.range[1]));
            let centre = x + width / 2.0;
            writeln!(
                out,
                "<path d=\"M{centre:.1} {low:.1}V{high:.1}M{:.1} {low:.1}h8M{:.1} {high:.1}h8\" stroke=\"#222\" fill=\"none\"/>",
                centre - 4.0,
                centre - 4.0
            )?;
        }
    }
    Ok(())
}

fn curves(out: &mut String, marks: &[String], series: &[(String, Vec<Option<f64>>)]) -> Result {
    let axis = Axis::logarithmic(series.iter().flat_map(|(_, values)| values.iter().copied().flatten()));
    axis.write(out)?;
    let place = (WIDTH - LEFT - RIGHT) / marks.len().max(1) as f64;
    let x = |number: usize| LEFT + place * (number as f64 + 0.5);
    for (number, name) in marks.iter().enumerate() {
        mark(out, name, x(number))?;
    }
    for (number, (name, values)) in series.iter().enumerate() {
        let mut path = String::new();
        for (at, value) in values.iter().enumerate() {
            if let Some(value) = value {
                write!(
                    path,
                    "{}{:.1} {:.1}",
                    if path.is_empty() { "M" } else { "L" },
                    x(at),
                    axis.y(*value)
                )?;
            }
        }
        let stroke = colour(number);
        writeln!(
            out,
            "<path d=\"{path}\" stroke=\"{stroke}\" stroke-width=\"2\" fill=\"none\"><title>{}</title></path>",
            Text(name)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_lie_on_their_axes_whatever_they_are(values in prop::collection::vec(any::<f64>(), 0..20)) {
            for axis in [Axis::linear(values.iter().copied()), Axis::logarithmic(values.iter().copied())] {
                for value in values.iter().filter(|value| value.is_finite()) {
                    let y = axis.y(*value);
                    prop_assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{value}: {y}");
                }
                prop_assert!(axis.ticks().len() >= 2);
            }
        }

        #[test]
        fn greater_values_lie_higher(low in 0.001f64..1e6, more in 1.01f64..100.0) {
            let values = [low, low * more];
            for axis in [Axis::linear(values.into_iter()), Axis::logarithmic(values.into_iter())] {
                prop_assert!(axis.y(low) > axis.y(low * more));
            }
        }
    }

    #[test]
    fn linear_axis_ends_at_a_round_number_just_above() {
        let top = |value: f64| match Axis::linear([value].into_iter()) {
            Axis::Linear { top } => top,
            Axis::Logarithmic { .. } => f64::NAN,
        };
        assert_eq!(
            [top(9.7), top(23.0), top(1.0), top(0.0)].map(|top| top.max(1e-6)),
            [10.0, 25.0, 1.0, 1e-6]
        );
    }
}
