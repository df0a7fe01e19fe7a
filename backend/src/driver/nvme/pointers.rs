//! Where a command's data is: PRP entries or an SGL descriptor (base specification, sections 4.1.1 and 4.1.2).

use mdev_dma::Iova;
use mdev_protocol::nvme::command::{PSDT_PRP, PSDT_SGL};
use mdev_protocol::nvme::data::{SGL_DATA_BLOCK, SglDescriptor};

use crate::driver::Part;

/// Bytes of data that a command has at most here.
pub const MOST_DATA: u32 = 1 << 20;
const PAGE: u64 = 4096;
/// Bytes of a PRP entry.
const ENTRY: u64 = 8;

/// How a command says where its data is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Pointers {
    /// A PRP entry for each page, of more than two in a list.
    Prp,
    /// One SGL descriptor.
    Sgl,
}

impl Pointers {
    /// As written on the command line and in names of results.
    pub fn name(self) -> &'static str {
        match self {
            Pointers::Prp => "prp",
            Pointers::Sgl => "sgl",
        }
    }

    /// What a command says of it in the PSDT field.
    pub fn psdt(self) -> u8 {
        match self {
            Pointers::Prp => PSDT_PRP,
            Pointers::Sgl => PSDT_SGL,
        }
    }

    /// The data pointer of `len` bytes at `at`, more than none. A list, if it takes one, is written to `list`, which has
    /// `list_size` bytes at least and lies in one page.
    pub fn of(self, at: Iova, len: u32, list: &Part) -> [u64; 2] {
        match self {
            Pointers::Sgl => SglDescriptor::new(SGL_DATA_BLOCK, at.0, len).pointer(),
            Pointers::Prp => prp(at.0, len.into(), list),
        }
    }
}

/// Bytes of the list of PRP entries that so many bytes of data may take, wherever they lie: a power of two.
pub(super) fn list_size(capacity: u32) -> u64 {
    let pages = u64::from(capacity).div_ceil(PAGE) + 1;
    (pages * ENTRY).next_power_of_two()
}

fn prp(at: u64, len: u64, list: &Part) -> [u64; 2] {
    let second = (at / PAGE + 1) * PAGE;
    let end = at + len;
    if end <= second {
        return [at, 0];
    }
    if end <= second + PAGE {
        return [at, second];
    }
    let pages = (end - second).div_ceil(PAGE);
    if let Some(entries) = list.range(0, pages * ENTRY) {
        for number in 0..pages {
            let _ = entries.write((number * ENTRY) as usize, (second + number * PAGE).to_le());
        }
    }
    [at, list.at.0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{GuestMemory, MemoryOptions};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prp_entries_name_every_page_once_and_only_the_first_has_an_offset(
            dword in 0u64..1024,
            len in prop_oneof![1u64..20_000, 1u64..=u64::from(MOST_DATA)],
        ) {
            let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
            let list = memory.allocate(list_size(len as u32), list_size(len as u32)).unwrap();
            let first = (1 << 20) + dword * 4;
            let [one, two] = Pointers::Prp.of(Iova(first), len as u32, &list);
            let last = first + len - 1;
            let wanted: Vec<u64> = (first / PAGE + 1..=last / PAGE).map(|page| page * PAGE).collect();
            let found: Vec<u64> = match wanted.len() {
                0 => vec![],
                1 => vec![two],
                count => {
                    prop_assert_eq!(two, list.at.0);
                    prop_assert_eq!(two / PAGE, (two + 8 * count as u64 - 1) / PAGE, "a list lies in one page");
                    (0..count).map(|number| list.slice().unwrap().read(number * 8).unwrap()).collect()
                }
            };
            prop_assert_eq!((one, found), (first, wanted));
        }
    }

    #[test]
    fn sgl_pointer_is_one_descriptor_of_all_the_data() {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let list = memory.allocate(16, 16).unwrap();
        let pointer = Pointers::Sgl.of(Iova(0x1234), 70_000, &list);
        let found = SglDescriptor::from_pointer(pointer);
        assert_eq!((found.address, found.len, found.kind()), (0x1234, 70_000, SGL_DATA_BLOCK));
    }
}
