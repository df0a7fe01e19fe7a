//! Payloads about the device as a whole.

use bitflags::bitflags;

use super::access::Data;
use super::table::{Payload, Problem, Size, check_argsz, fields, put};

bitflags! {
    /// What kind of device it is (`VFIO_DEVICE_FLAGS_*`). Bits nobody here knows are kept as they came.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DeviceFlags: u32 {
        /// It can be reset.
        const RESET = 1;
        /// It is a PCI function.
        const PCI = 2;
    }
}

/// How many regions and kinds of interrupts are there? All else that the message has is ignored.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryInfo {
    /// How long the reply's payload may be, in bytes.
    pub argsz: u32,
}

/// What a device is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceInfo {
    /// What kind of device it is.
    pub flags: DeviceFlags,
    /// How many regions it has.
    pub num_regions: u32,
    /// How many kinds of interrupts it has.
    pub num_irqs: u32,
}

const INFO_LEN: usize = 16;
/// `struct vfio_device_info` has grown by these in Linux.
const INFO_GROWN: Size = Size { min: INFO_LEN, max: INFO_LEN + 8 };

impl Payload for QueryInfo {
    const SIZE: Size = INFO_GROWN;

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let (argsz, _) = fields(body)?;
        check_argsz(argsz, INFO_LEN)?;
        Ok(Self { argsz })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, 0, 0, 0]);
    }
}

impl Payload for DeviceInfo {
    const SIZE: Size = INFO_GROWN;

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags, num_regions, num_irqs], _) = fields::<[u32; 4]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        Ok(Self { flags: DeviceFlags::from_bits_retain(flags), num_regions, num_irqs })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[INFO_LEN as u32, self.flags.bits(), self.num_regions, self.num_irqs]);
    }
}

/// A feature of the device to get, set or probe, or what it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Feature {
    /// How long the reply's payload may be; in a reply, how long it is. Bytes.
    pub argsz: u32,
    /// The feature (bits 0-15), [`Feature::GET`], [`Feature::SET`], [`Feature::PROBE`].
    pub flags: u32,
    /// What the feature has to say.
    pub data: Data,
}

const FEATURE_LEN: usize = 8;

impl Feature {
    /// `flags`: which feature.
    pub const INDEX: u32 = 0xffff;
    /// `flags`: get it.
    pub const GET: u32 = 1 << 16;
    /// `flags`: set it.
    pub const SET: u32 = 1 << 17;
    /// `flags`: is it there?
    pub const PROBE: u32 = 1 << 18;
}

impl Payload for Feature {
    const SIZE: Size = Size { min: FEATURE_LEN, max: FEATURE_LEN + super::MAX_DATA };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags], rest) = fields::<[u32; 2]>(body)?;
        check_argsz(argsz, FEATURE_LEN)?;
        Ok(Self { argsz, flags, data: Data::decode(rest)? })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, self.flags]);
        put(out, &*self.data);
    }
}

/// Read so many bytes of the device's state.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct MigrationRead {
    /// How long the reply's payload may be, in bytes.
    pub argsz: u32,
    /// Bytes, at most [`MAX_DATA`](super::MAX_DATA).
    pub size: u32,
}

impl Payload for MigrationRead {
    const SIZE: Size = Size::exactly(FEATURE_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, size], _) = fields::<[u32; 2]>(body)?;
        check_argsz(argsz, FEATURE_LEN)?;
        if size as usize > super::MAX_DATA {
            return Err(Problem::TooMuchData { count: size.into() });
        }
        Ok(Self { argsz, size })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, self.size]);
    }
}

/// A piece of the device's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MigrationData(pub Data);

impl Payload for MigrationData {
    const SIZE: Size = Size { min: FEATURE_LEN, max: FEATURE_LEN + super::MAX_DATA };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, size], rest) = fields::<[u32; 2]>(body)?;
        check_argsz(argsz, FEATURE_LEN)?;
        if size as usize != rest.len() {
            return Err(Problem::Body("has a size that differs from its length"));
        }
        Ok(Self(Data::decode(rest)?))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let size = self.0.len() as u32;
        put(out, &[size.saturating_add(FEATURE_LEN as u32), size]);
        put(out, &*self.0);
    }
}
