//! PRP entries: a page each. The first may begin within its page, and so may the first list.

use mdev_dma::Iova;
use mdev_protocol::nvme::status::Status;
use zerocopy::IntoBytes;

use super::{Fault, Lists, PAGE, Piece, push};

const INVALID: Fault = Fault::Refused(Status::PRP_OFFSET_INVALID.do_not_retry());
const ENTRY: u32 = size_of::<u64>() as u32;
/// Entries that are read at once: as many as the longest transfer needs.
const AT_ONCE: usize = 256;

/// Where in its page an address is.
#[inline(always)]
fn offset(address: u64) -> u32 {
    address as u32 & PAGE.wrapping_sub(1)
}

/// See [`super::locate`].
#[inline(always)]
pub(super) fn walk(
    lists: &impl Lists,
    [first, second]: [u64; 2],
    len: u32,
    out: &mut Vec<Piece>,
) -> Result<(), Fault> {
    if first & 3 != 0 {
        return Err(INVALID);
    }
    let here = PAGE.wrapping_sub(offset(first)).min(len);
    push(out, first, here);
    let left = len.wrapping_sub(here);
    if left == 0 {
        return Ok(());
    }
    if left > PAGE {
        return walk_list(lists, second, left, out);
    }
    if offset(second) != 0 {
        return Err(INVALID);
    }
    push(out, second, left);
    Ok(())
}

/// A list of entries for `left` bytes. Where it does not end with its page, the last entry there says where it goes on.
fn walk_list(lists: &impl Lists, list: u64, mut left: u32, out: &mut Vec<Piece>) -> Result<(), Fault> {
    if list & 7 != 0 {
        return Err(INVALID);
    }
    let mut entries = [0u64; AT_ONCE];
    let mut at = list;
    while left > 0 {
        // At least one; and from the second list on a whole page of them, so that every round gets further.
        let room = PAGE.wrapping_sub(offset(at)) / ENTRY;
        let wanted = left.div_ceil(PAGE);
        let goes_on = wanted > room;
        let here = entries.get_mut(..wanted.min(room) as usize).ok_or(INVALID)?;
        lists.read(Iova(at), here.as_mut_bytes())?;
        let (pages, next) = match here.split_last() {
            Some((next, pages)) if goes_on => (pages, u64::from_le(*next)),
            _ => (&*here, 0),
        };
        for entry in pages {
            let entry = u64::from_le(*entry);
            if offset(entry) != 0 {
                return Err(INVALID);
            }
            let len = left.min(PAGE);
            push(out, entry, len);
            left = left.wrapping_sub(len);
        }
        if goes_on && offset(next) != 0 {
            return Err(INVALID);
        }
        at = next;
    }
    Ok(())
}
