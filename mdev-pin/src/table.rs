//! The immutable table that lanes read: pieces of host memory by IOVA.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mdev_dma::{Area, IovaMap, IovaRange, Occupancy, Perm, Ranged, Segment, poison_epoch};

use crate::{
    parked::{Answer, Place},
    slot::Slot,
    sync,
    sys::piece::Piece,
    tally::{Share, Shares},
    view::{Elsewhere, View},
    whole::Stitched,
};

/// An area as the space keeps it.
#[derive(Clone)]
pub struct Mapped(pub Arc<MappedArea>);

/// See [`Mapped`].
#[derive(Clone)]
pub struct MappedArea {
    pub area: Area,
    /// The host memory behind it, in order, without gaps.
    pub segments: Vec<Segment>,
    /// Keeps that memory from being revoked when somebody else's area goes.
    pub occupancy: Arc<Occupancy>,
    /// What its pages are charged by.
    pub shares: Arc<Shares>,
    /// Where new pins are counted.
    pub slot: Slot,
    /// Where pins taken before a re-cut are counted; they may lie in this area.
    pub inherited: Vec<Slot>,
    /// Lookups answer `EINVAL`; set by an unmap and never cleared, as `prevent_access` in `io_pagetable.c`.
    pub gated: bool,
    /// A change that will remove it is under way.
    pub leaving: bool,
}

impl Mapped {
    /// An area that is mapped by itself, open to lookups.
    pub fn new(
        area: Area,
        segments: Vec<Segment>,
        occupancy: Occupancy,
        shares: Arc<Shares>,
        slot: Slot,
    ) -> Self {
        let occupancy = Arc::new(occupancy);
        let inherited = Vec::new();
        Mapped(Arc::new(MappedArea {
            area,
            segments,
            occupancy,
            shares,
            slot,
            inherited,
            gated: false,
            leaving: false,
        }))
    }

    /// An area of which the caller holds at least every byte that is not new, in areas that it was cut out of: pins
    /// into it may be counted on the slots in `inherited` too.
    pub fn cut(
        area: Area,
        segments: Vec<Segment>,
        shares: Arc<Shares>,
        slot: Slot,
        inherited: Vec<Slot>,
        gated: bool,
    ) -> Self {
        let occupancy = Arc::new(Occupancy::within(&segments));
        Mapped(Arc::new(MappedArea {
            area,
            segments,
            occupancy,
            shares,
            slot,
            inherited,
            gated,
            leaving: false,
        }))
    }

    /// The same area with other flags.
    pub fn with_flags(&self, gated: bool, leaving: bool) -> Self {
        let MappedArea { area, segments, occupancy, shares, slot, inherited, .. } = (*self.0).clone();
        Mapped(Arc::new(MappedArea { area, segments, occupancy, shares, slot, inherited, gated, leaving }))
    }

    /// What lanes are to see of it.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let area = &self.0;
        let piece = |segment| Piece::new(segment, area.area.perm, area.slot.number(), area.gated);
        area.segments.iter().filter_map(piece)
    }

    /// What the pages in `range` are charged by.
    pub fn shares_in(&self, range: IovaRange) -> Vec<Share> {
        self.0.shares.parts.iter().filter_map(|share| share.cut(range)).collect()
    }

    /// Every slot on which a pin into this area may be counted.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        std::iter::once(self.0.slot.clone()).chain(self.0.inherited.iter().cloned())
    }
}

impl Ranged for Mapped {
    fn range(&self) -> IovaRange {
        self.0.area.range
    }
}

/// What an access publishes. Immutable; a change makes a new one.
pub struct Table {
    /// Different for every table of the process, so that it can stand for the table in a comparison.
    pub id: u64,
    /// `false` for the table of an access that is not attached: lookups answer `ENOENT`.
    pub attached: bool,
    pub pieces: IovaMap<Piece>,
    /// What is in one piece although its pieces lie apart.
    pub stitched: Vec<Stitched>,
    /// A poison epoch at which none of its windows was poisoned, if there was one when it was made.
    pub clean_at: Option<u64>,
    /// Areas that are not host memory.
    pub elsewhere: IovaMap<Elsewhere>,
}

/// Only makes numbers; it protects nothing.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Table {
    pub fn new(view: View, stitched: Vec<Stitched>) -> sync::Arc<Self> {
        let View { pieces, elsewhere } = view;
        let epoch = poison_epoch();
        // Until a page is lost somewhere in the process, nothing has to be looked at.
        let clean = epoch == 0 || !pieces.iter().any(|piece| piece.window().poisoned());
        Self::with(true, pieces, stitched, elsewhere, clean.then_some(epoch))
    }

    /// As [`Table::new`], for a view that differs from that of this table by `added` and by what is gone or gated. Only what
    /// was added is looked at, if nobody has lost a page since this table was found clean.
    pub fn next(&self, view: View, stitched: Vec<Stitched>, added: &[Mapped]) -> sync::Arc<Self> {
        let epoch = poison_epoch();
        let poisoned = |mapped: &Mapped| mapped.0.segments.iter().any(|segment| segment.window.poisoned());
        if self.clean_at == Some(epoch) && !added.iter().any(poisoned) {
            Self::with(true, view.pieces, stitched, view.elsewhere, Some(epoch))
        } else {
            Self::new(view, stitched)
        }
    }

    pub fn detached() -> sync::Arc<Self> {
        Self::with(false, IovaMap::new(), Vec::new(), IovaMap::new(), None)
    }

    /// What it says of a place to somebody who is about to do `perm` there. Linear in the number of pieces for a place in a
    /// file, which is asked for whatever is permitted.
    pub fn answer(&self, place: Place, perm: Perm) -> Answer {
        if !self.attached {
            return Answer::Detached;
        }
        let permitted = match place {
            Place::At(iova) => match self.pieces.lookup(iova) {
                Some(piece) => (!piece.gated()).then(|| piece.perm()),
                None => {
                    let open = self.elsewhere.lookup(iova).filter(|elsewhere| !elsewhere.gated);
                    open.map(|elsewhere| elsewhere.perm)
                }
            },
            Place::In(file, offset) => {
                let there = self.pieces.iter().any(|piece| !piece.gated() && piece.maps(file, offset));
                there.then_some(perm)
            }
        };
        match permitted {
            None => Answer::Missing,
            Some(permitted) if permitted.contains(perm) => Answer::There,
            Some(_) => Answer::Forbidden,
        }
    }

    fn with(
        attached: bool,
        pieces: IovaMap<Piece>,
        stitched: Vec<Stitched>,
        elsewhere: IovaMap<Elsewhere>,
        clean_at: Option<u64>,
    ) -> sync::Arc<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        sync::Arc::new(Table { id, attached, pieces, stitched, clean_at, elsewhere })
    }
}
