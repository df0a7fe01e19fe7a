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

    /// Whether a file is compiled for tests only: what declares its module, or a module above it, does so under a `cfg` of tests.
    pub fn is_for_tests(&self, file: &Source) -> bool {
        let mut module = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
        while let Some((above, name)) = module.rsplit_once('/') {
            let parents = ["/mod.rs", "/lib.rs", "/main.rs", ".rs"].map(|end| format!("{above}{end}"));
            let declares = |other: &Source| {
                let (folder, _) = other.path.rsplit_once('/').unwrap_or_default();
                let path = (folder == above).then(|| format!("#[path = \"{name}.rs\"]"));
                let name = parents.contains(&other.path).then_some(name);
                declares_for_tests(&other.text, name, path.as_deref())
            };
            if self.rust().any(declares) {
                return true;
            }
            module = above;
        }
        false
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.is_rust())
    }
}

/// Whether this text declares a module of this name, or with this attribute that says where it is, under a `cfg` of tests.
fn declares_for_tests(text: &str, name: Option<&str>, path: Option<&str>) -> bool {
    if name.is_none() && path.is_none() {
        return false;
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests_only = |line: &&str| {
        ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(loom)]"].iter().any(|cfg| line.starts_with(cfg))
    };
    lines.iter().enumerate().any(|(index, line)| {
        let declared = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        let Some(declared) = declared.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) else {
            return false;
        };
        let attributes: Vec<&str> =
            lines[..index].iter().rev().take_while(|line| line.starts_with("#[")).copied().collect();
        let meant = name == Some(declared) || path.is_some_and(|path| attributes.contains(&path));
        meant && attributes.iter().any(tests_only)
    })
}

/// Read a file, unless it is no text.
fn read(root: &Path, path: &PathBuf) -> std::io::Result<Option<Source>> {
    let Ok(text) = String::from_utf8(fs::read(path)?) else {
        return Ok(None);
    };
    let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    Ok(Some(Source { path, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_for_tests_where_its_module_or_one_above_is_declared_so() {
        let tree = Tree::sample(&[
            ("dma/src/lib.rs", "mod map;\n#[cfg(test)]\nmod fixture;\n"),
            ("dma/src/fixture.rs", "mod inner;\n"),
            ("dma/src/fixture/inner.rs", ""),
            ("dma/src/map.rs", "#[cfg(all(test, loom))]\n#[allow(unsafe_code)]\npub(crate) mod models;\n"),
            ("dma/src/map/models.rs", ""),
            ("dma/src/split.rs", "#[cfg(test)]\n#[path = \"split_tests.rs\"]\nmod tests;\n"),
            ("dma/src/split_tests.rs", ""),
        ]);
        let verdicts: Vec<bool> = tree.files.iter().map(|file| tree.is_for_tests(file)).collect();
        assert_eq!(verdicts, [false, true, true, false, true, false, true]);
    }
}
