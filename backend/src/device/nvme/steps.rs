//! What is left of a command that names more blocks than a store changes at once.

use smallvec::SmallVec;

use crate::store::Operation;

/// Bytes of a store.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Span {
    /// Nothing, or nobody knows where.
    pub(super) const NONE: Span = Span { offset: 0, len: 0 };
}

/// One operation, which moves no data, on one span after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) operation: Operation,
    spans: SmallVec<[Span; 1]>,
    /// Spans that are done.
    done: usize,
}

impl Steps {
    /// The operation on one span, which may be empty.
    pub(super) fn one(operation: Operation, offset: u64, len: u64) -> Self {
        let mut steps = Steps::none(operation);
        steps.spans.push(Span { offset, len });
        steps
    }

    /// Nothing to do.
    pub(super) fn none(operation: Operation) -> Self {
        Steps { operation, spans: SmallVec::new(), done: 0 }
    }

    /// One span more, unless it is empty.
    pub(super) fn add(&mut self, span: Span) {
        if span.len > 0 {
            self.spans.push(span);
        }
    }

    /// Whether all is done.
    pub(super) fn is_done(&self) -> bool {
        self.done >= self.spans.len()
    }

    /// What is to be done next, `most` bytes of it; `None` when all is done.
    pub(super) fn next(&mut self, most: u64) -> Option<Span> {
        let span = self.spans.get_mut(self.done)?;
        let offset = span.offset;
        let len = span.len.min(most.max(1));
        span.offset = offset.saturating_add(len);
        span.len = span.len.saturating_sub(len);
        if span.len == 0 {
            self.done = self.done.saturating_add(1);
        }
        Some(Span { offset, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_and_empty_ones_are_left_out() {
        let mut steps = Steps::none(Operation::Discard);
        assert!(steps.is_done());
        for (offset, len) in [(0, 10), (100, 0), (200, 4)] {
            steps.add(Span { offset, len });
        }
        let all: Vec<_> = std::iter::from_fn(|| steps.next(4)).map(|span| (span.offset, span.len)).collect();
        assert_eq!(all, [(0, 4), (4, 4), (8, 2), (200, 4)]);
        assert!(steps.is_done());
    }

    #[test]
    fn flush_is_one_step_of_no_bytes() {
        let mut steps = Steps::one(Operation::Flush, 0, 0);
        assert_eq!(steps.next(1), Some(Span { offset: 0, len: 0 }));
        assert_eq!((steps.next(1), steps.is_done()), (None, true));
    }
}
