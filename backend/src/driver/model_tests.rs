//! The driver's side of a ring beside maps and queues, with the naivest device there is at the other end.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::memory::{GuestMemory, MemoryOptions};
use super::virtqueue::{Piece, RingOptions, Used, Virtqueue};
use mdev_dma::Iova;

pub(super) fn piece(at: u64, len: u32, device_writes: bool) -> Piece {
    Piece { at: Iova(at), len, device_writes }
}

/// A chain as a device reads it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taken {
    pub(super) head: u16,
    /// How many descriptors of the ring it has.
    pub(super) slots: u16,
    pub(super) pieces: Vec<Piece>,
}

/// What the device may write.
fn capacity(chain: &Taken) -> u32 {
    chain.pieces.iter().filter(|piece| piece.device_writes).map(|piece| piece.len).sum()
}

/// A device of one ring format.
pub(super) trait NaiveDevice<Q>: Default {
    /// Takes the next chain, if one is available.
    fn take(&mut self, memory: &GuestMemory, queue: &Q) -> Option<Taken>;

    /// Uses a chain, and says nothing of those that were `skipped` before it.
    fn complete(&mut self, queue: &Q, skipped: &[Taken], chain: &Taken, len: u32);
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Prepare(usize),
    Offer(usize),
    Publish,
    Take,
    /// Which of the chains that the device has, and with how much of its capacity.
    Complete(usize, u8),
    Pop(u16),
    Release(usize),
}

pub(super) fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..5).prop_map(Step::Prepare),
        6 => any::<usize>().prop_map(Step::Offer),
        3 => Just(Step::Publish),
        6 => Just(Step::Take),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(which, share)| Step::Complete(which, share)),
        4 => (1u16..6).prop_map(Step::Pop),
        1 => any::<usize>().prop_map(Step::Release),
    ]
}

/// Plays a script: chains of several lengths, used in any order (or, in order, in batches), across every position of the wrap.
pub(super) fn agrees<Q: Virtqueue, D: NaiveDevice<Q>>(
    options: RingOptions,
    script: Vec<Step>,
) -> Result<(), TestCaseError> {
    let RingOptions { size, indirect, in_order, .. } = options;
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let mut queue = Q::new(&mut memory, options).unwrap();
    let mut device = D::default();
    let (mut held, mut out) = (Vec::<(u16, Vec<Piece>)>::new(), HashMap::new());
    let (mut offered, mut published) = (VecDeque::new(), VecDeque::new());
    let (mut taken, mut used) = (Vec::<Taken>::new(), VecDeque::new());
    let mut free = usize::from(size);
    for (number, step) in script.into_iter().enumerate() {
        match step {
            Step::Prepare(count) => {
                let each = |each: usize| piece((number * 10 + each) as u64, each as u32 + 1, each % 2 == 1);
                let pieces: Vec<Piece> = (0..count).map(each).collect();
                let cost = if indirect { 1 } else { count };
                match queue.prepare(&pieces) {
                    Ok(head) => {
                        prop_assert!(cost <= free);
                        free -= cost;
                        held.push((head, pieces));
                    }
                    Err(_) => prop_assert!(cost > free),
                }
            }
            Step::Offer(which) if !held.is_empty() => {
                let (head, pieces) = held.swap_remove(which % held.len());
                queue.offer_each([head]).unwrap();
                prop_assert!(out.insert(head, pieces).is_none());
                offered.push_back(head);
            }
            Step::Publish => {
                queue.publish();
                published.append(&mut offered);
            }
            Step::Take => {
                let chain = device.take(&memory, &queue);
                prop_assert_eq!(chain.as_ref().map(|chain| chain.head), published.pop_front());
                if let Some(chain) = chain {
                    prop_assert_eq!(&chain.pieces, &out[&chain.head]);
                    taken.push(chain);
                }
            }
            Step::Complete(which, share) if !taken.is_empty() => {
                let which = which % taken.len();
                let skipped: Vec<Taken> = if in_order { taken.drain(..which).collect() } else { Vec::new() };
                let chain = taken.remove(if in_order { 0 } else { which });
                let len = capacity(&chain) * u32::from(share) / 255;
                device.complete(&queue, &skipped, &chain, len);
                used.extend(skipped.iter().map(|chain| Used { head: chain.head, len: capacity(chain) }));
                used.push_back(Used { head: chain.head, len });
            }
            Step::Pop(count) => {
                prop_assert_eq!(usize::from(queue.ready().unwrap()), used.len());
                let count = count.min(used.len() as u16);
                let mut seen = Vec::new();
                queue.pop_each(count, |each| seen.push(each)).unwrap();
                prop_assert_eq!(&seen, &used.drain(..usize::from(count)).collect::<Vec<_>>());
                for each in seen {
                    held.push((each.head, out.remove(&each.head).unwrap()));
                }
            }
            Step::Release(which) if !held.is_empty() => {
                let (head, pieces) = held.swap_remove(which % held.len());
                queue.release(head).unwrap();
                free += if indirect { 1 } else { pieces.len() };
            }
            _ => {}
        }
        prop_assert_eq!(usize::from(queue.outstanding()), out.len());
    }
    Ok(())
}
