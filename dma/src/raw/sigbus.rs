//! UNSAFETY: a signal handler, the calls that install it, and the mapping it makes over a lost page.
//!
//! Containment of SIGBUS: a guest's owner can shrink its memory file, punch it, or let tmpfs or the huge page pool run
//! dry, and whoever touches such a page gets SIGBUS. The handler puts one page of zeros there, counts, and returns, and
//! the access goes on. What it read is worthless; the count tells (see [`super::table`]). A window that loses many
//! pages is replaced as a whole.
//!
//! The handler calls nothing but `mmap` and `sigaction`, which are bare system calls, takes no lock and does not
//! allocate. It runs on the thread that made the access, so the window cannot go away under it. A thread that blocks
//! SIGBUS must not touch guest memory: the kernel would kill the process.
//!
//! A SIGBUS that is not about a window goes where it would have gone without us: to the handler installed before, or
//! to the default, which ends the process.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::mapping::overlay;
use super::table;

/// `si_code`: a memory error in a page that nobody has touched yet (asm-generic/siginfo.h).
const BUS_MCEERR_AO: libc::c_int = 5;

/// What SIGBUS did before. Set before our handler is installed, never changed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once in a process.
pub(crate) fn contain_sigbus() -> io::Result<()> {
    if cfg!(miri) {
        // No page is ever lost there, and there is no signal.
        return Ok(());
    }
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let previous = set_action(None)?;
    PREVIOUS.get_or_init(|| previous);
    let mut action = default_action();
    action.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternate stack where a thread has one, as the handler that was there may be about a stack overflow.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    set_action(Some(&action))?;
    *installed = true;
    Ok(())
}

/// The default action for any signal.
fn default_action() -> libc::sigaction {
    // SAFETY: a sigaction of zeros is SIG_DFL, with an empty mask and no flag.
    unsafe { std::mem::zeroed() }
}

/// Sets the action of SIGBUS, or only asks, and returns the one before.
fn set_action(action: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut before = default_action();
    let action = action.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both point to a sigaction or are null; a handler given here is `on_sigbus`, which is fit for it.
    if unsafe { libc::sigaction(libc::SIGBUS, action, &mut before) } == 0 {
        Ok(before)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The handler.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, machine: *mut libc::c_void) {
    // SAFETY: errno of this thread; the interrupted code must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: SA_SIGINFO: the kernel passes a siginfo that is valid until the handler returns.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Codes from the kernel are positive; `si_addr` means something with those only.
    let raised_by_access = code > 0;
    if !(raised_by_access && contain(code, address)) {
        forward(signal, info, machine, raised_by_access);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros where a page was lost. `false` if `address` is not in a window.
fn contain(code: libc::c_int, address: usize) -> bool {
    let Some(found) = table::find(address) else { return false };
    if code == BUS_MCEERR_AO {
        // Sent to any thread, which need not hold the window: it may be unmapped right now. Whoever touches the page
        // gets a signal of its own.
        return true;
    }
    let alone = found.count_poison();
    let window = found.entry;
    let page = window.page.min(window.len);
    // The base is aligned to the page size of its file, and the length a multiple of it.
    let start = address - (address - window.base) % page;
    // SAFETY: both ranges are whole pages of the window that the interrupted thread holds.
    unsafe {
        alone && overlay(start, page, window.writable) || overlay(window.base, window.len, window.writable)
    }
}

/// Does with a foreign SIGBUS what would have been done without us.
fn forward(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    machine: *mut libc::c_void,
    raised_by_access: bool,
) {
    let previous = PREVIOUS.get().copied().unwrap_or_else(default_action);
    match previous.sa_sigaction {
        libc::SIG_IGN if !raised_by_access => {}
        // An access that faults cannot be ignored: the kernel kills the process then, and so do we.
        libc::SIG_DFL | libc::SIG_IGN => {
            // With the default back in place the access faults again when we return; a signal that was sent must be
            // sent again, and is delivered when we return.
            let restored = set_action(Some(&default_action())).is_ok();
            if !raised_by_access && restored {
                // SAFETY: raise may be called in a handler.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: with SA_SIGINFO, and neither SIG_DFL nor SIG_IGN, this is what the field holds.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, machine);
        }
        handler => {
            // SAFETY: without SA_SIGINFO, and neither SIG_DFL nor SIG_IGN, this is what the field holds.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests;
