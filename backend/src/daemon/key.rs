//! What the control thread's descriptors go by in its poll.

/// A descriptor of the control thread.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Events of workers.
    Events,
    /// The timer.
    Timer,
    /// SIGTERM and SIGINT.
    Stop,
    /// SIGUSR1.
    Print,
    /// SIGHUP.
    Reload,
    /// Questions for counters.
    Counters,
    /// The listening socket of this device.
    Listener(u64),
    /// The socket of this connection.
    Connection(u64),
    /// The world behind this device.
    Outside(u64),
    /// What this connection's session wants to tell its front-end.
    Notices(u64),
}

const KINDS: u64 = 16;

impl Key {
    /// As one number.
    pub(super) fn number(self) -> u64 {
        let (kind, of) = match self {
            Key::Events => (0, 0),
            Key::Timer => (1, 0),
            Key::Stop => (2, 0),
            Key::Print => (3, 0),
            Key::Reload => (4, 0),
            Key::Counters => (5, 0),
            Key::Listener(device) => (6, device),
            Key::Connection(conn) => (7, conn),
            Key::Outside(device) => (8, device),
            Key::Notices(conn) => (9, conn),
        };
        of.wrapping_mul(KINDS).wrapping_add(kind)
    }

    /// From its number.
    pub(super) fn of(number: u64) -> Key {
        let of = number / KINDS;
        match number % KINDS {
            0 => Key::Events,
            1 => Key::Timer,
            2 => Key::Stop,
            3 => Key::Print,
            4 => Key::Reload,
            5 => Key::Counters,
            6 => Key::Listener(of),
            7 => Key::Connection(of),
            8 => Key::Outside(of),
            _ => Key::Notices(of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn every_key_is_what_its_number_says() {
        let fixed = [Key::Events, Key::Timer, Key::Stop, Key::Print, Key::Reload, Key::Counters];
        let counted = [0, 1, 7, 1 << 40]
            .into_iter()
            .flat_map(|of| [Key::Listener(of), Key::Connection(of), Key::Outside(of), Key::Notices(of)]);
        for key in fixed.into_iter().chain(counted) {
            assert_eq!(Key::of(key.number()), key);
        }
    }
}
