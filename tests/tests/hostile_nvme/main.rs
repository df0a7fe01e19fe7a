//! Hostile clients of an NVMe controller, through a daemon that is a process of its own and its real sockets. The daemon has one worker and
//! two controllers on it: a well-behaved neighbour has verified I/O on one of them all the time, and does not notice what is done to the other.
//!
//! After each case the controller has said what the specification wants it to say; after a reset by its host, and for a new client, it
//! serves; the neighbour has lost nothing and never waited long; and the daemon has the descriptors, mappings and memory that it had before.
//!
//! | module | what is hostile |
//! |---|---|
//! | `prps` | PRP entries: unaligned, wrapping, outside, lists without end, data on top of queues |
//! | `sgls` | SGL descriptors: of unknown kinds, without end, too long, too short, outside |
//! | `queues` | queues that cannot be created, are outside of memory, or over each other |
//! | `doorbells` | doorbells out of range, backwards, of queues that are not there; trapped and mapped |
//! | `bits` | commands with each bit turned that they do not need, and all opcodes |
//! | `commands` | commands at random |
//! | `registers` | accesses of odd sizes at odd places, registers and read-only bits of the configuration space |
//! | `lost` | memory files that shrink, or get holes, with commands in flight |
//! | `unmapped` | memory that is unmapped, resets and deletions, with commands in flight |
//! | `framing` | messages: too long, too short, unknown, in pieces, with descriptors that do not belong there |
//! | `strangers` | clients that read no replies, vanish, come in numbers, or send anything at all |
//! | `interrupts` | interrupts that are not there, and wired to what is no eventfd |
//! | `lenders` | memory that is lent without a descriptor: lies, second, late and mixed up answers, departures |
//! | `silence` | the same memory: no answers, clients that read nothing, as many pieces as there can be |
//! | `twins` | second sockets: answers and commands on the wrong one, sockets that are full or gone |
//! | `maps` | maps that are huge, overlap, are unaligned, or more than there may be |

mod bits;
mod commands;
mod doorbells;
mod framing;
mod house;
mod interrupts;
mod intruder;
mod lenders;
mod line;
mod lost;
mod maps;
mod neighbour;
mod prps;
mod queues;
mod registers;
mod sgls;
mod silence;
mod strangers;
mod trial;
mod twins;
mod unmapped;
