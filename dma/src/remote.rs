//! Memory that is reached by messages: what a peer shares without a file that could be mapped.

use std::{fmt, sync::Arc};

/// Reaches the memory of a peer. Nothing here blocks: each call queues or sends messages, and the answer comes by the
/// [`Reply`], on any thread, or before the call returns. The addresses are the peer's. What was queued and is not
/// [wanted](Reply::is_wanted) any more when its turn comes is not to be sent.
pub trait RemoteMemory: Send + Sync {
    /// Asks for `len` bytes at `address`.
    fn read(&self, address: u64, len: usize, reply: Reply);

    /// Sends bytes to be written at `address`.
    fn write(&self, address: u64, bytes: Vec<u8>, reply: Reply);
}

/// A place in the memory of a peer.
#[derive(Clone)]
pub struct RemoteExtent {
    /// Reaches it.
    pub memory: Arc<dyn RemoteMemory>,
    /// Address of the first byte there.
    pub address: u64,
}

/// What a transfer ended with: the bytes that were read (none of a write), or the error number that the peer gave.
pub type Answer = Result<Vec<u8>, i32>;

/// Ends one transfer. Dropped unused, the transfer has failed \[EIO\].
pub struct Reply {
    end: Option<Box<dyn FnOnce(Answer) + Send>>,
    wanted: Option<Box<dyn Fn() -> bool + Send>>,
}

impl Reply {
    /// Calls `end` once. It must not block.
    pub fn new(end: impl FnOnce(Answer) + Send + 'static) -> Reply {
        Reply { end: Some(Box::new(end)), wanted: None }
    }

    /// The same for a transfer that may be cancelled: `wanted` says whether it still is to be done. It must not block.
    pub fn while_wanted(
        end: impl FnOnce(Answer) + Send + 'static,
        wanted: impl Fn() -> bool + Send + 'static,
    ) -> Reply {
        Reply { end: Some(Box::new(end)), wanted: Some(Box::new(wanted)) }
    }

    /// Whether somebody still waits for it. A transfer that is not wanted any more never will be.
    pub fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted())
    }

    /// The bytes that were read, or none for what was written.
    pub fn done(mut self, bytes: Vec<u8>) {
        self.end(Ok(bytes));
    }

    /// The peer refused, with this error number.
    pub fn failed(mut self, errno: i32) {
        self.end(Err(errno));
    }

    fn end(&mut self, answer: Answer) {
        if let Some(end) = self.end.take() {
            end(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.end(Err(libc::EIO));
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").finish_non_exhaustive()
    }
}

impl fmt::Debug for RemoteExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteExtent({:#x})", self.address)
    }
}

impl RemoteExtent {
    /// Whether both start at the same byte of the same memory.
    pub fn same_place(&self, other: &RemoteExtent) -> bool {
        let (mine, theirs) = (Arc::as_ptr(&self.memory), Arc::as_ptr(&other.memory));
        self.address == other.address && std::ptr::addr_eq(mine, theirs)
    }

    /// The place `len` bytes further on; `None` if that wraps.
    pub fn checked_add(&self, len: u64) -> Option<RemoteExtent> {
        Some(RemoteExtent { memory: self.memory.clone(), address: self.address.checked_add(len)? })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    struct Nowhere(#[allow(dead_code, reason = "so that two of them differ in address")] u8);

    impl RemoteMemory for Nowhere {
        fn read(&self, _address: u64, _len: usize, reply: Reply) {
            reply.failed(libc::EFAULT);
        }

        fn write(&self, _address: u64, _bytes: Vec<u8>, _reply: Reply) {}
    }

    #[test]
    fn transfer_ends_once_and_has_failed_where_nobody_replies() {
        let (end, ended) = channel();
        let reply = || {
            let end = end.clone();
            Reply::new(move |answer| end.send(answer).unwrap())
        };
        let memory = Nowhere(0);
        memory.read(0, 1, reply());
        memory.write(0, vec![1], reply());
        reply().done(vec![2]);
        drop(end);
        let ended: Vec<Answer> = ended.iter().collect();
        assert_eq!(ended, [Err(libc::EFAULT), Err(libc::EIO), Ok(vec![2])]);
    }

    #[test]
    fn reply_says_whether_its_transfer_is_still_wanted() {
        let wanted = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let seen = wanted.clone();
        let reply = Reply::while_wanted(drop, move || seen.load(std::sync::atomic::Ordering::Relaxed));
        assert!(reply.is_wanted() && Reply::new(drop).is_wanted());
        wanted.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(!reply.is_wanted());
    }

    #[test]
    fn places_are_the_same_in_the_same_memory_only() {
        let (one, two): (Arc<dyn RemoteMemory>, Arc<dyn RemoteMemory>) =
            (Arc::new(Nowhere(1)), Arc::new(Nowhere(1)));
        let at = |memory: &Arc<dyn RemoteMemory>, address| RemoteExtent { memory: memory.clone(), address };
        assert!(at(&one, 8).same_place(&at(&one, 0).checked_add(8).unwrap()));
        assert!(!at(&one, 8).same_place(&at(&two, 8)) && !at(&one, 8).same_place(&at(&one, 9)));
        assert!(at(&one, u64::MAX).checked_add(1).is_none());
    }
}
