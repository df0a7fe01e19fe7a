//! The first message: a version, and capabilities as JSON text.

use serde_json::{Map, Value};

use super::access::MAX_DATA;
use super::table::{FdRule, Payload, Problem, Size, fields, put};
use crate::frame::MAX_FDS;

/// The longest text of capabilities that is taken, in bytes, its terminating NUL included.
pub const MAX_VERSION_DATA: usize = 4096;

/// What the client proposes, or what the server settles: the same major version, a minor one that is not above the
/// proposed, and no capability that was not proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version {
    /// Changes with the format of messages; 0 today.
    pub major: u16,
    /// Changes with what is added; 0 today.
    pub minor: u16,
    /// What the sender can do.
    pub capabilities: Capabilities,
}

/// What the sender of a `VERSION` can do. What it does not say has the specification's value, which is also that of
/// [`Capabilities::default`]. Limits beyond 32 bits are taken as the greatest of 32 bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// The most descriptors it receives with one message.
    pub max_msg_fds: u32,
    /// The most bytes of data it receives or sends in one message, not 0.
    pub max_data_xfer_size: u32,
    /// How many pieces of memory may be lent at the same time.
    pub max_dma_maps: u32,
    /// Page sizes of lent memory, or-ed together, in bytes; not 0.
    pub pgsizes: u64,
    /// Whether `REGION_WRITE_MULTI` may be sent.
    pub write_multiple: bool,
    /// What it says of a second socket for the server's commands.
    pub twin_socket: Option<TwinSocket>,
    /// What it says of migration. (QEMU sends it; the specification has dropped it.)
    pub migration: Option<Migration>,
}

/// A second socket for the server's commands.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TwinSocket {
    /// From a client: it can use one. From a server: it has opened one.
    pub supported: bool,
    /// From a server: which of the descriptors that come along is the client's end.
    pub fd_index: Option<u32>,
}

/// The dirty log of migration, in drafts of the protocol.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Migration {
    /// Bytes that a bit of the log stands for.
    pub pgsize: u64,
    /// The longest log, in bytes.
    pub max_bitmap_size: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: MAX_DATA as u32,
            max_dma_maps: 65535,
            pgsizes: 4096,
            write_multiple: false,
            twin_socket: None,
            migration: None,
        }
    }
}

impl Default for Migration {
    fn default() -> Self {
        Self { pgsize: 4096, max_bitmap_size: 256 << 20 }
    }
}

impl Payload for Version {
    const SIZE: Size = Size { min: 4, max: 4 + MAX_VERSION_DATA };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([major, minor], text) = fields::<[u16; 2]>(body)?;
        // Some send no NUL.
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self { major, minor, capabilities: Capabilities::parse(text)? })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.major, self.minor]);
        out.extend_from_slice(self.capabilities.text().as_bytes());
        out.push(0);
    }

    fn fds(&self) -> FdRule {
        match self.capabilities.twin_socket {
            Some(TwinSocket { fd_index: Some(index), .. }) => {
                FdRule::Between((index as usize).saturating_add(1), MAX_FDS)
            }
            _ => FdRule::NONE,
        }
    }
}

impl Capabilities {
    fn parse(text: &[u8]) -> Result<Self, Problem> {
        let mut found = Self::default();
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(found);
        }
        let data: Value =
            serde_json::from_slice(text).map_err(|error| Problem::NotJson { column: error.column() })?;
        let all = data.as_object().ok_or(wrong("(all)", "is not in an object"))?;
        let Some(all) = object(all, "capabilities")? else { return Ok(found) };
        set(&mut found.max_msg_fds, number(all, "max_msg_fds")?.map(narrow));
        set(&mut found.max_data_xfer_size, positive(all, "max_data_xfer_size")?.map(narrow));
        set(&mut found.max_dma_maps, number(all, "max_dma_maps")?.map(narrow));
        set(&mut found.pgsizes, positive(all, "pgsizes")?);
        set(&mut found.write_multiple, boolean(all, "write_multiple")?);
        if let Some(twin) = object(all, "twin_socket")? {
            found.twin_socket = Some(TwinSocket {
                supported: boolean(twin, "supported")?.unwrap_or_default(),
                fd_index: number(twin, "fd_index")?.map(narrow),
            });
        }
        if let Some(said) = object(all, "migration")? {
            let mut migration = Migration::default();
            set(&mut migration.pgsize, positive(said, "pgsize")?);
            set(&mut migration.max_bitmap_size, number(said, "max_bitmap_size")?);
            found.migration = Some(migration);
        }
        Ok(found)
    }

    /// Themselves as JSON, in the order and with the spaces that QEMU's have.
    fn text(&self) -> String {
        let Self { max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes, .. } = self;
        let mut members = vec![
            format!(r#""pgsizes": {pgsizes}"#),
            format!(r#""max_msg_fds": {max_msg_fds}"#),
            format!(r#""max_dma_maps": {max_dma_maps}"#),
            format!(r#""max_data_xfer_size": {max_data_xfer_size}"#),
        ];
        if let Some(Migration { pgsize, max_bitmap_size }) = self.migration {
            let inner = format!(r#""max_bitmap_size": {max_bitmap_size}, "pgsize": {pgsize}"#);
            members.push(format!(r#""migration": {{{inner}}}"#));
        }
        if let Some(TwinSocket { supported, fd_index }) = self.twin_socket {
            let index = fd_index.map(|index| format!(r#", "fd_index": {index}"#)).unwrap_or_default();
            members.push(format!(r#""twin_socket": {{"supported": {supported}{index}}}"#));
        }
        if self.write_multiple {
            members.push(r#""write_multiple": true"#.into());
        }
        format!(r#"{{"capabilities": {{{}}}}}"#, members.join(", "))
    }
}

fn wrong(key: &'static str, problem: &'static str) -> Problem {
    Problem::Capability { key, problem }
}

fn set<T>(field: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *field = said;
    }
}

fn narrow(limit: u64) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

fn number(all: &Map<String, Value>, key: &'static str) -> Result<Option<u64>, Problem> {
    let whole = |value: &Value| value.as_u64().ok_or(wrong(key, "is not a whole number from 0 to 2^64 - 1"));
    all.get(key).map(whole).transpose()
}

fn positive(all: &Map<String, Value>, key: &'static str) -> Result<Option<u64>, Problem> {
    match number(all, key)? {
        Some(0) => Err(wrong(key, "is 0")),
        other => Ok(other),
    }
}

fn boolean(all: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, Problem> {
    all.get(key).map(|value| value.as_bool().ok_or(wrong(key, "is neither true nor false"))).transpose()
}

fn object<'a>(
    all: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a Map<String, Value>>, Problem> {
    all.get(key).map(|value| value.as_object().ok_or(wrong(key, "is not an object"))).transpose()
}

#[cfg(test)]
mod tests;
