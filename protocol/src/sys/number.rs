//! UNSAFETY: ioctl(2) takes an address, and what the kernel does there is known only to whoever knows the number.
//!
//! A [`Number`] is made once, by a table that vouches for its structure; calling it is safe.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An ioctl whose argument is a `T`, or has one at its start.
pub(crate) struct Number<T> {
    opcode: Opcode,
    argument: PhantomData<fn(T)>,
}

/// One call: the number, and where its argument is.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: the only place that makes a `Call` is `perform` below, whose caller vouches for number and argument. What comes
// out is the number that the kernel returned, and no pointer.
unsafe impl Ioctl for Call {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput, Errno> {
        Ok(output)
    }
}

/// Calls with these bytes as the argument.
///
/// # Safety
/// Drivers that know the number touch nothing but these bytes.
unsafe fn perform(fd: BorrowedFd<'_>, opcode: Opcode, argument: &mut [u8]) -> Result<IoctlOutput, Errno> {
    let call = Call { opcode, argument: argument.as_mut_ptr().cast() };
    // SAFETY: the bytes are borrowed for the length of the call, and the caller says that it stays within them.
    unsafe { ioctl(fd, call) }
}

impl<T> Number<T> {
    /// The ioctl of this group and number.
    ///
    /// # Safety
    /// The drivers that know it read and write a `T` and nothing else. Where they go beyond its end, only
    /// [`Number::with_tail`] is used.
    pub(super) const unsafe fn new(direction: Direction, group: u8, number: u8) -> Self {
        Self {
            opcode: opcode::from_components(direction, group, number, size_of::<T>()),
            argument: PhantomData,
        }
    }

    /// As the kernel is told it.
    #[cfg(test)]
    pub(super) fn opcode(&self) -> Opcode {
        self.opcode
    }
}

impl<T: FromBytes + IntoBytes> Number<T> {
    /// Calls with an argument that the kernel may change.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn update(&self, fd: BorrowedFd<'_>, argument: &mut T) -> Result<IoctlOutput, Errno> {
        // SAFETY: who made the number vouches that a `T` is what is read and written, and any bytes are one.
        unsafe { perform(fd, self.opcode, argument.as_mut_bytes()) }
    }

    /// Asks for a value.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn get(&self, fd: BorrowedFd<'_>) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.update(fd, &mut value)?;
        Ok(value)
    }

    /// Hands over a value.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn set(&self, fd: BorrowedFd<'_>, mut value: T) -> Result<(), Errno> {
        self.update(fd, &mut value).map(drop)
    }

    /// Calls with a `T` and what comes behind it.
    ///
    /// # Errors
    /// What the driver answers.
    ///
    /// # Safety
    /// `head` says how many bytes the driver touches behind itself, and `tail` has them.
    pub(super) unsafe fn with_tail(&self, fd: BorrowedFd<'_>, head: &T, tail: &mut [u8]) -> Result<(), Errno>
    where
        T: Immutable,
    {
        let mut argument = Vec::from(head.as_bytes());
        argument.extend_from_slice(tail);
        // SAFETY: the caller vouches that the call stays within the `T` and the bytes behind it.
        unsafe { perform(fd, self.opcode, &mut argument)? };
        if let Some(behind) = argument.get(size_of::<T>()..) {
            tail.copy_from_slice(behind);
        }
        Ok(())
    }
}

impl Number<()> {
    /// Calls without an argument.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn call(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.set(fd, ())
    }
}
