//! The order in which a device that agreed to `VIRTIO_F_IN_ORDER` uses chains, and the batches that this allows.
use std::collections::VecDeque;

/// The chains that the device has, the one offered first in front. Under `VIRTIO_F_IN_ORDER` a used entry stands for
/// all chains up to the one that it names, and only for that one it says how much was written; the others were used completely (virtio 1.3,
/// sections 2.7.9 and 2.8.7).
#[derive(Debug, Default)]
pub(super) struct Order {
    waiting: VecDeque<u16>,
    /// Chains of a batch whose entry was read but which were not taken yet.
    batch: u16,
    /// Bytes that the entry says were written to the last of them.
    last_len: u32,
}

impl Order {
    pub fn offered(&mut self, head: u16) {
        self.waiting.push_back(head);
    }

    /// How many chains an entry that names `head` stands for; `None` if the device does not have that chain.
    pub fn spans(&self, head: u16) -> Option<u16> {
        let place = self.waiting.iter().position(|&waiting| waiting == head)?;
        // A ring has at most 32,768 chains.
        Some(place as u16 + 1)
    }

    /// An entry that stands for `chains` was read.
    pub fn begin(&mut self, chains: u16, last_len: u32) {
        (self.batch, self.last_len) = (chains, last_len);
    }

    /// The next chain of the batch, and for the last one what was written to it; `None` at the batch's end.
    #[inline]
    pub fn take(&mut self) -> Option<(u16, Option<u32>)> {
        if self.batch == 0 {
            return None;
        }
        self.batch -= 1;
        let head = self.waiting.pop_front()?;
        Some((head, (self.batch == 0).then_some(self.last_len)))
    }

    /// Nothing is with the device any more.
    pub fn clear(&mut self) {
        let Self { waiting, batch, last_len } = self;
        waiting.clear();
        (*batch, *last_len) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_stands_for_all_chains_up_to_the_one_it_names() {
        let mut order = Order::default();
        [5, 2, 9, 4].into_iter().for_each(|head| order.offered(head));
        assert_eq!((order.spans(5), order.spans(9), order.spans(1)), (Some(1), Some(3), None));
        assert_eq!(order.take(), None, "no entry was read yet");
        order.begin(3, 77);
        assert_eq!(order.take(), Some((5, None)));
        assert_eq!(order.take(), Some((2, None)));
        assert_eq!(order.take(), Some((9, Some(77))));
        assert_eq!(order.take(), None);
        assert_eq!((order.spans(9), order.spans(4)), (None, Some(1)));
        order.clear();
        assert_eq!(order.spans(4), None);
    }
}
