//! What the tests of several sessions share.

pub(super) mod mock;
