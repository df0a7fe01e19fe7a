//! Block devices under verified load while somebody is killed, or takes something away.

mod daemon;
mod killed;
mod released;
