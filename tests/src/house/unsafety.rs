//! Where `unsafe` may live, and what has to be written beside it.

use super::code::{code_only, words};
use super::{Finding, Source, Tree};

/// The only places of the product that may hold `unsafe`; in `tests/` a driver may need it anywhere.
const ALLOWED: [&str; 5] =
    ["dma/src/raw", "mdev-pin/src/sys", "protocol/src/sys", "backend/src/sys", "tests"];

/// How many lines above an `unsafe` its `// SAFETY:` comment may end: a statement may be broken into several lines.
const REACH: usize = 4;

fn may_hold(path: &str) -> bool {
    ALLOWED.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.starts_with(['/', '.'])))
}

/// The lines on which the keyword stands.
fn lines_with_unsafe(code: &str) -> Vec<usize> {
    words(code).filter(|(_, word)| *word == "unsafe").map(|(line, _)| line).collect()
}

/// `unsafe` stands only where it is allowed.
pub fn only_in_its_places(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.rust().filter(|file| !may_hold(&file.path)) {
        for line in lines_with_unsafe(&code_only(&file.text)) {
            found.push(file.finding(line, format!("unsafe may stand only in {}", ALLOWED.join(", "))));
        }
    }
    found
}

/// A file with `unsafe` says in its opening why it exists.
pub fn files_say_why(tree: &Tree) -> Vec<Finding> {
    let lacks = |file: &&Source| {
        let opening = file.text.lines().take_while(|line| line.starts_with("//"));
        !lines_with_unsafe(&code_only(&file.text)).is_empty()
            && !opening.into_iter().any(|line| line.starts_with("//! UNSAFETY: "))
    };
    tree.rust()
        .filter(lacks)
        .map(|file| file.finding(1, "open with `//! UNSAFETY: why this file exists`"))
        .collect()
}

/// Every `unsafe` block and implementation has a `// SAFETY:` comment right above it, and every `unsafe fn` a `# Safety` section.
pub fn blocks_say_why(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.rust() {
        let code = code_only(&file.text);
        let (code, lines): (Vec<&str>, Vec<&str>) = (code.lines().collect(), file.text.lines().collect());
        for (index, line) in code.iter().enumerate() {
            let Some((_, after)) = split_at_word(line, "unsafe") else { continue };
            let next = after.trim_start();
            let next =
                if next.is_empty() { code.get(index + 1).map_or("", |line| line.trim_start()) } else { next };
            let wanted = if next.starts_with("fn") || next.starts_with("trait") || next.starts_with("extern")
            {
                // a function of an `unsafe impl` or a foreign block inherits its contract
                if in_trait_or_type(&code, index) || next.starts_with("extern") {
                    continue;
                } else {
                    "# Safety"
                }
            } else if next.starts_with('{') || next.starts_with("impl") {
                "SAFETY:"
            } else {
                continue; // `unsafe(no_mangle)`, a type `unsafe fn()`
            };
            if !says(&lines, index, wanted) {
                found.push(file.finding(index + 1, format!("write `{wanted}` and the reason above this")));
            }
        }
    }
    found
}

/// Split a line of code around a word.
fn split_at_word<'a>(line: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let mut from = 0;
    while let Some(at) = line[from..].find(word) {
        let (start, end) = (from + at, from + at + word.len());
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        if !line[..start].ends_with(in_word) && !line[end..].starts_with(in_word) {
            return Some((&line[..start], &line[end..]));
        }
        from = end;
    }
    None
}

/// Whether a line is inside an `unsafe impl` of a trait: the nearest line above with less indent opens one.
fn in_trait_or_type(code: &[&str], index: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = indent(code[index]);
    let above = code[..index].iter().rev().find(|line| !line.trim().is_empty() && indent(line) < own);
    above.is_some_and(|line| line.contains("impl") && line.contains(" for "))
}

/// Whether the comments above a line, reached over at most [`REACH`] lines of code, hold `what`; or the line itself does.
fn says(lines: &[&str], index: usize, what: &str) -> bool {
    let mut code_lines = 0;
    for line in lines[..=index].iter().rev() {
        let text = line.trim_start();
        if text.contains(what) {
            return true;
        }
        if !text.starts_with("//") && !text.starts_with("#[") {
            code_lines += 1;
        }
        if code_lines > REACH + 1 {
            break;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "fn f() {\n    unsafe { g() }\n}\n";

    #[test]
    fn unsafe_in_the_ring_is_found_and_in_raw_it_is_not() {
        assert_eq!(only_in_its_places(&Tree::sample(&[("backend/src/ring/split.rs", BLOCK)])).len(), 1);
        assert_eq!(only_in_its_places(&Tree::sample(&[("dma/src/rawhide.rs", BLOCK)])).len(), 1);
        assert_eq!(only_in_its_places(&Tree::sample(&[("examples/src/lib.rs", BLOCK)])).len(), 1);
        let allowed =
            [("dma/src/raw/slice.rs", BLOCK), ("protocol/src/sys.rs", BLOCK), ("tests/src/a.rs", BLOCK)];
        assert_eq!(only_in_its_places(&Tree::sample(&allowed)), []);
    }

    #[test]
    fn the_word_in_a_comment_a_string_or_an_attribute_is_no_unsafe() {
        let text = "#![deny(unsafe_code)]\n// unsafe {\nconst A: &str = \"unsafe {\";\n";
        assert_eq!(only_in_its_places(&Tree::sample(&[("backend/src/lib.rs", text)])), []);
    }

    #[test]
    fn a_file_with_unsafe_and_without_its_opening_is_found() {
        assert_eq!(files_say_why(&Tree::sample(&[("dma/src/raw/a.rs", BLOCK)])).len(), 1);
        let good = format!("//! Maps.\n//! UNSAFETY: mmap.\n{BLOCK}");
        assert_eq!(files_say_why(&Tree::sample(&[("dma/src/raw/a.rs", &good)])), []);
    }

    #[test]
    fn a_block_an_impl_and_a_function_without_their_reasons_are_found() {
        let bad = [
            BLOCK,
            "unsafe impl Send for A {}\n",
            "pub unsafe fn f() {}\n",
            "let a = 1;\n\n\n\n\n\n\nunsafe { g() };\n",
        ];
        for text in bad {
            assert_eq!(blocks_say_why(&Tree::sample(&[("dma/src/raw/a.rs", text)])).len(), 1, "{text}");
        }
    }

    #[test]
    fn reasons_right_above_are_enough() {
        let good = [
            "// SAFETY: g is fine.\nunsafe { g() }\n",
            "// SAFETY: long\n// and longer.\nlet a =\n    f(1, unsafe { g() });\n",
            "/// Does.\n///\n/// # Safety\n/// Never call it.\n#[inline]\npub unsafe fn f() {}\n",
            "// SAFETY: as the trait says.\nunsafe impl A for B {\n    unsafe fn f() {}\n}\n",
        ];
        for text in good {
            assert_eq!(blocks_say_why(&Tree::sample(&[("dma/src/raw/a.rs", text)])), [], "{text}");
        }
    }
}
