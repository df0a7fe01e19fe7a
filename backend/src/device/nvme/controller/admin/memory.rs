//! The data of admin commands.

use mdev_dma::{Perm, SgList};
use mdev_pin::{Lane, ResolveError};
use mdev_protocol::nvme::command::Command;

use crate::device::nvme::data::{self, Fault};

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

/// Writes the data of a command. All or nothing.
///
/// # Errors
/// What is wrong with its pointers, or with the memory they point to.
pub(super) fn write(lane: &mut Lane, command: &Command, bytes: &[u8]) -> Result<(), Fault> {
    with_pieces(lane, command, bytes.len(), Perm::WRITE, |memory| {
        memory.copy_from(0, bytes);
    })
}

/// Reads the data of a command.
///
/// # Errors
/// As [`write`].
pub(super) fn read<const N: usize>(lane: &mut Lane, command: &Command) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    with_pieces(lane, command, N, Perm::READ, |memory| {
        memory.copy_to(0, &mut bytes);
    })?;
    Ok(bytes)
}
