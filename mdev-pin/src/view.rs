//! What lanes see of the areas of a space: pieces of host memory, and what is elsewhere.

use mdev_dma::{Extent, IovaMap, IovaRange, Perm, Ranged};

use crate::{error::IoasError, ioas::exists, slot::Slot, sys::piece::Piece, table::Mapped};

/// Both kinds; no two of them overlap. Cloning shares the maps.
#[derive(Clone, Default)]
pub struct View {
    pub pieces: IovaMap<Piece>,
    /// Nearly always empty. Looked at only where no piece is found.
    pub elsewhere: IovaMap<Elsewhere>,
}

/// An area that is not host memory.
#[derive(Clone)]
pub struct Elsewhere {
    range: IovaRange,
    pub extent: Extent,
    pub perm: Perm,
    /// Where pins on it are counted.
    pub slot: Slot,
    pub gated: bool,
}

impl Ranged for Elsewhere {
    fn range(&self) -> IovaRange {
        self.range
    }
}

impl Elsewhere {
    fn of(mapped: &Mapped) -> Option<Elsewhere> {
        let area = &mapped.0.area;
        let away = area.extent.file().is_none();
        away.then(|| Elsewhere {
            range: area.range,
            extent: area.extent.clone(),
            perm: area.perm,
            slot: mapped.0.slot.clone(),
            gated: mapped.0.gated,
        })
    }
}

impl View {
    /// Of all areas.
    pub fn of(areas: &[Mapped]) -> Result<View, IoasError> {
        let pieces: Vec<Piece> =
            areas.iter().flat_map(|mapped| mapped.pieces().collect::<Vec<_>>()).collect();
        let elsewhere = areas.iter().filter_map(Elsewhere::of).collect();
        Ok(View {
            pieces: IovaMap::from_items(pieces).map_err(exists)?,
            elsewhere: IovaMap::from_items(elsewhere).map_err(exists)?,
        })
    }

    pub fn insert(&mut self, mapped: &Mapped) -> Result<(), IoasError> {
        for piece in mapped.pieces() {
            self.pieces = self.pieces.insert(piece).map_err(exists)?;
        }
        if let Some(elsewhere) = Elsewhere::of(mapped) {
            self.elsewhere = self.elsewhere.insert(elsewhere).map_err(exists)?;
        }
        Ok(())
    }

    /// Shows an area with other flags.
    pub fn replace(&mut self, mapped: &Mapped) {
        for piece in mapped.pieces() {
            if let Some(pieces) = self.pieces.replace(piece) {
                self.pieces = pieces;
            }
        }
        if let Some(elsewhere) = Elsewhere::of(mapped).and_then(|item| self.elsewhere.replace(item)) {
            self.elsewhere = elsewhere;
        }
    }

    pub fn remove(&mut self, mapped: &Mapped) {
        for segment in &mapped.0.segments {
            if let Some((pieces, _)) = self.pieces.remove(segment.range.first()) {
                self.pieces = pieces;
            }
        }
        if mapped.0.area.extent.file().is_none()
            && let Some((elsewhere, _)) = self.elsewhere.remove(mapped.range().first())
        {
            self.elsewhere = elsewhere;
        }
    }
}
