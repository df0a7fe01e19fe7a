//! Constants and layouts of NVM Express: the base specification 2.0 and the NVM command set specification 1.0, as far as a
//! controller of memory (PCI Express) needs them.
//!
//! Names are those of the specifications, in full where their abbreviations say nothing. All numbers are little-endian. Lengths
//! and counts that the specifications call "0's based" are told as such: they stay as they travel.

pub mod command;
pub mod data;
pub mod event;
pub mod feature;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod register;
pub mod status;

#[cfg(test)]
mod tests;
