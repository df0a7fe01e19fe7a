//! The source tree keeps the rules of the house; the rules themselves and the samples that break them are in `mdev_tests::house`.

use mdev_tests::house::{Finding, Tree, arrows, names, shape, unsafety};

fn keeps(rule: impl Fn(&Tree) -> Vec<Finding>) {
    let tree = Tree::of_workspace().expect("the source tree can be read");
    assert!(tree.rust().count() > 20, "this is not the source tree");
    let found: Vec<String> = rule(&tree).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn unsafe_stands_only_in_its_places() {
    keeps(unsafety::only_in_its_places);
}

#[test]
fn files_with_unsafe_say_why_they_exist() {
    keeps(unsafety::files_say_why);
}

#[test]
fn unsafe_blocks_say_why_they_are_sound() {
    keeps(unsafety::blocks_say_why);
}

#[test]
fn no_manifest_depends_against_the_arrows() {
    keeps(arrows::manifests);
}

#[test]
fn no_source_imports_against_the_arrows() {
    keeps(arrows::imports);
}

#[test]
fn no_file_is_too_long() {
    keeps(shape::files_are_short);
}

#[test]
fn every_library_opens_with_an_essay() {
    keeps(shape::crates_open_with_an_essay);
}

#[test]
fn the_product_does_not_panic() {
    keeps(shape::the_product_does_not_panic);
}

#[test]
fn no_name_could_hold_anything() {
    keeps(names::files_are_named_for_what_they_hold);
}

#[test]
fn front_end_and_back_end_are_called_so() {
    keeps(names::no_old_words);
}

#[test]
fn no_place_of_one_machine_is_written_down() {
    keeps(names::no_places_of_one_machine);
}

#[test]
fn nothing_is_left_unfinished() {
    keeps(names::nothing_is_unfinished);
}
