//! How long a file may be, how a crate opens, and what the product may not do.

use super::code::code_only;
use super::{Finding, Source, Tree};

/// A file answers one question; past this it answers two.
const LONGEST: usize = 450;

/// A crate's opening says what it is, its objects, locks, what may block and what it leaves out: not in fewer lines.
const ESSAY: usize = 8;

/// The rooms of the product, whose code hostile peers reach.
const PRODUCT: [&str; 4] = ["dma", "mdev-pin", "protocol", "backend"];

/// Calls that end a thread because of a value.
const PANICS: [&str; 5] = [".unwrap()", ".expect(", "panic!(", "unreachable!(", ".unwrap_err()"];

/// No source is too long. Files compiled for tests only may be.
pub fn files_are_short(tree: &Tree) -> Vec<Finding> {
    let too_long = |file: &&Source| !tree.is_for_tests(file) && file.text.lines().count() > LONGEST;
    let say = |file: &Source| {
        let lines = file.text.lines().count();
        file.finding(LONGEST + 1, format!("{lines} lines: this file answers more than one question"))
    };
    tree.rust().filter(too_long).map(say).collect()
}

/// Every library crate of the product opens with an essay.
pub fn crates_open_with_an_essay(tree: &Tree) -> Vec<Finding> {
    let roots = PRODUCT.map(|room| format!("{room}/src/lib.rs"));
    let mut found = Vec::new();
    for file in tree.rust().filter(|file| roots.contains(&file.path)) {
        let lines = file.text.lines().take_while(|line| line.starts_with("//!")).count();
        if lines < ESSAY {
            let what = format!(
                "{lines} lines of opening: say what the crate is, its objects, its locks, what may block, what it leaves out"
            );
            found.push(file.finding(1, what));
        }
    }
    found
}

/// The product's code ends no thread because of a value: no unwrap, expect or panic outside tests.
pub fn the_product_does_not_panic(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    let of_product =
        |file: &&Source| PRODUCT.iter().any(|room| file.path.starts_with(&format!("{room}/src/")));
    for file in tree.rust().filter(of_product).filter(|file| !tree.is_for_tests(file)) {
        let code = code_only(&file.text);
        let inline_tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
        for (line, number) in code[..inline_tests].lines().zip(1..) {
            let panics = |call: &&&str| {
                line.match_indices(**call).any(|(at, _)| !line[..at].ends_with('_')) // `debug_panic!(` is another macro
            };
            if let Some(call) = PANICS.iter().find(panics) {
                found.push(file.finding(number, format!("`{call}`: return an error instead")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_451_lines_is_found_unless_it_is_a_sibling_test() {
        let long = "//\n".repeat(451);
        let parent = format!("{long}#[cfg(test)]\nmod tests;\n");
        let sample = [("dma/src/a.rs", parent.as_str()), ("dma/src/a/tests.rs", &long)];
        let found = files_are_short(&Tree::sample(&sample));
        assert_eq!(found.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["dma/src/a.rs"]);
        assert_eq!(files_are_short(&Tree::sample(&[("dma/src/a.rs", &"//\n".repeat(450))])), []);
    }

    #[test]
    fn a_crate_with_one_line_of_opening_is_found() {
        assert_eq!(
            crates_open_with_an_essay(&Tree::sample(&[("dma/src/lib.rs", "//! Addresses.\n")])).len(),
            1
        );
        let essay = "//! More.\n".repeat(8);
        assert_eq!(crates_open_with_an_essay(&Tree::sample(&[("dma/src/lib.rs", &essay)])), []);
    }

    #[test]
    fn a_panic_in_the_product_is_found_and_in_its_tests_it_is_not() {
        let bad = "fn f() {\n    g().unwrap();\n    h().expect(\"h\");\n    // a panic!( in words\n}\n";
        let found = the_product_does_not_panic(&Tree::sample(&[("protocol/src/a.rs", bad)]));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 3]);
        let tests = format!("fn f() {{}}\n\n#[cfg(test)]\nmod tests {{\n{bad}}}\n");
        assert_eq!(the_product_does_not_panic(&Tree::sample(&[("protocol/src/a.rs", &tests)])), []);
        let sibling = [("protocol/src/a.rs", "#[cfg(test)]\nmod tests;\n"), ("protocol/src/a/tests.rs", bad)];
        assert_eq!(the_product_does_not_panic(&Tree::sample(&sibling)), []);
        assert_eq!(the_product_does_not_panic(&Tree::sample(&[("backend/tests/a.rs", bad)])), []);
    }
}
