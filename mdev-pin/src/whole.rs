//! Stretches of memory that a device wants in one piece, such as the parts of its rings.
//!
//! Areas are cut where windows end, and behind an IOMMU at every page. Whoever reads a ring wants each part of it as one
//! slice; so the space is told of these stretches ([`Ioas::keep_whole`]), and every table that it publishes has a stitch
//! ([`mdev_dma::Stitch`]) for each of them that is mapped, open, and not in one piece anyway. Lanes only look it up. A table that
//! gates or lacks a byte of a stretch has no stitch for it: the stitch goes with the last table that had it, as windows do.

use mdev_dma::{CHUNK, FileExtent, Iova, IovaMap, IovaRange, Perm, Ranged, Segment, Stitch, Windows};

use crate::{ioas::Ioas, ioas::State, sys::piece::Piece};

/// Mapped parts of all stitches of a space. Sixteen pairs of rings of 1,024 entries need some 350.
pub const MAX_STITCHED: usize = 1024;
/// Pieces that are looked at for one stretch.
const MAX_PIECES: usize = 1024;

/// Bytes that are wanted in one piece.
#[derive(Clone, Debug)]
pub enum Stretch {
    /// By their addresses.
    At(IovaRange),
    /// By their place in a file: so many bytes from there.
    In(FileExtent, u64),
}

impl Stretch {
    /// Whether both are the same bytes.
    fn is(&self, other: &Stretch) -> bool {
        match (self, other) {
            (Stretch::At(one), Stretch::At(other)) => one == other,
            (Stretch::In(one, len), Stretch::In(other, of)) => len == of && one.same_place(other),
            _ => false,
        }
    }

    /// Whether it may be in several pieces. Bytes of a file are, if a window ends in between.
    fn may_be_cut(&self) -> bool {
        match self {
            Stretch::At(_) => true,
            Stretch::In(extent, len) => {
                let last = extent.offset.saturating_add(len.saturating_sub(1));
                extent.offset / CHUNK != last / CHUNK
            }
        }
    }

    /// The pieces it lies in, if they are all there and open, and what all of them permit.
    fn segments(&self, pieces: &IovaMap<Piece>) -> Option<(Vec<Segment>, Perm)> {
        match self {
            Stretch::At(range) => segments(*range, pieces),
            Stretch::In(extent, len) => pieces
                .iter()
                .filter(|piece| !piece.gated() && piece.maps(extent.file.id(), extent.offset))
                .find_map(|piece| {
                    let into = extent.offset.checked_sub(piece.file_bytes().0)?;
                    let first = Iova(piece.first().checked_add(into)?);
                    let found = segments(IovaRange::with_len(first, *len).ok()?, pieces)?;
                    let mut next = extent.offset;
                    let follow = found.0.iter().all(|segment| {
                        let at = segment.window.file_offset().saturating_add(segment.offset);
                        let follows = segment.window.file().id() == extent.file.id() && at == next;
                        next = next.saturating_add(u64::try_from(segment.range.size()).unwrap_or(u64::MAX));
                        follows
                    });
                    follow.then_some(found)
                }),
        }
    }
}

fn segments(range: IovaRange, pieces: &IovaMap<Piece>) -> Option<(Vec<Segment>, Perm)> {
    let (mut found, mut perm) = (Vec::new(), Perm::READ | Perm::WRITE);
    let mut at = range.first();
    loop {
        let piece = pieces.lookup(at).filter(|piece| !piece.gated() && found.len() < MAX_PIECES)?;
        let range_here = IovaRange::new(at, piece.range().last().min(range.last())).ok()?;
        let offset = piece.window_offset().checked_add(at.0.checked_sub(piece.first())?)?;
        found.push(Segment { range: range_here, window: piece.window().clone(), offset });
        perm &= piece.perm();
        if range_here.last() == range.last() {
            return Some((found, perm));
        }
        at = range_here.last().checked_add(1)?;
    }
}

