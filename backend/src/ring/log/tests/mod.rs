//! Logs: every end of a process, and every lie.

pub(in super::super) mod crash;
mod hostile;
mod killed;
mod rig;
