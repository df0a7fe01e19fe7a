//! Does it hold: naive models, hostile generators, the lab with real peers.
