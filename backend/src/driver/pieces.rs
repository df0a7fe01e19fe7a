//! The pieces of a chain as descriptors of a split ring, or of an indirect table.
use super::split::INDIRECT_PIECES;
use super::virtqueue::Piece;
use mdev_dma::GuestSlice;
use mdev_protocol::virtio::split::{Desc, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

/// The places of an indirect table, in order.
pub(super) const PLACES: [u16; INDIRECT_PIECES] = {
    let mut places = [0; INDIRECT_PIECES];
    let mut place = 0;
    while place < INDIRECT_PIECES {
        places[place] = place as u16;
        place += 1;
    }
    places
};

/// Writes pieces into the given places of a descriptor table, each linked to the next.
pub(super) fn write_chain(table: &GuestSlice<'_>, places: &[u16], pieces: &[Piece]) {
    for (position, (&place, piece)) in places.iter().zip(pieces).enumerate() {
        let next = places.get(position + 1).filter(|_| position + 1 < pieces.len());
        let flags = if piece.device_writes { VIRTQ_DESC_F_WRITE } else { 0 }
            | if next.is_some() { VIRTQ_DESC_F_NEXT } else { 0 };
        let desc = Desc { addr: piece.at.0, len: piece.len, flags, next: next.copied().unwrap_or(0) };
        let _ = table.write(usize::from(place) * size_of::<Desc>(), desc);
    }
}
