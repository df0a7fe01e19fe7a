//! The `null` link: every frame is read whole, as a device that sends it on would.

use super::{Frame, MAX_FRAME};

/// Where frames end.
pub(crate) struct Sink {
    scratch: Box<[u8]>,
}

impl Sink {
    pub(crate) fn new() -> Self {
        Self { scratch: vec![0; MAX_FRAME].into_boxed_slice() }
    }

    /// Reads a frame and forgets it.
    #[inline(always)]
    pub(crate) fn consume(&mut self, frame: &Frame<'_, '_>) {
        std::hint::black_box(frame.copy_to(&mut self.scratch));
    }
}