/// In how many places they lie: 1 if side by side in one window.
fn places(segments: &[Segment]) -> usize {
    let apart = |pair: &&[Segment]| {
        let [one, next] = pair else { return false };
        let size = u64::try_from(one.range.size()).unwrap_or(u64::MAX);
        !std::sync::Arc::ptr_eq(&one.window, &next.window)
            || one.offset.checked_add(size) != Some(next.offset)
    };
    1 + segments.windows(2).filter(apart).count()
}

/// A stretch that is in one piece by a stitch.
#[derive(Clone)]
pub struct Stitched {
    stretch: Stretch,
    /// What may be done with all of its bytes.
    pub perm: Perm,
    pub stitch: std::sync::Arc<Stitch>,
}

impl Stitched {
    /// Whether it is these bytes.
    pub fn is(&self, stretch: &Stretch) -> bool {
        self.stretch.is(stretch)
    }

    /// Its bit in the set of windows that a burst touched, as [`Piece::window_bit`].
    pub fn window_bit(&self) -> u64 {
        1 << ((std::sync::Arc::as_ptr(&self.stitch).addr() >> 7) & 63)
    }
}

/// What a space was told, and what came of it.
#[derive(Clone, Default)]
pub struct Whole {
    wanted: Vec<Stretch>,
    /// As the last table has it.
    stitched: Vec<Stitched>,
}

impl Whole {
    /// Makes stitches for a table of these pieces. Those that are still right are taken over. What cannot be stitched is
    /// left in pieces, and tried again with the next table.
    pub fn stitch(&mut self, pieces: &IovaMap<Piece>, windows: &Windows) -> Vec<Stitched> {
        if self.wanted.is_empty() {
            self.stitched.clear();
            return Vec::new();
        }
        let mut left = MAX_STITCHED;
        let mut stitched = Vec::new();
        for stretch in &self.wanted {
            let Some((segments, perm)) = stretch.segments(pieces) else { continue };
            let places = places(&segments);
            let Some(rest) = left.checked_sub(places).filter(|_| places > 1) else { continue };
            let before = self.stitched.iter().find(|before| before.is(stretch));
            let before = before.map(|before| before.stitch.clone()).filter(|stitch| stitch.shows(&segments));
            let Some(stitch) = before.or_else(|| windows.stitch(&segments).ok()) else { continue };
            left = rest;
            stitched.push(Stitched { stretch: stretch.clone(), perm, stitch });
        }
        self.stitched.clone_from(&stitched);
        stitched
    }
}

impl Ioas {
    /// Says which stretches are wanted in one piece from now on, instead of those that were before. Each is, as long as all of
    /// it is mapped and its pieces meet where pages of their files end; otherwise [`crate::ResolveError::Split`] tells. Blocks
    /// for `mmap`, while other operations on this space wait.
    pub fn keep_whole(&self, wanted: impl IntoIterator<Item = Stretch>) {
        let wanted: Vec<Stretch> = wanted.into_iter().filter(Stretch::may_be_cut).collect();
        let mut state = self.state();
        let as_before = wanted.len() == state.whole.wanted.len()
            && wanted.iter().zip(&state.whole.wanted).all(|(one, other)| one.is(other));
        if as_before {
            return;
        }
        state.whole.wanted = wanted;
        if state.needs_stitches() {
            let retired = state.publish(&[]);
            drop(state);
            self.adopt(retired);
        }
    }
}

impl State {
    /// Whether a table of the present view has stitches that the last one lacks, or the other way round.
    fn needs_stitches(&self) -> bool {
        let Self { whole, view, .. } = self;
        let cut = |stretch: &Stretch| {
            stretch.segments(&view.pieces).is_some_and(|(segments, _)| places(&segments) > 1)
        };
        !whole.stitched.is_empty() || whole.wanted.iter().any(cut)
    }
}
