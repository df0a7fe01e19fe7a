//! The ring against a driver that writes what it likes.

mod both_ends;
pub(crate) mod guest;
mod hostile;
mod legal;
mod naive;
mod notify;
mod oracle;
mod packed;
