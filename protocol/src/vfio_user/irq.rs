//! Payloads about interrupts.

use bitflags::bitflags;

use super::table::{FdRule, Payload, Problem, Size, check_argsz, fields, put};
use crate::frame::{DoesNotFit, MAX_FDS};

/// The most interrupts one `DEVICE_SET_IRQS` is about: as many vectors as MSI-X has.
pub const MAX_IRQS: usize = 2048;

bitflags! {
    /// What a kind of interrupt can do (`VFIO_IRQ_INFO_*`). Bits nobody here knows are kept as they came.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IrqFlags: u32 {
        /// It can be signalled by an eventfd.
        const EVENTFD = 1;
        /// It can be masked and unmasked.
        const MASKABLE = 2;
        /// It masks itself when it is triggered.
        const AUTOMASKED = 4;
        /// Its number is set once; all are to be disabled before it changes.
        const NORESIZE = 8;
    }
}

/// What is this kind of interrupt? All else that the message has is ignored.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryIrq {
    /// How long the reply's payload may be, in bytes.
    pub argsz: u32,
    /// Which kind.
    pub index: u32,
}

/// What a kind of interrupt is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IrqInfo {
    /// What it can do.
    pub flags: IrqFlags,
    /// Which kind.
    pub index: u32,
    /// How many there are of it.
    pub count: u32,
}

const INFO_LEN: usize = 16;

impl Payload for QueryIrq {
    const SIZE: Size = Size::exactly(INFO_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, _, index], _) = fields::<[u32; 3]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        Ok(Self { argsz, index })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, 0, self.index, 0]);
    }
}

impl Payload for IrqInfo {
    const SIZE: Size = Size::exactly(INFO_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags, index, count], _) = fields::<[u32; 4]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        Ok(Self { flags: IrqFlags::from_bits_retain(flags), index, count })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[INFO_LEN as u32, self.flags.bits(), self.index, self.count]);
    }
}

/// What is to happen to interrupts; with eventfds, what they are to tell of.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IrqAction {
    /// They are masked.
    Mask,
    /// They are unmasked.
    Unmask,
    /// They are triggered.
    Trigger,
}

/// Which interrupts of a range are meant, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IrqData {
    /// So many. With [`IrqAction::Trigger`], none from 0 means that the whole kind is disabled.
    None {
        /// How many.
        count: u32,
    },
    /// Those that are true, of at least one.
    Bool(Vec<bool>),
    /// So many, at least one: an eventfd for each comes along, or none at all, which takes back those that there are.
    Eventfd {
        /// How many.
        count: u32,
    },
}

/// Wire, mask or trigger interrupts. At most [`MAX_IRQS`] are meant, and the range does not wrap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetIrqs {
    index: u32,
    start: u32,
    action: IrqAction,
    data: IrqData,
}

const SET_LEN: usize = 20;
const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 2;
const DATA_EVENTFD: u32 = 4;
const DATA_MASK: u32 = 7;
const ACTION_MASK: u32 = 8;
const ACTION_UNMASK: u32 = 16;
const ACTION_TRIGGER: u32 = 32;

impl SetIrqs {
    /// Does `action` to the interrupts of the kind `index` that `data` means, the first of which is `start`.
    pub fn new(index: u32, start: u32, action: IrqAction, data: IrqData) -> Result<Self, DoesNotFit> {
        let set = Self { index, start, action, data };
        DoesNotFit::check("interrupts", set.count() as usize, MAX_IRQS)?;
        let last = u64::from(start).saturating_add(set.count().into());
        DoesNotFit::check("interrupts", last as usize, u32::MAX as usize)?;
        Ok(set)
    }

    /// Which kind of interrupt.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The first that is meant.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// How many are meant from there on.
    pub fn count(&self) -> u32 {
        match &self.data {
            IrqData::None { count } | IrqData::Eventfd { count } => *count,
            IrqData::Bool(those) => those.len() as u32,
        }
    }

    /// What is to happen to them.
    pub fn action(&self) -> IrqAction {
        self.action
    }

    /// Which of them, and how.
    pub fn data(&self) -> &IrqData {
        &self.data
    }
}

impl Payload for SetIrqs {
    const SIZE: Size = Size { min: SET_LEN, max: SET_LEN + MAX_IRQS };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags, index, start, count], rest) = fields::<[u32; 5]>(body)?;
        check_argsz(argsz, SET_LEN)?;
        let action = match flags & !DATA_MASK {
            ACTION_MASK => IrqAction::Mask,
            ACTION_UNMASK => IrqAction::Unmask,
            ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(Problem::Body("asks for no action, or for more than one")),
        };
        let (data, bytes) = match flags & DATA_MASK {
            DATA_NONE => (IrqData::None { count }, 0),
            DATA_EVENTFD => (IrqData::Eventfd { count }, 0),
            DATA_BOOL => (IrqData::Bool(rest.iter().map(|byte| *byte != 0).collect()), count),
            _ => return Err(Problem::Body("has no kind of data, or more than one")),
        };
        if rest.len() != bytes as usize {
            return Err(Problem::Body("has a count that differs from its length"));
        }
        if count == 0 && !matches!(data, IrqData::None { .. }) {
            return Err(Problem::Body("has data about no interrupt"));
        }
        Self::new(index, start, action, data)
            .map_err(|_| Problem::Body("is about more interrupts than there are"))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let action = match self.action {
            IrqAction::Mask => ACTION_MASK,
            IrqAction::Unmask => ACTION_UNMASK,
            IrqAction::Trigger => ACTION_TRIGGER,
        };
        let (data, those): (_, &[bool]) = match &self.data {
            IrqData::None { .. } => (DATA_NONE, &[]),
            IrqData::Bool(those) => (DATA_BOOL, those),
            IrqData::Eventfd { .. } => (DATA_EVENTFD, &[]),
        };
        let argsz = those.len().saturating_add(SET_LEN) as u32;
        put(out, &[argsz, action | data, self.index, self.start, self.count()]);
        put(out, those);
    }

    fn fds(&self) -> FdRule {
        match self.data {
            IrqData::Eventfd { count } if count as usize <= MAX_FDS => FdRule::NoneOr(count as usize),
            _ => FdRule::NONE,
        }
    }
}
