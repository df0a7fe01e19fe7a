//! The documents, read as far as rules about them need it: links, headings, tables, pieces of code.
//!
//! A rule is a function that returns [`Finding`]s, so that each is tested with samples that break it. What is
//! compared with the product itself (options, features, counters) is compared in `tests/tests/docs.rs`.

use std::collections::BTreeSet;

use crate::house::{Finding, Source, Tree};

/// One Markdown file.
#[derive(Clone, Debug)]
pub struct Document {
    source: Source,
}

/// A link as it stands in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    target: String,
}

impl Document {
    /// The file at `path`, from the repository's root.
    pub fn find(tree: &Tree, path: &str) -> Option<Document> {
        let source = tree.files.iter().find(|file| file.path == path)?.clone();
        Some(Document { source })
    }

    fn all(tree: &Tree) -> impl Iterator<Item = Document> {
        let pages = tree.files.iter().filter(|file| file.path.ends_with(".md"));
        pages.map(|source| Document { source: source.clone() })
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.source.path
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Its lines with their numbers, those of code blocks left out.
    fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut code = false;
        self.text().lines().zip(1..).filter_map(move |(line, number)| {
            let fence = line.trim_start().starts_with("```");
            code ^= fence;
            (!code && !fence).then_some((number, line))
        })
    }

    /// The first block of code in this language.
    pub fn code(&self, language: &str) -> Option<String> {
        let (_, rest) = self.text().split_once(&format!("```{language}\n"))?;
        Some(rest.split_once("```")?.0.to_owned())
    }

    /// The tables under a heading and before the next of the same or a higher level: rows of cells without
    /// backquotes, titles left out.
    pub fn tables(&self, heading: &str) -> Vec<Vec<Vec<String>>> {
        let mut tables = Vec::new();
        let mut inside = None;
        let mut rows: Option<Vec<Vec<String>>> = None;
        for (_, line) in self.prose().chain([(0, "")]) {
            if let Some((level, title)) = heading_of(line) {
                match inside {
                    None if title == heading => inside = Some(level),
                    Some(own) if level <= own => inside = None,
                    _ => {}
                }
            }
            let row = line.starts_with('|').then(|| cells(line));
            match (row, &mut rows) {
                (Some(row), Some(rows)) if row.iter().any(|cell| !cell.trim_matches('-').is_empty()) => {
                    rows.push(row)
                }
                (Some(_), None) if inside.is_some() => rows = Some(Vec::new()),
                (Some(_), _) => {}
                (None, _) => tables.extend(rows.take()),
            }
        }
        tables
    }

    /// The first of [`Document::tables`]; empty where there is none.
    pub fn table(&self, heading: &str) -> Vec<Vec<String>> {
        self.tables(heading).into_iter().next().unwrap_or_default()
    }

    fn links(&self) -> Vec<Link> {
        let mut links = Vec::new();
        for (line, text) in self.prose() {
            // What stands between backquotes is no link.
            let text: String = text.split('`').step_by(2).collect::<Vec<_>>().join("_");
            for (at, _) in text.match_indices("](") {
                let target = text[at + 2..].split(')').next().unwrap_or_default();
                links.push(Link { line, target: target.to_owned() });
            }
        }
        links
    }

    fn headings(&self) -> impl Iterator<Item = String> {
        self.prose().filter_map(|(_, line)| heading_of(line)).map(|(_, title)| anchor(title))
    }
}

/// The level and the text of a heading.
fn heading_of(line: &str) -> Option<(usize, &str)> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    (level > 0 && text.starts_with(' ')).then(|| (level, text.trim()))
}

/// What a heading is called in links.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn cells(row: &str) -> Vec<String> {
    row.trim().trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
}

/// Links to files, folders and headings that are not there, and links that lead out of the book.
pub fn broken_links(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for page in Document::all(tree) {
        for Link { line, target } in page.links() {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() { page.path().to_owned() } else { resolve(page.path(), path) };
            let folder = format!("{}/", path.trim_end_matches('/'));
            let there = |file: &&Source| file.path == path || file.path.starts_with(&folder);
            if !tree.files.iter().any(|file| there(&file)) {
                found.push(page.source.finding(line, format!("there is no {path}")));
            } else if page.path().starts_with("docs/") && !path.starts_with("docs/") {
                found.push(
                    page.source.finding(line, format!("{path} is not in the book: name it without a link")),
                );
            } else if !fragment.is_empty()
                && !Document::find(tree, &path)
                    .is_some_and(|page| page.headings().any(|known| known == fragment))
            {
                found.push(page.source.finding(line, format!("{path} has no heading #{fragment}")));
            }
        }
    }
    found
}

