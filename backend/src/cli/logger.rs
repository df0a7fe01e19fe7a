//! Log lines on standard error: time (UTC), level, module, text. No colours, whatever standard error is.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Env};
use log::LevelFilter;

/// Installs the logger. What is written is set by `MDEVD_LOG`, or else by `RUST_LOG`, or else "info" and above.
pub(super) fn install() {
    let variable = if std::env::var_os("MDEVD_LOG").is_some() { "MDEVD_LOG" } else { "RUST_LOG" };
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Info).parse_env(Env::new().filter(variable)).format(|out, record| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = timestamp(now.as_secs(), now.subsec_millis());
        writeln!(out, "{time} {:<5} {}: {}", record.level(), record.target(), record.args())
    });
    // A program that embeds this one may have its own logger.
    let _ = builder.try_init();
}

/// RFC 3339 in UTC with milliseconds, from seconds since 1970.
fn timestamp(seconds: u64, millis: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The Gregorian date of a day counted from 1970-01-01.
fn date(day: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, a year begins with March, so that the day that leap years have comes last.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, and so on: 153 in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (era * 400 + year, month, day)
}

#[cfg(test)]
mod tests;
