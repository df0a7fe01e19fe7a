//! Completion queues whose entries the client keeps: they are sent there, one batch at a time, and the host is interrupted when they
//! have arrived.

use std::sync::atomic::Ordering;

use mdev_pin::{Access, Burst, ResolveError};
use mdev_protocol::nvme::command::Completion;
use rustix::io::Errno;

use super::super::legs::{Progress, Waiter};
use super::{CompletionQueue, Ended, Position, Posted};

impl CompletionQueue {
    /// As [`CompletionQueue::post`], where the client keeps the entries: they are on their way when this returns, and the host is told
    /// when they have arrived. Nothing is posted before those that are on their way have.
    ///
    /// # Errors
    /// They are nowhere.
    #[cold]
    pub(in super::super) fn send(
        &self,
        burst: &Burst<'_>,
        access: &Access,
        (sq_id, sq_head): (u16, u16),
        ended: &[Ended],
    ) -> Result<Posted, ResolveError> {
        let Ok(mut position) = self.position.try_lock() else { return Ok(Posted::default()) };
        let position = &mut *position;
        self.is_remote.store(true, Ordering::Relaxed);
        if self.is_sending() {
            return Ok(Posted::default());
        }
        let mut posted = Posted { bad_head: self.look(position, burst)?, ..Posted::default() };
        let mut run = (position.tail, Vec::new());
        for one in ended.iter().take(position.room as usize) {
            for word in one.words(sq_id, sq_head, position.phase) {
                run.1.extend_from_slice(&word.to_ne_bytes());
            }
            self.step(position);
            posted.count = posted.count.wrapping_add(1);
            if position.tail == 0 {
                self.add(position, std::mem::take(&mut run));
            }
        }
        self.add(position, run);
        position.room = position.room.saturating_sub(posted.count as u32);
        posted.full = posted.count < ended.len();
        self.tail.store(position.tail, Ordering::Release);
        self.is_sending.store(!position.runs.is_empty(), Ordering::Release);
        self.transmit(position, burst, access)?;
        Ok(posted)
    }

    fn add(&self, position: &mut Position, (index, bytes): (u32, Vec<u8>)) {
        let offset = u64::from(index).saturating_mul(Completion::LEN as u64);
        if let Some(at) = self.base.checked_add(offset).filter(|_| !bytes.is_empty()) {
            position.runs.push((at, bytes));
        }
    }

    fn transmit(
        &self,
        position: &mut Position,
        burst: &Burst<'_>,
        access: &Access,
    ) -> Result<(), ResolveError> {
        position.runs.iter().try_for_each(|(at, bytes)| position.legs.send(access, burst, *at, bytes))
    }

    /// Entries are on their way to the client: [`CompletionQueue::settle`] is to be called.
    #[inline(always)]
    pub(in super::super) fn is_sending(&self) -> bool {
        self.is_sending.load(Ordering::Acquire)
    }

    /// The batch of entries that is on its way to the client, if one is.
    pub(in super::super) fn arrives(&self) -> Option<u32> {
        // In this order: a number that is too new is of a batch that is on its way now.
        self.is_sending().then(|| self.batch.load(Ordering::Acquire))
    }

    /// Interrupts the host if what was sent has arrived; otherwise `waiter` is woken when it has. What was cancelled, since the memory was
    /// unmapped, is sent again when it is back.
    ///
    /// # Errors
    /// The client did not take it; or it is nowhere.
    #[cold]
    pub(in super::super) fn settle(
        &self,
        burst: &Burst<'_>,
        access: &Access,
        waiter: &Waiter,
    ) -> Result<(), ResolveError> {
        let Ok(mut position) = self.position.try_lock() else { return Ok(()) };
        let position = &mut *position;
        if position.legs.is_empty() {
            // For what it notes of an address that is not there.
            match self.place(position, burst) {
                Err(ResolveError::Elsewhere) | Ok(_) => {}
                Err(error) => return Err(error),
            }
            self.transmit(position, burst, access)?;
        }
        match position.legs.look(waiter) {
            Progress::Pending => Ok(()),
            Progress::Done => {
                drop(position.legs.take());
                position.runs.clear();
                self.batch.fetch_add(1, Ordering::Release);
                self.is_sending.store(false, Ordering::Release);
                self.interrupt();
                Ok(())
            }
            Progress::Failed(Errno::CANCELED) => {
                drop(position.legs.take());
                Ok(())
            }
            Progress::Failed(_) => {
                drop(position.legs.take());
                position.runs.clear();
                Err(ResolveError::Elsewhere)
            }
        }
    }

    /// Whether there is something to [settle](CompletionQueue::settle) now. If not, `waiter` is woken when there is.
    pub(in super::super) fn has_arrived(&self, waiter: &Waiter) -> bool {
        self.position.try_lock().is_ok_and(|mut position| position.legs.look(waiter) != Progress::Pending)
    }
}