/// A path relative to the folder of `page`, from the root.
fn resolve(page: &str, path: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Pages of the book that its summary does not name.
pub fn pages_left_out(tree: &Tree) -> Vec<Finding> {
    let Some(summary) = Document::find(tree, "docs/SUMMARY.md") else {
        return vec![Finding { path: "docs/SUMMARY.md".into(), line: 0, what: "there is no summary".into() }];
    };
    let named: BTreeSet<String> =
        summary.links().iter().map(|link| resolve(summary.path(), &link.target)).collect();
    Document::all(tree)
        .filter(|page| page.path().starts_with("docs/") && page.path() != summary.path())
        .filter(|page| !named.contains(page.path()))
        .map(|page| page.source.finding(0, "the book's summary does not name this page"))
        .collect()
}

/// Dependencies without a line in the book, and lines without a dependency.
pub fn dependencies(tree: &Tree) -> Vec<Finding> {
    const PAGE: &str = "docs/dependencies.md";
    let Some(page) = Document::find(tree, PAGE) else {
        return vec![Finding { path: PAGE.into(), line: 0, what: "there is no such page".into() }];
    };
    let headings: Vec<String> =
        page.prose().filter_map(|(_, line)| heading_of(line)).map(|(_, title)| title.to_owned()).collect();
    let mut written: BTreeSet<String> = BTreeSet::new();
    for row in headings.iter().flat_map(|heading| page.tables(heading)).flatten() {
        written.extend(row.into_iter().next());
    }
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for (path, section) in [("Cargo.toml", "[workspace.dependencies]"), ("fuzz/Cargo.toml", "[dependencies]")]
    {
        for file in tree.files.iter().filter(|file| file.path == path) {
            for (line, name) in foreign(&file.text, section) {
                if !written.contains(name) {
                    found.push(file.finding(line, format!("{name} has no line in {PAGE}")));
                }
                known.insert(name.to_owned());
            }
        }
    }
    let unknown = written.difference(&known);
    found.extend(unknown.map(|name| page.source.finding(0, format!("nothing depends on {name}"))));
    found
}

/// The names in a section of a manifest that are not of this repository, with their lines.
fn foreign<'t>(manifest: &'t str, section: &str) -> Vec<(usize, &'t str)> {
    let lines = manifest.lines().zip(1..).skip_while(|(line, _)| *line != section).skip(1);
    lines
        .take_while(|(line, _)| !line.starts_with('['))
        .filter(|(line, _)| !line.contains("path = "))
        .filter_map(|(line, number)| Some((number, line.split_once('=')?.0.trim().split('.').next()?)))
        .collect()
}

/// Examples that their package does not name, or that no test runs.
pub fn examples(tree: &Tree) -> Vec<Finding> {
    let text = |path: &str| Document::find(tree, path).map(|file| file.source.text).unwrap_or_default();
    let (named, run) = (text("examples/src/lib.rs"), text("examples/tests/run.rs"));
    let mut found = Vec::new();
    for file in tree.rust() {
        let Some(name) =
            file.path.strip_prefix("examples/examples/").and_then(|name| name.strip_suffix(".rs"))
        else {
            continue;
        };
        if !named.contains(&format!("--example {name}`")) {
            found.push(file.finding(0, "examples/src/lib.rs does not name it"));
        }
        if !run.contains(&format!("run(\"{name}\")")) {
            found.push(file.finding(0, "no test in examples/tests/run.rs runs it"));
        }
    }
    found
}

/// Packages with benches that the page about performance does not say how to run.
pub fn benches(tree: &Tree) -> Vec<Finding> {
    const PAGE: &str = "docs/performance.md";
    let said = Document::find(tree, PAGE).map(|page| page.source.text).unwrap_or_default();
    let with_benches =
        tree.files.iter().filter(|file| file.path.ends_with("Cargo.toml") && file.text.contains("[[bench]]"));
    let mut found = Vec::new();
    for file in with_benches {
        let name = file.text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
        let command = format!("cargo bench -p {}", name.trim_matches('"'));
        if !said.contains(&format!("{command} ")) {
            found.push(file.finding(0, format!("{PAGE} does not name `{command}`")));
        }
    }
    found
}

/// Differences between the options in the first table under `heading` and those of a command: names, values,
/// defaults.
pub fn options(page: &Document, heading: &str, command: &clap::Command) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut written = BTreeSet::new();
    let rows = page.table(heading);
    for row in &rows {
        let [option, default, ..] = row.as_slice() else { continue };
        written.insert(option.clone());
        let Some(argument) =
            command.get_arguments().find(|argument| spelt(argument).as_ref() == Some(option))
        else {
            found.push(page.source.finding(0, format!("{heading}: there is no {option}")));
            continue;
        };
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let takes_value = argument.get_action().takes_values();
        if takes_value && !defaults.is_empty() && *default != defaults.join(",") {
            let what = format!("{heading}: the default of {option} is {}, not {default}", defaults.join(","));
            found.push(page.source.finding(0, what));
        }
    }
    for option in command.get_arguments().filter(|argument| !argument.is_hide_set()).filter_map(spelt) {
        if !written.contains(&option) && option != "--help" && option != "--version" {
            found.push(page.source.finding(0, format!("{heading}: {option} has no line")));
        }
    }
    found
}

/// An option as a table writes it: `--mac MAC`.
fn spelt(argument: &clap::Arg) -> Option<String> {
    let long = argument.get_long()?;
    let values = argument.get_value_names().unwrap_or_default();
    let value = values.first().filter(|_| argument.get_action().takes_values());
    Some(value.map_or_else(|| format!("--{long}"), |value| format!("--{long} {value}")))
}

#[cfg(test)]
mod tests;
