//! Names and words that have no place here.

use super::{Finding, Source, Tree};

/// Names of files and folders that say nothing about what is in them.
const EMPTY_NAMES: [&str; 9] =
    ["manager", "helper", "helpers", "util", "utils", "context", "handle", "common", "misc"];

/// Words for two sides of which one commands; the field says front-end and back-end. Spelt in halves so that this file passes.
const OLD_WORDS: [(&str, &str); 2] = [("mas", "ter"), ("sla", "ve")];

/// Folders of the machine a developer works on. In halves as well.
const MACHINE_PATHS: [(&str, &str); 6] =
    [("/wo", "rk/"), ("/ro", "ot/"), ("/opt/", "lab/"), ("/fa", "rm/"), ("/tmp/", "wt/"), ("/ho", "me/")];

/// Hosts of package registries, which each machine has its own of.
const HOSTS: [(&str, &str); 5] = [
    ("deb.", "debian.org"),
    ("snapshot.", "debian.org"),
    ("index.", "crates.io"),
    ("static.", "crates.io"),
    ("pypi", ".org"),
];

/// Marks of work that was not finished, and tests switched off without a reason.
const UNFINISHED: [(&str, &str); 6] =
    [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("todo", "!("), ("unimple", "mented!("), ("#[ig", "nore]")];

/// No file or module has a name that could hold anything.
pub fn files_are_named_for_what_they_hold(tree: &Tree) -> Vec<Finding> {
    let says_nothing = |file: &&Source| {
        let stems = file.path.split('/').map(|part| part.split('.').next().unwrap_or_default());
        stems.into_iter().any(|stem| EMPTY_NAMES.contains(&stem))
    };
    tree.rust().filter(says_nothing).map(|file| file.finding(0, "name this file for what it holds")).collect()
}

/// No old words for front-end and back-end.
pub fn no_old_words(tree: &Tree) -> Vec<Finding> {
    search(tree, |line| {
        let small = line.to_lowercase();
        let whole =
            |word: &&String| small.split(|c: char| !c.is_alphabetic()).any(|other| other == word.as_str());
        let words: Vec<String> = OLD_WORDS.iter().map(|(a, b)| format!("{a}{b}")).collect();
        words.iter().find(whole).map(|word| format!("say front-end, back-end, main or primary, not `{word}`"))
    })
}

/// No path of a developer's machine and no host of a registry.
pub fn no_places_of_one_machine(tree: &Tree) -> Vec<Finding> {
    search(tree, |line| {
        let path = MACHINE_PATHS.iter().map(|(a, b)| format!("{a}{b}")).find(|path| {
            let starts_a_path = |at: usize| {
                let before = line[..at].chars().next_back().unwrap_or(' ');
                !before.is_alphanumeric() && !"_.-/}$~".contains(before)
            };
            line.match_indices(path.as_str()).any(|(at, _)| starts_a_path(at))
        });
        let host = HOSTS.iter().map(|(a, b)| format!("{a}{b}")).find(|host| line.contains(host.as_str()));
        path.or(host).map(|place| format!("`{place}` is a place of one machine"))
    })
}

/// Nothing is marked as unfinished, and no test is switched off.
pub fn nothing_is_unfinished(tree: &Tree) -> Vec<Finding> {
    search(tree, |line| {
        let marks: Vec<String> = UNFINISHED.iter().map(|(a, b)| format!("{a}{b}")).collect();
        let whole = |mark: &&String| {
            line.match_indices(mark.as_str()).any(|(at, _)| !line[..at].ends_with(char::is_alphanumeric))
                && !line.contains(&format!("{mark}X"))
        };
        marks.iter().find(whole).map(|mark| format!("`{mark}`: finish it, or file an issue and say what is"))
    })
}

/// Look at every line of everything that people wrote; licence texts were written elsewhere.
fn search(tree: &Tree, wrong: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|file| !file.path.starts_with("LICENSE")) {
        for (line, number) in file.text.lines().zip(1..) {
            found.extend(wrong(line).map(|what| file.finding(number, what)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Tree {
        Tree::sample(&[("backend/src/a.rs", text)])
    }

    #[test]
    fn names_that_could_hold_anything_are_found_in_files_and_folders() {
        for path in ["backend/src/utils.rs", "backend/src/helpers/mod.rs", "dma/src/context.rs"] {
            assert_eq!(files_are_named_for_what_they_hold(&Tree::sample(&[(path, "")])).len(), 1, "{path}");
        }
        assert_eq!(files_are_named_for_what_they_hold(&Tree::sample(&[("dma/src/utility_bill.rs", "")])), []);
    }

    #[test]
    fn old_words_are_found_in_any_case_and_parts_of_other_words_are_not() {
        assert_eq!(no_old_words(&one(&format!("// the {}{}\n", "Ma", "ster"))).len(), 1);
        assert_eq!(no_old_words(&one(&format!("const {}{}_FD: u32 = 1;\n", "SLA", "VE"))).len(), 1);
        assert_eq!(no_old_words(&one(&format!("a {}{}piece\n", "mas", "ter"))), []);
    }

    #[test]
    fn paths_and_hosts_of_one_machine_are_found_and_relative_paths_are_not() {
        assert_eq!(no_places_of_one_machine(&one(&format!("see {}{}main\n", "/wo", "rk/"))).len(), 1);
        assert_eq!(
            no_places_of_one_machine(&one(&format!("https://{}{}/debian\n", "deb.", "debian.org"))).len(),
            1
        );
        assert_eq!(
            no_places_of_one_machine(&one(&format!("lab{}{}main $ROOT/{}{}\n", "/wo", "rk/", "ro", "ot/"))),
            []
        );
    }

    #[test]
    fn unfinished_work_and_tests_switched_off_are_found() {
        for text in [
            format!("// {}{}: later\n", "TO", "DO"),
            format!("{}{})\n", "todo", "!("),
            format!("{}{}\n", "#[ig", "nore]"),
        ] {
            assert_eq!(nothing_is_unfinished(&one(&text)).len(), 1, "{text}");
        }
        assert_eq!(nothing_is_unfinished(&one("mktemp lab.XXXXXX\n")), []);
    }
}
