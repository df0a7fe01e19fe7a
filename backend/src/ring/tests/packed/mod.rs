//! Packed rings: every legal layout against a naive driver, every illegal one by name.

mod guest;
mod hostile;
mod in_order;
mod legal;
mod naive;
mod notify;
