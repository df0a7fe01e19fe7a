//! How far a queue is, in the two layouts of a ring.

use crate::virtio::packed::Position;

/// How far a queue is: where a device goes on that takes it over.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum VqState {
    /// A split ring (`struct vduse_vq_state_split`): the next index of the available ring. Whatever was made available before
    /// has been used.
    Split {
        /// The index, which wraps at 65536.
        avail_index: u16,
    },
    /// A packed ring (`struct vduse_vq_state_packed`).
    Packed {
        /// Where the next descriptor is taken from, below slot 32768.
        avail: Position,
        /// Where the next used one goes, below slot 32768.
        used: Position,
    },
}

/// The bits of a slot. The kernel looks at no others.
const SLOT: u16 = 0x7fff;

impl VqState {
    /// The state in the kernel's words, which do not tell the layout. As in the kernel, bits that no counter and no slot have
    /// are left out.
    pub(super) fn from_words(words: [u16; 4], packed: bool) -> Self {
        let [first, ..] = words;
        if !packed {
            return Self::Split { avail_index: first };
        }
        let [avail_counter, avail, used_counter, used] = words;
        let position = |counter, slot| Position { slot: slot & SLOT, wrap: counter & 1 == 1 };
        Self::Packed { avail: position(avail_counter, avail), used: position(used_counter, used) }
    }

    /// The kernel's words for it.
    pub(super) fn to_words(self) -> [u16; 4] {
        match self {
            Self::Split { avail_index } => [avail_index, 0, 0, 0],
            Self::Packed { avail, used } => {
                [u16::from(avail.wrap), avail.slot & SLOT, u16::from(used.wrap), used.slot & SLOT]
            }
        }
    }
}
