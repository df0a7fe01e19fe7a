//! The rules of the house, as functions that read the source tree and say where it breaks them.
//!
//! A rule is a function from a [`Tree`] to [`Finding`]s; it knows nothing of the file system, so each is tested with samples that break
//! it. [`Tree::of_workspace`] reads the real thing. What the compiler and clippy can check is left to them; what stands here they cannot:
//! where `unsafe` may live, which room may import which, how long a file may get, which names are banned.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub mod arrows;
pub mod code;
pub mod names;
pub mod shape;
pub mod unsafety;

/// A text file of the repository.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path from the repository's root, with `/` between the parts.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// The files a rule reads.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// All of them, sorted by path.
    pub files: Vec<Source>,
}

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong there, and what to do.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl Source {
    /// Something wrong on a line of this file.
    pub fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }

    /// Whether this is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether this is a product's source that is compiled for tests only: `tests.rs`, `NAME_tests.rs`, the loom models in `models.rs`, or
    /// below a folder of such a name.
    pub fn is_sibling_test(&self) -> bool {
        let below_src = self.path.split_once("/src/").map_or("", |(_, rest)| rest);
        below_src.split('/').any(|part| {
            let stem = part.trim_end_matches(".rs");
            stem == "models" || stem == "tests" || stem.ends_with("_tests")
        })
    }

    /// The folder at the repository's root this file is in; empty for a file of the root itself.
    pub fn room(&self) -> &str {
        self.path.split_once('/').map_or("", |(room, _)| room)
    }
}

impl Tree {
    /// A tree made up for a test of a rule.
    pub fn sample(files: &[(&str, &str)]) -> Tree {
        let files = files.iter().map(|(path, text)| Source { path: (*path).into(), text: (*text).into() });
        Tree { files: files.collect() }
    }

    /// The repository this crate stands in: every text file but what git and cargo made.
    pub fn of_workspace() -> std::io::Result<Tree> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let mut files = Vec::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let kind = entry.file_type()?;
                if kind.is_dir()
                    && !matches!(name.as_str(), ".git" | "target" | "book" | "corpus" | "artifacts")
                {
                    folders.push(entry.path());
                } else if kind.is_file() && !matches!(name.as_str(), ".git" | "Cargo.lock") {
                    files.extend(read(root, &entry.path())?);
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Tree { files })
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.is_rust())
    }
}

/// Read a file, unless it is no text.
fn read(root: &Path, path: &PathBuf) -> std::io::Result<Option<Source>> {
    let Ok(text) = String::from_utf8(fs::read(path)?) else {
        return Ok(None);
    };
    let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    Ok(Some(Source { path, text }))
}
