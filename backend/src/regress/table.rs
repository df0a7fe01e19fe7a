//! The table at the end.
use super::run::Verdict;
use super::scenario::{Body, ELSEWHERE, Scenario};
use std::fmt::Write;
use std::time::Duration;

/// What the columns are; below the table.
const LEGEND: &str = "
origin: T discussion on the list, K kernel code, S its selftests, Q QEMU and vhost-user, V VDUSE;
worst: the longest time that one operation took; it fails at ten times its bound
";

/// All scenarios with what became of them, as an aligned table.
pub fn table(played: &[(Scenario, Verdict)]) -> String {
    let mut rows = vec![["", "scenario", "origin", "result", "worst", "bound"].map(str::to_owned)];
    rows.extend(played.iter().map(|(scenario, verdict)| row(scenario, verdict)));
    let notes = played.iter().map(|(scenario, verdict)| match verdict {
        Verdict::Ok(_) => None,
        Verdict::Failed(why, _) => Some(format!("{} {}: {why}\n", scenario.number, scenario.name)),
        Verdict::Skipped(ELSEWHERE) => None,
        Verdict::Skipped(what) => Some(format!("{} {}: {what}\n", scenario.number, scenario.name)),
    });
    let notes: String = notes.flatten().collect();
    let gap = if notes.is_empty() { "" } else { "\n" };
    aligned(&rows) + LEGEND + gap + &notes
}

/// The scenarios and what they show.
pub fn list(scenarios: &[Scenario]) -> String {
    let mut text = String::new();
    for scenario in scenarios {
        // Writing into a string does not fail.
        let _ = writeln!(
            text,
            "{:>2} {:<24} {:<4} {}",
            scenario.number, scenario.name, scenario.origin, scenario.shows
        );
        if let Body::Needs(what) = scenario.body {
            let _ = writeln!(text, "{:32} ({what})", "");
        }
    }
    text
}

fn row(scenario: &Scenario, verdict: &Verdict) -> [String; 6] {
    let (result, worst) = match verdict {
        Verdict::Ok(worst) => ("ok", time(*worst)),
        Verdict::Failed(_, worst) => ("FAILED", time(*worst)),
        Verdict::Skipped(ELSEWHERE) => (ELSEWHERE, "-".to_owned()),
        Verdict::Skipped(_) => ("skipped", "-".to_owned()),
    };
    [
        scenario.number.to_string(),
        scenario.name.to_owned(),
        scenario.origin.to_owned(),
        result.to_owned(),
        worst,
        time(scenario.bound),
    ]
}

fn time(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn aligned(rows: &[[String; 6]]) -> String {
    let mut widths = [0; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match column {
                1..=3 => write!(line, "{cell:<width$}  "),
                _ => write!(line, "{cell:>width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regress::scenario::{Transport, scenarios};

    #[test]
    fn table_has_a_line_for_each_scenario_and_says_why() {
        let scenarios = scenarios(Transport::Memory);
        let verdicts = [
            Verdict::Ok(Duration::from_micros(10)),
            Verdict::Failed("a pin was left".to_owned(), Duration::from_secs(2)),
            Verdict::Skipped("needs a thing"),
        ];
        let played: Vec<_> = scenarios.into_iter().zip(verdicts).collect();
        let text = table(&played);
        let lines: Vec<&str> = text.lines().collect();
        let at = lines[0].find("result").unwrap();
        assert!(lines[1][at..].starts_with("ok ") && lines[1].contains(" 0.01 ms"), "{text}");
        assert!(lines[2][at..].starts_with("FAILED ") && lines[2].contains(" 2000.00 ms"), "{text}");
        assert!(lines[3][at..].starts_with("skipped "), "{text}");
        assert!(text.contains(": a pin was left\n") && text.contains(": needs a thing\n"), "{text}");
        assert!(lines.iter().all(|line| line.len() <= 100), "{text}");
    }
}
