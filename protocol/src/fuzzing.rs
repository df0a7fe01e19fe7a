//! Every parser as a plain function of a byte slice.
