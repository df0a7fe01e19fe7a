//! How to use the access layer: short programs that teach one thing each.
