//! The chains of a burst, noted down before any of them is looked into.
//!
//! A request begins with a line that its driver has just written on another processor. While the first of a burst is served the
//! lines of the others are on their way.

use mdev_dma::Perm;

use super::engine::BURST;
use crate::ring::{Buffer, Chain, RingError, Vring};

/// Chains and their buffers; kept from burst to burst for its memory.
#[derive(Default)]
pub(super) struct Gathered {
    buffers: Vec<Buffer>,
    chains: Vec<Span>,
}

/// A chain: its name, where its buffers begin, how many of them the device reads, and where they end.
#[derive(Copy, Clone)]
struct Span {
    head: u16,
    first: u32,
    readable: u32,
    end: u32,
}

impl Gathered {
    /// Takes up to `most` chains. How many.
    ///
    /// # Errors
    /// As [`Vring::take`]: what is wrong with the first of them.
    #[inline(always)]
    pub(super) fn take(&mut self, vring: &mut Vring<'_, '_>, most: usize) -> Result<usize, RingError> {
        let Self { buffers, chains } = self;
        buffers.clear();
        chains.clear();
        let burst = vring.burst();
        vring.take(
            most.min(BURST),
            #[inline(always)]
            |chain| {
                if let [header, ..] = chain.readable
                    && let Ok(line) = burst.slice(header.iova, header.len, Perm::READ)
                {
                    // For writing: drivers that care for their lines have the status in the same one.
                    line.prefetch_write(0);
                }
                let first = buffers.len() as u32;
                buffers.extend_from_slice(chain.readable);
                let readable = buffers.len() as u32;
                buffers.extend_from_slice(chain.writable);
                chains.push(Span { head: chain.head, first, readable, end: buffers.len() as u32 });
                Ok(())
            },
        )
    }

    /// How many chains there are.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    /// One of them.
    #[inline(always)]
    pub(super) fn chain(&self, index: usize) -> Option<Chain<'_>> {
        let Span { head, first, readable, end } = *self.chains.get(index)?;
        let all = self.buffers.get(first as usize..end as usize)?;
        let (readable, writable) = all.split_at_checked(readable.wrapping_sub(first) as usize)?;
        Some(Chain { head, readable, writable })
    }
}
