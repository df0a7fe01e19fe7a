//! The data of admin commands.

use mdev_dma::{Perm, SgList};
use mdev_pin::{Access, Burst, Lane, ResolveError};
use mdev_protocol::nvme::command::Command;

use crate::device::nvme::data::{self, Fault};
use crate::device::nvme::legs::{Legs, Progress, Waiter};

/// The control thread's way to guest memory. What a client keeps is sent to it and fetched from it; the thread looks again when the
/// client has answered.
pub(in super::super) struct Way {
    lane: Lane,
    pub(super) access: Access,
    pub(super) waiter: Waiter,
    /// Data of the command that was carried out last.
    sending: Legs,
    /// Data of the command that is to be carried out next.
    fetching: Legs,
}

impl Way {
    pub(super) fn new(access: &Access, waiter: Waiter) -> Self {
        let (sending, fetching) = (Legs::default(), Legs::default());
        Way { lane: access.lane(), access: access.clone(), waiter, sending, fetching }
    }

    pub(in super::super) fn enter(&mut self) -> Burst<'_> {
        self.lane.enter()
    }

    /// Whether data of the last command are on their way.
    pub(super) fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Whether the next command waits for its data.
    pub(super) fn is_fetching(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// Whether what was sent has arrived; `None` as long as that is not known.
    pub(super) fn has_arrived(&mut self) -> Option<bool> {
        let progress = self.sending.look(&self.waiter);
        if progress == Progress::Pending {
            return None;
        }
        drop(self.sending.take());
        Some(progress == Progress::Done)
    }

    /// Begins to send the data of a command.
    fn send(&mut self, command: &Command, bytes: &[u8]) -> Result<(), Fault> {
        let Way { lane, access, sending, .. } = self;
        let burst = lane.enter();
        let len = u32::try_from(bytes.len()).map_err(|_| ResolveError::Overflow)?;
        let mut pieces = Vec::new();
        data::locate(&burst, command, len, true, &mut pieces)?;
        let mut rest = bytes;
        for piece in pieces {
            let (here, behind) = rest.split_at_checked(piece.len as usize).unwrap_or_default();
            if let Err(error) = sending.send(access, &burst, piece.at, here) {
                drop(sending.take());
                return Err(error.into());
            }
            rest = behind;
        }
        Ok(())
    }

    /// Fetches the data of a command, which is to be looked at again while it waits for them.
    fn fetch(&mut self, command: &Command, out: &mut [u8]) -> Result<(), Fault> {
        let Way { lane, access, waiter, fetching, .. } = self;
        if fetching.is_empty() {
            let burst = lane.enter();
            let len = u32::try_from(out.len()).map_err(|_| ResolveError::Overflow)?;
            let mut pieces = Vec::new();
            data::locate(&burst, command, len, false, &mut pieces)?;
            for piece in pieces {
                if let Err(error) = fetching.fetch(access, &burst, piece.at, piece.len) {
                    drop(fetching.take());
                    return Err(error.into());
                }
            }
        }
        match fetching.look(waiter) {
            Progress::Pending => Err(ResolveError::Elsewhere.into()),
            Progress::Done => {
                let bytes: Vec<u8> = fetching.take().flat_map(|(_, bytes)| bytes).collect();
                let bytes = bytes.get(..out.len()).ok_or(ResolveError::Poisoned)?;
                out.copy_from_slice(bytes);
                Ok(())
            }
            Progress::Failed(_) => {
                drop(fetching.take());
                Err(ResolveError::Poisoned.into())
            }
        }
    }
}

/// Passes the pieces of the first `len` bytes of a command's data to `with`, if all of them are there.
fn with_pieces(
    lane: &mut Lane,
    command: &Command,
    len: usize,
    perm: Perm,
    with: impl FnOnce(&SgList<'_>),
) -> Result<(), Fault> {
    let burst = lane.enter();
    let len = u32::try_from(len).map_err(|_| ResolveError::Overflow)?;
    if len == 0 {
        return Ok(());
    }
    let mut pieces = Vec::new();
    data::locate(&burst, command, len, perm == Perm::WRITE, &mut pieces)?;
    let mut memory = SgList::new();
    for piece in &pieces {
        burst.sg(piece.at, piece.len, perm, &mut memory)?;
    }
    with(&memory);
    if burst.poisoned() { Err(ResolveError::Poisoned.into()) } else { Ok(()) }
}

/// Writes the data of a command, or sends them on their way. All or nothing.
///
/// # Errors
/// What is wrong with its pointers, or with the memory they point to.
pub(super) fn write(way: &mut Way, command: &Command, bytes: &[u8]) -> Result<(), Fault> {
    match with_pieces(&mut way.lane, command, bytes.len(), Perm::WRITE, |memory| {
        memory.copy_from(0, bytes);
    }) {
        Err(Fault::Memory(ResolveError::Elsewhere)) => way.send(command, bytes),
        written => written,
    }
}

/// Reads the data of a command.
///
/// # Errors
/// As [`write`]; `Elsewhere` while they are on their way: the command is to be looked at again ([`Way::is_fetching`]).
pub(super) fn read<const N: usize>(way: &mut Way, command: &Command) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    match with_pieces(&mut way.lane, command, N, Perm::READ, |memory| {
        memory.copy_to(0, &mut bytes);
    }) {
        Err(Fault::Memory(ResolveError::Elsewhere)) => way.fetch(command, &mut bytes)?,
        read => read?,
    }
    Ok(bytes)
}
