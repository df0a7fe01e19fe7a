//! The open file of a device, as a session has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mdev_protocol::vduse::{DeviceError, IotlbFile, VqInfo};
use rustix::io::Errno;

use super::Model;
use super::state::State;
use crate::session::vduse::Kernel;
use crate::sys::EventFd;

/// The open file of a device. It is closed when this is dropped.
pub struct Opened {
    model: Model,
    generation: u64,
    channel: OwnedFd,
}

impl Opened {
    pub(super) fn new(model: Model, generation: u64, channel: OwnedFd) -> Opened {
        Opened { model, generation, channel }
    }

    /// Calls the kernel.
    fn call<T>(
        &self,
        call: &'static str,
        body: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, DeviceError> {
        let mut state = self.model.lock();
        if state.generation != self.generation {
            return Err(DeviceError::Failed { call, errno: Errno::BADF });
        }
        if state.is_broken() {
            return Err(DeviceError::Broken { call });
        }
        body(&mut state).map_err(|errno| match errno {
            Errno::INVAL => DeviceError::Refused { call, why: "so says the model of the kernel" },
            errno => DeviceError::Failed { call, errno },
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.model.lock().release(self.generation);
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Kernel for Opened {
    fn driver_features(&self) -> Result<u64, DeviceError> {
        self.call("GET_FEATURES", |state| Ok(state.features))
    }

    fn queue(&self, index: u16, _packed: bool) -> Result<VqInfo, DeviceError> {
        self.call("VQ_GET_INFO", |state| {
            let queue = state.queue_mut(index).ok_or(Errno::INVAL)?;
            let (place, ready) = (queue.place, queue.ready);
            let [desc, driver, device] = place.parts;
            let state = state.state_of(place);
            Ok(VqInfo { size: place.size, desc, driver, device, state, ready })
        })
    }

    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        let own = |kick: BorrowedFd<'_>| EventFd::from_fd(kick.try_clone_to_owned()?);
        let kick = kick.map(own).transpose();
        self.call("VQ_SETUP_KICKFD", |state| {
            let kick = kick.map_err(|_| Errno::INVAL)?;
            state.queue_mut(index).ok_or(Errno::INVAL)?.set_kick(kick);
            Ok(())
        })
    }

    fn interrupt(&self, index: u16) -> Result<(), DeviceError> {
        self.call("VQ_INJECT_IRQ", |state| {
            let listens = state.listens();
            let queue = state.queue_mut(index).filter(|_| listens);
            queue.ok_or(Errno::INVAL)?.interrupt();
            Ok(())
        })
    }

    fn interrupt_config(&self) -> Result<(), DeviceError> {
        self.call("INJECT_CONFIG_IRQ", |state| {
            if !state.listens() {
                return Err(Errno::INVAL);
            }
            state.config_calls = state.config_calls.saturating_add(1);
            Ok(())
        })
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.call("SET_CONFIG", |state| {
            let rest = state.space.get_mut(offset as usize..).ok_or(Errno::INVAL)?;
            let place = rest.get_mut(..bytes.len()).filter(|place| !place.is_empty());
            place.ok_or(Errno::INVAL)?.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn memory(&self, first: u64, last: u64) -> Result<Option<IotlbFile>, DeviceError> {
        self.call("IOTLB_GET_FD", |state| {
            if state.starved {
                return Err(Errno::MFILE);
            }
            let Some(entry) = state.table.lowest(first, last) else { return Ok(None) };
            let (first, last) = (entry.range.first().0, entry.range.last().0);
            let file = entry.file.try_clone().map_err(|_| Errno::MFILE)?;
            Ok(Some(IotlbFile { first, last, perm: entry.perm, offset: entry.offset, file }))
        })
    }
}
