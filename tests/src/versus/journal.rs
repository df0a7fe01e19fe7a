//! The file in which every pair is kept, so that nothing measured is lost and nothing is measured twice.
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mdevd::perf::pairs::Pairing;
use serde::{Deserialize, Serialize};

use super::Cell;

/// One pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What was measured.
    pub cell: Cell,
    /// The commit of mdevd.
    pub commit: String,
    /// Millions of packets a second of mdevd, the median of its seconds.
    pub mdevd: f64,
    /// Of DPDK.
    pub dpdk: f64,
    /// Round trips of a cache line before, between and after, in nanoseconds.
    pub lines: Vec<f64>,
    /// Nanoseconds of mdevd's processor in polls that found packets, for each packet.
    #[serde(default)]
    pub busy: Option<f64>,
    /// Millions of packets a second with a back-end that only returns descriptors, where that was measured too.
    #[serde(default)]
    pub ceiling: Option<f64>,
}

impl Entry {
    /// How far its processors were from each other.
    pub fn state(&self) -> State {
        if self.lines.iter().any(|&line| line >= State::FAR) { State::Far } else { State::Near }
    }

    /// The pair as it is compared.
    pub fn pairing(&self) -> Pairing {
        Pairing { first: self.mdevd, second: self.dpdk, lines: self.lines.clone() }
    }
}

/// How far the processors of a pair were from each other.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No round trip of a cache line took 200 ns.
    Near,
    /// One did.
    Far,
}

impl State {
    /// Round trips from here on are far ones, in nanoseconds. Machines have one or the other by a factor of two at least.
    const FAR: f64 = 200.0;
    /// Both.
    pub const ALL: [State; 2] = [State::Near, State::Far];

    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            State::Near => "near",
            State::Far => "far",
        }
    }
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It is no journal.
    #[error("{path} is no journal of pairs ({source}); give another file, or remove it")]
    Format {
        /// Which.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// How many pairs are tried for each that is wanted.
pub const TRIES: usize = 4;

/// All pairs, and the file that holds them.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Journal {
    /// The journal at this path; an empty one if there is none yet.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let path = path.to_owned();
        let entries = match fs::read_to_string(&path) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(entries) => entries,
                Err(source) => return Err(JournalError::Format { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(JournalError::File { path, source }),
        };
        Ok(Journal { path, entries })
    }

    /// Keeps a pair. The file is whole at any moment: it is replaced, not changed.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn keep(&mut self, entry: Entry) -> Result<(), JournalError> {
        self.entries.push(entry);
        let beside = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            serde_json::to_writer_pretty(&mut file, &self.entries)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        };
        write().map_err(|source| JournalError::File { path: self.path.clone(), source })
    }

    /// What is kept of a cell at a commit.
    pub fn entries<'j>(&'j self, cell: &Cell, commit: &str) -> impl Iterator<Item = &'j Entry> {
        self.entries.iter().filter(move |entry| entry.cell == *cell && entry.commit == commit)
    }

    /// Whether a cell still needs a ceiling, where so many are wanted beside pairs that count.
    pub fn needs_ceiling(&self, cell: &Cell, commit: &str, wanted: usize, state: Option<State>) -> bool {
        self.counted(cell, commit, state).filter(|entry| entry.ceiling.is_some()).count() < wanted
    }

    /// Whether a cell still needs a pair, where so many steady ones are wanted, perhaps in one state, and at most
    /// [`TRIES`] times as many are tried.
    pub fn needs(&self, cell: &Cell, commit: &str, wanted: usize, state: Option<State>) -> bool {
        self.counted(cell, commit, state).count() < wanted
            && self.entries(cell, commit).count() < TRIES * wanted
    }

    /// The steady pairs of a cell, perhaps of one state.
    pub fn counted<'j>(
        &'j self,
        cell: &Cell,
        commit: &str,
        state: Option<State>,
    ) -> impl Iterator<Item = &'j Entry> {
        self.entries(cell, commit)
            .filter(move |entry| entry.pairing().steady() && state.is_none_or(|state| entry.state() == state))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Direction;
    use super::*;

    fn cell(size: u16) -> Cell {
        Cell { layout: "split".into(), size, direction: Direction::To, ring_size: 256, mergeable: true }
    }

    fn entry(size: u16, commit: &str, line: f64) -> Entry {
        let lines = vec![60.0, line, 60.0];
        Entry {
            cell: cell(size),
            commit: commit.into(),
            mdevd: 2.0,
            dpdk: 1.0,
            lines,
            busy: None,
            ceiling: None,
        }
    }

    #[test]
    fn interrupted_run_finds_its_pairs_again_and_needs_only_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        let mut journal = Journal::open(&path).unwrap();
        assert!(journal.needs(&cell(64), "a", 2, None));
        journal.keep(entry(64, "a", 60.0)).unwrap();
        drop(journal);
        let mut journal = Journal::open(&path).unwrap();
        assert!(journal.needs(&cell(64), "a", 2, None) && !journal.needs(&cell(64), "a", 1, None));
        journal.keep(entry(64, "a", 61.0)).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert!(!journal.needs(&cell(64), "a", 2, None));
        assert!(journal.needs(&cell(512), "a", 2, None), "another cell");
        assert!(journal.needs(&cell(64), "b", 2, None), "another commit");
    }

    #[test]
    fn unsteady_pairs_do_not_count_but_do_not_go_on_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("pairs.json")).unwrap();
        for tried in 0..2 * TRIES {
            assert!(journal.needs(&cell(64), "a", 2, None), "after {tried}");
            journal.keep(entry(64, "a", 600.0)).unwrap();
        }
        assert!(!journal.needs(&cell(64), "a", 2, None));
    }

    #[test]
    fn pairs_of_another_state_than_the_wanted_one_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("pairs.json")).unwrap();
        let far = Entry { lines: vec![400.0; 3], ..entry(64, "a", 60.0) };
        assert_eq!((far.state(), entry(64, "a", 60.0).state()), (State::Far, State::Near));
        journal.keep(far).unwrap();
        assert!(
            !journal.needs(&cell(64), "a", 1, None) && !journal.needs(&cell(64), "a", 1, Some(State::Far))
        );
        assert!(journal.needs(&cell(64), "a", 1, Some(State::Near)));
    }

    #[test]
    fn ceilings_are_counted_for_themselves_and_files_without_them_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        let mut journal = Journal::open(&path).unwrap();
        journal.keep(entry(64, "a", 60.0)).unwrap();
        assert!(
            journal.needs_ceiling(&cell(64), "a", 1, None) && !journal.needs_ceiling(&cell(64), "a", 0, None)
        );
        journal.keep(Entry { ceiling: Some(3.0), ..entry(64, "a", 60.0) }).unwrap();
        assert!(
            !journal.needs_ceiling(&cell(64), "a", 1, None) && journal.needs_ceiling(&cell(64), "b", 1, None)
        );
        let before = r#"[{"cell": {"layout": "split", "size": 64, "direction": "to", "ring_size": 256, "mergeable": true},
            "commit": "a", "mdevd": 2.0, "dpdk": 1.0, "lines": [60.0]}]"#;
        fs::write(&path, before).unwrap();
        assert_eq!(Journal::open(&path).unwrap().entries(&cell(64), "a").count(), 1);
    }

    #[test]
    fn file_that_is_no_journal_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        fs::write(&path, "{}").unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Format { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    }
}
