//! Hostile front-ends and guests, each on the worker that a well-behaved guest is on: what they do has a name, and the other one does not
//! notice.
//!
//! | module | what is hostile |
//! |---|---|
//! | `chains` | descriptors: loops, indices out of range, addresses and lengths that wrap, no length, wrong order |
//! | `indirect` | indirect tables: odd size, empty, oversized, nested, looping, outside memory |
//! | `packed` | packed rings: ids, chains and tables that may not be, positions out of range, flags that turn |
//! | `placement` | rings outside of memory, over each other, misaligned, over their own buffers |
//! | `files` | memory that is no memory, too short, overlapping, to be read only |
//! | `descriptors` | file descriptors: missing, surplus, no eventfd, full, always readable |
//! | `lost` | memory files that shrink, or get holes, under traffic |
//! | `leaving` | front-ends that vanish at any instant |
//! | `messages` | a hundred thousand messages at random |
//! | `replies` | front-ends that do not read what they asked for |
//! | `together` | several front-ends on one device |
//! | `daemon` | the same through the daemon's own socket |
//! | `inband` | kicks by messages: for rings that are not there, floods of them, calls that nobody reads |
//! | `greed` | more regions, terabytes, longer chains, more connections than is decent |
//! | `iotlb` | behind an IOMMU: translations that cannot be, that go at any time, that have no end; answers to nothing |
//! | `races` | rings that change while they are read |
//! | `scattered` | behind an IOMMU: rings in scattered pages that move, are lost, or do not meet |
//! | `removed` | memory that is taken away by messages, under traffic |

mod chains;
mod daemon;
mod descriptors;
mod files;
mod greed;
mod inband;
mod indirect;
mod iotlb;
mod latched;
mod leaving;
mod lost;
mod messages;
mod packed;
mod placement;
mod races;
mod removed;
mod replies;
mod scattered;
mod together;
