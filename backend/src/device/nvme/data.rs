//! Where the data of a command are: PRP entries (base specification, section 4.1.1) and SGL descriptors (4.1.2).
//!
//! Both become pieces of addresses, neighbours in one. Nothing is known of the memory at these addresses yet, but of the lists
//! that were read to find them. The work is bounded by the length of the data, which has a limit, and by the number of descriptors.

mod prp;
mod sgl;

use mdev_dma::{Iova, Perm, SgList};
use mdev_pin::{Burst, ResolveError};
use mdev_protocol::nvme::command::{Command, PSDT_PRP};
use mdev_protocol::nvme::status::Status;

/// Bytes of a page, as `CC.MPS` has them.
const PAGE: u32 = 4096;

/// Consecutive addresses.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) at: Iova,
    pub(super) len: u32,
    /// Of no address: these bytes are not wanted ([`super::bucket`]).
    pub(super) unwanted: bool,
}

/// Why the data of a command are nowhere.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The pointers make no sense.
    Refused(Status),
    /// A list, or the data, is in no memory.
    Memory(ResolveError),
}

impl From<ResolveError> for Fault {
    fn from(error: ResolveError) -> Self {
        Fault::Memory(error)
    }
}

/// Where lists are read.
pub(super) trait Lists {
    /// Reads bytes of a list.
    ///
    /// # Errors
    /// They are not there.
    fn read(&self, at: Iova, out: &mut [u8]) -> Result<(), ResolveError>;
}

impl Lists for Burst<'_> {
    #[inline(always)]
    fn read(&self, at: Iova, out: &mut [u8]) -> Result<(), ResolveError> {
        read(self, at, out)
    }
}

/// The pieces of the `len` bytes of a command's data, in order, instead of what `out` had. `to_host`: they go there, so that the
/// host may not want all of them.
///
/// # Errors
/// What is wrong with its pointers, or with a list that they name. Then `out` has any pieces.
#[inline(always)]
pub(super) fn locate(
    lists: &impl Lists,
    command: &Command,
    len: u32,
    to_host: bool,
    out: &mut Vec<Piece>,
) -> Result<(), Fault> {
    out.clear();
    if command.psdt() == PSDT_PRP {
        prp::walk(lists, command.dptr, len, out)
    } else {
        sgl::walk(lists, command.dptr, len, to_host, out)
    }
}

/// Appends a piece, to its neighbour where it can.
#[inline(always)]
fn push(out: &mut Vec<Piece>, at: u64, len: u32) {
    if let Some(last) = out.last_mut()
        && !last.unwanted
        && last.at.0.checked_add(last.len.into()) == Some(at)
        && let Some(sum) = last.len.checked_add(len)
    {
        last.len = sum;
    } else {
        out.push(Piece { at: Iova(at), len, unwanted: false });
    }
}

/// Reads bytes that may lie in several pieces of memory.
pub(super) fn read(burst: &Burst<'_>, at: Iova, out: &mut [u8]) -> Result<(), ResolveError> {
    let len = u32::try_from(out.len()).map_err(|_| ResolveError::Overflow)?;
    match burst.slice(at, len, Perm::READ) {
        Ok(slice) => {
            slice.copy_to(out);
            if slice.poisoned() { Err(ResolveError::Poisoned) } else { Ok(()) }
        }
        Err(ResolveError::Split) => {
            let mut pieces = SgList::new();
            burst.sg(at, len, Perm::READ, &mut pieces)?;
            pieces.copy_to(0, out);
            let lost = pieces.iter().any(|piece| piece.poisoned());
            if lost { Err(ResolveError::Poisoned) } else { Ok(()) }
        }
        Err(error) => Err(error),
    }
}
