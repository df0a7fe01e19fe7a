//! The `mdevd` binary.
fn main() {}
