//! Who may touch guest memory and how long: IOAS, access, lane, burst, pin.
