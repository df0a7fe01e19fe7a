//! What is compared.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::lab::{Forward, Layout};

/// Which way the packets go, as the front-end sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the front-end to the back-end, which drops them.
    To,
    /// From the back-end, which makes them, to the front-end.
    From,
    /// To the back-end and back.
    Loop,
}

impl Direction {
    /// All of them.
    pub const ALL: [Direction; 3] = [Direction::To, Direction::From, Direction::Loop];

    /// What the front-end does.
    pub fn front_end(self) -> Forward {
        match self {
            Direction::To => Forward::TxOnly,
            Direction::From => Forward::RxOnly,
            Direction::Loop => Forward::FlowGen,
        }
    }

    /// What DPDK's back-end does.
    pub fn back_end(self) -> Forward {
        match self {
            Direction::To => Forward::RxOnly,
            Direction::From => Forward::TxOnly,
            Direction::Loop => Forward::Io,
        }
    }

    /// mdevd's link that does the same with packets of so many bytes.
    pub fn link(self, size: u16) -> String {
        match self {
            Direction::To => "null".into(),
            Direction::From => format!("pktgen,size={size}"),
            Direction::Loop => "loopback".into(),
        }
    }

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Direction::To => "to",
            Direction::From => "from",
            Direction::Loop => "loop",
        }
    }
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Direction::ALL
            .into_iter()
            .find(|direction| direction.name() == text)
            .ok_or_else(|| "give to, from or loop".into())
    }
}

/// All layouts with their names.
const LAYOUTS: [(&str, Layout); 4] = [
    ("split", Layout::Split),
    ("split-in-order", Layout::SplitInOrder),
    ("packed", Layout::Packed),
    ("packed-in-order", Layout::PackedInOrder),
];

/// The layout of this name.
///
/// # Errors
/// The names that there are.
pub fn layout(name: &str) -> Result<Layout, String> {
    let found = LAYOUTS.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, layout)| layout).ok_or_else(|| {
        let names: Vec<&str> = LAYOUTS.into_iter().map(|(known, _)| known).collect();
        format!("give one of {}", names.join(", "))
    })
}

/// One cell of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The rings: `split`, `split-in-order`, `packed`, `packed-in-order`.
    pub layout: String,
    /// Bytes of each packet.
    pub size: u16,
    /// Which way.
    pub direction: Direction,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Whether the front-end negotiates mergeable receive buffers.
    pub mergeable: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.layout, self.direction.name(), self.size)
    }
}

/// All cells of these layouts, sizes and directions, with such rings.
pub fn matrix(
    layouts: &[String],
    sizes: &[u16],
    directions: &[Direction],
    (ring_size, mergeable): (u16, bool),
) -> Vec<Cell> {
    let mut cells = Vec::new();
    for layout in layouts {
        for &size in sizes {
            for &direction in directions {
                cells.push(Cell { layout: layout.clone(), size, direction, ring_size, mergeable });
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_has_every_combination_once() {
        let cells = matrix(&["split".into(), "packed".into()], &[64, 1518], &Direction::ALL, (256, true));
        assert_eq!(cells.len(), 12);
        let mut names: Vec<String> = cells.iter().map(Cell::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12);
    }

    #[test]
    fn names_are_read_back_and_others_refused_with_those_that_there_are() {
        for (name, expected) in LAYOUTS {
            assert_eq!(layout(name), Ok(expected));
        }
        assert!(layout("round").unwrap_err().contains("packed-in-order"));
        assert_eq!("loop".parse(), Ok(Direction::Loop));
        assert!("up".parse::<Direction>().is_err());
    }
}
