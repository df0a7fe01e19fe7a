//! Values on the command line: times, processors, addresses, permissions. Errors say what would be right.

use std::time::Duration;

/// A time with its unit: `500ms`, `1s`, `2m`; a plain number is seconds, and fractions are allowed.
///
/// # Errors
/// No number, an unknown unit, zero, or more than a day.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: use a number and ms, s or m, for example 500ms or 1s");
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(format!("{text:?} is out of range: 1ms to 1440m"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A list of processors: `0,2-3`.
pub(super) fn parse_cpus(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{text:?} is not a list of processors: use numbers and ranges, for example 0,2-3");
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if last < first || last >= rustix::thread::CpuSet::MAX_CPU {
            return Err(wrong());
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("processor {cpu} is in the list twice: {text}"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Permissions, octal: `0660`.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is not a file mode: use octal digits, for example 0660")),
    }
}
