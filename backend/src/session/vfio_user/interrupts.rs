//! Where interrupts go (`VFIO_DEVICE_SET_IRQS`).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_protocol::frame::Fds;
use mdev_protocol::vfio_user::{IrqAction, IrqData, IrqFlags, IrqInfo, SetIrqs};

use super::error::Refusal;
use super::function::Function;
use crate::sys::EventFd;

/// Kinds of interrupts that a PCI function has: INTx, MSI, MSI-X, error, request (`VFIO_PCI_NUM_IRQS`).
pub(super) const KINDS: u32 = 5;
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;

impl Function {
    /// What a kind of interrupt is. There is no MSI; errors and requests are never told of.
    pub(super) fn irq(&self, index: u32) -> Result<IrqInfo, Refusal> {
        let (flags, count) = match index {
            INTX => (IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED, 1),
            MSI => (IrqFlags::empty(), 0),
            MSIX => (IrqFlags::EVENTFD, self.vectors.count().into()),
            index if index < KINDS => (IrqFlags::EVENTFD, 1),
            index => return Err(Refusal::NoSuchIrq(index)),
        };
        Ok(IrqInfo { flags, index, count })
    }

    /// Wires interrupts, or says that the client is ready for the next one.
    pub(super) fn set_irqs(&mut self, set: &SetIrqs, fds: Fds) -> Result<(), Refusal> {
        let (index, start, count) = (set.index(), set.start(), set.count());
        let there = self.irq(index)?.count;
        if u64::from(start).saturating_add(count.into()) > there.into() {
            return Err(Refusal::BeyondIrqs { index, start, count, there });
        }
        match (set.action(), set.data()) {
            // All of the kind are disabled.
            (IrqAction::Trigger, IrqData::None { count: 0 }) => {
                (0..there).for_each(|vector| self.wire(index, vector, None));
                Ok(())
            }
            (IrqAction::Trigger, IrqData::Eventfd { .. }) => {
                let events = fds.into_iter().map(|fd: OwnedFd| EventFd::from_fd(fd).map(Arc::new));
                let mut events = events.collect::<Result<Vec<_>, _>>().map_err(Refusal::EventFd)?.into_iter();
                let last = start.saturating_add(count);
                (start..last).for_each(|vector| self.wire(index, vector, events.next()));
                Ok(())
            }
            (IrqAction::Mask, IrqData::None { .. }) if index == INTX => {
                self.vectors.set_pin(None);
                Ok(())
            }
            (IrqAction::Unmask, IrqData::None { .. }) if index == INTX => {
                self.vectors.set_pin(self.pin.clone());
                self.pin_unmasked();
                Ok(())
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn wire(&mut self, index: u32, vector: u32, event: Option<Arc<EventFd>>) {
        match (index, u16::try_from(vector)) {
            (INTX, _) => {
                self.pin.clone_from(&event);
                self.vectors.set_pin(event);
            }
            (MSIX, Ok(vector)) => self.vectors.set(vector, event),
            _ => {}
        }
    }
}
