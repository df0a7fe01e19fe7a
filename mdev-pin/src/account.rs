//! Accounts: whose limit the pages count against that devices hold in memory (`RLIMIT_MEMLOCK` of the mapping
//! process, `iopt_pages_update_pinned`).

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mdev_dma::faults::{self, Step};

use crate::limits::PAGE;

/// What somebody's memory is charged to, in pages of 4,096 bytes. Cloning shares it. It is a number and a limit: what
/// was charged is released whether or not the process exists for which it stands.
#[derive(Clone, Debug)]
pub struct Account {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: Option<u64>,
    pinned: Mutex<u64>,
}

/// A charge that an account refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} more pages than the {pinned} that are pinned are beyond the owner's limit of {limit}; raise its \
     RLIMIT_MEMLOCK, or pin less"
)]
pub struct OverLimit {
    /// Pages that were to be charged.
    pub wanted: u64,
    /// Pages that were charged already.
    pub pinned: u64,
    /// The limit in pages.
    pub limit: u64,
}

impl Account {
    /// An account of at most `bytes` bytes; what of it is no whole page does not count.
    pub fn new(bytes: u64) -> Account {
        Account::with(bytes.checked_div(PAGE))
    }

    /// An account that refuses nothing, and counts all the same.
    pub fn unlimited() -> Account {
        Account::with(None)
    }

    /// An account with the `RLIMIT_MEMLOCK` (soft) that the process has now. Each call makes an account of its own:
    /// whoever charges one process through several spaces shares one by cloning it.
    ///
    /// # Errors
    ///
    /// There is no such process, or `/proc` does not show its limits.
    pub fn of_process(pid: u32) -> io::Result<Account> {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max locked memory"))
            .and_then(|rest| rest.split_whitespace().next());
        match soft {
            Some("unlimited") => Ok(Account::unlimited()),
            Some(bytes) => bytes
                .parse()
                .map(Account::new)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the process ends, or its limits have no text",
            )),
        }
    }

    /// Pages that are charged now.
    pub fn pinned(&self) -> u64 {
        *self.count()
    }

    /// The limit in pages, if there is one.
    pub fn limit(&self) -> Option<u64> {
        self.inner.limit
    }

    /// Charges all of it or nothing.
    pub(crate) fn charge(&self, pages: u64) -> Result<(), OverLimit> {
        let mut pinned = self.count();
        let sum = pinned.saturating_add(pages);
        // Nothing more is always possible: a change to an account that is full already takes nothing away.
        let limit = self.inner.limit.filter(|limit| pages > 0 && sum > *limit);
        let refused = limit.or_else(|| (pages > 0 && faults::fail(Step::Charge)).then_some(*pinned));
        match refused {
            Some(limit) => Err(OverLimit { wanted: pages, pinned: *pinned, limit }),
            None => {
                *pinned = sum;
                Ok(())
            }
        }
    }

    pub(crate) fn release(&self, pages: u64) {
        let mut pinned = self.count();
        *pinned = pinned.saturating_sub(pages);
    }

    pub(crate) fn is(&self, other: &Account) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn with(limit: Option<u64>) -> Account {
        Account { inner: Arc::new(Inner { limit, pinned: Mutex::new(0) }) }
    }

    fn count(&self) -> MutexGuard<'_, u64> {
        self.inner.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_refuses_what_is_beyond_its_limit_and_keeps_count() {
        let account = Account::new(3 * PAGE + 17);
        assert_eq!((account.limit(), account.pinned()), (Some(3), 0));
        account.charge(2).unwrap();
        assert_eq!(account.charge(2), Err(OverLimit { wanted: 2, pinned: 2, limit: 3 }));
        account.clone().charge(1).unwrap();
        account.charge(0).unwrap();
        account.release(3);
        assert_eq!(account.pinned(), 0);
        let unlimited = Account::unlimited();
        unlimited.charge(u64::MAX).unwrap();
        assert_eq!(unlimited.limit(), None);
    }

    #[test]
    fn account_of_a_process_has_its_limit() {
        let here = Account::of_process(std::process::id()).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        assert_eq!(here.limit(), limit.map(|bytes| bytes / PAGE));
        assert!(Account::of_process(u32::MAX).is_err(), "there is no such process");
    }
}
