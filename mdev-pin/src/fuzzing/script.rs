//! What the bytes of a script mean.

use mdev_dma::Perm;

use super::naive::{FILE, NaiveArea, PAGE};

/// Where areas are put: allocations may go beyond.
const NEAR: u64 = 24 * PAGE;
/// The longest area.
const LONG: u64 = 4 * PAGE;

/// The rest of a script. Behind its end there are zeros.
pub struct Script<'s>(&'s [u8]);

impl<'s> Script<'s> {
    pub fn new(bytes: &'s [u8]) -> Self {
        Script(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u8) -> usize {
        usize::from(self.byte().checked_rem(end).unwrap_or(0))
    }

    /// A number below `limit`, most often a multiple of a page.
    fn number(&mut self, limit: u64) -> u64 {
        let number = u64::from(u16::from_le_bytes([self.byte(), self.byte()]));
        if number & 7 == 0 { (number >> 3) % limit } else { (number >> 3) * PAGE % limit }
    }

    /// An IOVA where areas are put.
    pub fn place(&mut self) -> u64 {
        self.number(NEAR)
    }

    /// An area, or the range of an access to memory and its direction. Most of them lie within their file.
    pub fn area(&mut self) -> NaiveArea {
        let (first, len) = (self.place(), self.number(LONG) + 1);
        // The last byte was chosen.
        let len = if len % PAGE == 1 { len + PAGE - 1 } else { len };
        let kind = self.byte();
        let offset = self.number(FILE);
        let offset = if kind & 0xe0 == 0 { offset } else { offset.min(FILE - len) };
        let perm = match kind >> 1 & 3 {
            0 => Perm::READ,
            1 => Perm::WRITE,
            _ => Perm::READ | Perm::WRITE,
        };
        NaiveArea { first, len, file: usize::from(kind & 1), offset, perm }
    }

    /// A part of an area, translated like it.
    pub fn part(&mut self, area: NaiveArea) -> NaiveArea {
        let skipped = self.number(LONG).min(area.len - 1);
        let len = (self.number(LONG) + 1).min(area.len - skipped);
        NaiveArea { first: area.first + skipped, offset: area.offset + skipped, len, ..area }
    }
}
