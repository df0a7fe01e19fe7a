//! Which room may import which.

use super::code::{code_only, words};
use super::{Finding, Tree};

/// A room: its folder, its package, and the packages it may import.
struct Room {
    folder: &'static str,
    package: &'static str,
    imports: &'static [&'static str],
}

const ROOMS: [Room; 6] = [
    Room { folder: "dma", package: "mdev-dma", imports: &[] },
    Room { folder: "mdev-pin", package: "mdev-pin", imports: &["mdev-dma"] },
    Room { folder: "protocol", package: "mdev-protocol", imports: &[] },
    Room { folder: "backend", package: "mdevd", imports: &["mdev-dma", "mdev-pin", "mdev-protocol"] },
    Room {
        folder: "tests",
        package: "mdev-tests",
        imports: &["mdev-dma", "mdev-pin", "mdev-protocol", "mdevd"],
    },
    Room {
        folder: "examples",
        package: "mdev-examples",
        imports: &["mdev-dma", "mdev-pin", "mdev-protocol", "mdevd"],
    },
];

/// The packages a room may not import.
fn forbidden(room: &Room) -> impl Iterator<Item = &'static str> {
    let (own, imports) = (room.package, room.imports);
    ROOMS
        .iter()
        .map(|other| other.package)
        .filter(move |package| *package != own && !imports.contains(package))
}

/// No manifest depends on a room against the arrows.
pub fn manifests(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for room in &ROOMS {
        let path = format!("{}/Cargo.toml", room.folder);
        for file in tree.files.iter().filter(|file| file.path == path) {
            for (line, number) in file.text.lines().zip(1..) {
                let name = line.split(['=', '.', ' ']).next().unwrap_or_default().trim_matches('"');
                if forbidden(room).any(|package| package == name) {
                    found.push(file.finding(number, format!("{} may not import {name}", room.folder)));
                }
            }
        }
    }
    found
}

/// No source names a crate of a room against the arrows.
pub fn imports(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.rust() {
        let Some(room) = ROOMS.iter().find(|room| room.folder == file.room()) else { continue };
        let crates: Vec<String> = forbidden(room).map(|package| package.replace('-', "_")).collect();
        for (line, word) in words(&code_only(&file.text)) {
            if crates.iter().any(|name| name == word) {
                found.push(file.finding(line, format!("{} may not import {word}", room.folder)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dma_may_depend_on_no_room_and_backend_on_three() {
        let sample = [
            (
                "dma/Cargo.toml",
                "[package]\nname = \"mdev-dma\"\n[dev-dependencies]\nmdev-pin.workspace = true\n",
            ),
            ("protocol/Cargo.toml", "mdev-dma = { path = \"../dma\" }\n"),
            ("backend/Cargo.toml", "mdev-dma.workspace = true\nmdev-tests.workspace = true\n"),
        ];
        let found = manifests(&Tree::sample(&sample));
        assert_eq!(
            found.iter().map(|f| (f.path.as_str(), f.line)).collect::<Vec<_>>(),
            [("dma/Cargo.toml", 4), ("protocol/Cargo.toml", 1), ("backend/Cargo.toml", 2)]
        );
    }

    #[test]
    fn a_use_against_the_arrows_is_found_and_along_them_it_is_not() {
        let sample = [
            ("mdev-pin/src/lib.rs", "//! mdevd is above.\nuse mdev_dma::Area;\nuse mdevd::Device;\n"),
            ("backend/src/lib.rs", "use mdev_pin::Lane;\n"),
            ("protocol/src/net.rs", "fn f() -> mdev_dma::Iova {}\n"),
        ];
        let found = imports(&Tree::sample(&sample));
        assert_eq!(
            found.iter().map(|f| (f.path.as_str(), f.line)).collect::<Vec<_>>(),
            [("mdev-pin/src/lib.rs", 3), ("protocol/src/net.rs", 1)]
        );
    }
}
