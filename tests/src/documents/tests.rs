use super::*;

fn whats(found: &[Finding]) -> Vec<&str> {
    found.iter().map(|finding| finding.what.as_str()).collect()
}

fn page(text: &str) -> Document {
    let tree = Tree::sample(&[("a.md", text)]);
    Document::find(&tree, "a.md").unwrap()
}

#[test]
fn links_to_nothing_are_found_and_links_to_files_folders_and_headings_are_not() {
    let good = "# Title here\n[b](notes/b.md), [folder](notes), [in b](notes/b.md#one-two), [here](#title-here), [web](https://example.org/x)\n";
    let tree = |text: &str| Tree::sample(&[("a.md", text), ("notes/b.md", "## One, two\n[up](../a.md)\n")]);
    assert_eq!(broken_links(&tree(good)), []);
    let bad = "[a](c.md) and [b](notes/b.md#three)\n```text\n[not](a-link.md)\n```\n`[nor](this.md)` [c](#nowhere)\n";
    let found = broken_links(&tree(bad));
    let expected = ["there is no c.md", "notes/b.md has no heading #three", "a.md has no heading #nowhere"];
    assert_eq!(whats(&found), expected);
    assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1, 1, 5]);
}

#[test]
fn links_out_of_the_book_are_found() {
    let tree = Tree::sample(&[
        ("README.md", ""),
        ("docs/a.md", "[out](../README.md) [in](b.md)"),
        ("docs/b.md", ""),
    ]);
    assert_eq!(broken_links(&tree).len(), 1);
}

#[test]
fn a_page_that_the_summary_does_not_name_is_found() {
    let sample = [("docs/SUMMARY.md", "- [A](a.md)\n"), ("docs/a.md", ""), ("docs/b.md", "")];
    let found = pages_left_out(&Tree::sample(&sample));
    assert_eq!(found.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), ["docs/b.md"]);
    assert_eq!(pages_left_out(&Tree::sample(&[])).len(), 1);
}

#[test]
fn dependencies_without_a_line_and_lines_without_a_dependency_are_found() {
    let manifest = "[workspace.dependencies]\nmdev-dma = { path = \"dma\" }\n\nlog = \"0.4\"\nserde = { version = \"1\" }\n\n[profile.dev]\nx = 1\n";
    let page = "# D\n\n## P\n\n| crate | why |\n|---|---|\n| `log` | logs |\n\n## T\n\n| crate | why |\n|---|---|\n| `rand` | chance |\n";
    let tree = Tree::sample(&[("Cargo.toml", manifest), ("docs/dependencies.md", page)]);
    assert_eq!(
        whats(&dependencies(&tree)),
        ["serde has no line in docs/dependencies.md", "nothing depends on rand"]
    );
}

#[test]
fn examples_that_nobody_names_or_runs_are_found() {
    let tree = Tree::sample(&[
        ("examples/examples/a.rs", ""),
        ("examples/examples/b.rs", ""),
        ("examples/src/lib.rs", "//! `cargo run --example a`\n"),
        ("examples/tests/run.rs", "run(\"a\");"),
    ]);
    let found = examples(&tree);
    assert!(found.len() == 2 && found.iter().all(|finding| finding.path.ends_with("b.rs")), "{found:?}");
}

#[test]
fn benches_that_the_book_does_not_name_are_found() {
    let manifest = |name: &str| format!("[package]\nname = \"{name}\"\n\n[[bench]]\nname = \"x\"\n");
    let (a, b) = (manifest("a"), manifest("a-b"));
    let tree = Tree::sample(&[
        ("a/Cargo.toml", &a),
        ("b/Cargo.toml", &b),
        ("c/Cargo.toml", "[package]\nname = \"c\"\n"),
        ("docs/performance.md", "cargo bench -p a-b # it\n"),
    ]);
    let found = benches(&tree);
    assert_eq!(found.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), ["a/Cargo.toml"]);
}

#[test]
fn options_that_differ_from_the_help_are_found() {
    use clap::{Arg, Command};
    let command = Command::new("x")
        .arg(Arg::new("path").long("path").value_name("PATH"))
        .arg(Arg::new("size").long("size").value_name("N").default_value("64"))
        .arg(Arg::new("all").long("all").action(clap::ArgAction::SetTrue))
        .arg(Arg::new("secret").long("secret").hide(true));
    let table = |rows: &str| page(&format!("## x\n\n| option | default |\n|---|---|\n{rows}\n## y\n"));
    let right = table("| `--path PATH` | |\n| `--size N` | `64` |\n| `--all` | |\n");
    assert_eq!(options(&right, "x", &command), []);
    let wrong = table("| `--path FILE` | |\n| `--size N` | 32 |\n");
    let expected = [
        "x: there is no --path FILE",
        "x: the default of --size N is 64, not 32",
        "x: --path PATH has no line",
        "x: --all has no line",
    ];
    assert_eq!(whats(&options(&wrong, "x", &command)), expected);
}

#[test]
fn tables_belong_to_the_heading_they_stand_under() {
    let text = "## a\n| t |\n|---|\n| 1 |\n\n| u |\n|---|\n| 2 |\n### b\n| v |\n|---|\n| `3` |\n## c\n| w |\n|---|\n| 4 |\n";
    let page = page(text);
    let first = |heading: &str| -> Vec<String> {
        page.tables(heading).iter().flatten().map(|row| row[0].clone()).collect()
    };
    assert_eq!(first("a"), ["1", "2", "3"]);
    assert_eq!(first("b"), ["3"]);
    assert_eq!(first("c"), ["4"]);
    assert_eq!(page.table("a").len(), 1);
    assert!(first("d").is_empty());
}

#[test]
fn code_is_found_by_its_language() {
    let page = page("```sh\nls\n```\n```json\n{}\n```\n");
    assert_eq!(page.code("json").as_deref(), Some("{}\n"));
    assert_eq!(page.code("toml"), None);
}
