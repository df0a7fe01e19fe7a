//! Huge pages on loan from the machine.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::Skip;

/// Free huge pages of one size for as long as this lives.
///
/// The number is put back by a small process of its own that waits for the end of its input: it closes when this is dropped, and also when
/// the test is killed.
#[derive(Debug)]
pub struct HugePages {
    page_size: u64,
    keeper: Child,
}

impl HugePages {
    /// See to it that `bytes` can be had in free huge pages of the default size.
    pub fn reserve(bytes: u64) -> Result<HugePages, Skip> {
        let page_size = default_size().ok_or_else(|| Skip("this kernel has no huge pages".into()))?;
        HugePages::reserve_of(page_size, bytes)
    }

    /// See to it that `bytes` can be had in free huge pages of `page_size` bytes.
    pub fn reserve_of(page_size: u64, bytes: u64) -> Result<HugePages, Skip> {
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_size >> 10);
        let pages = format!("huge pages of {} MiB", page_size >> 20);
        let failed = |error: std::io::Error| Skip(format!("no {pages}: {error}"));
        let read = |what: &str| -> Result<u64, Skip> {
            let text = fs::read_to_string(format!("{pool}/{what}")).map_err(failed)?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let count = format!("{pool}/nr_hugepages");
        let wanted = bytes.div_ceil(page_size.max(1));
        let total = read("nr_hugepages")?;
        let keeper = Command::new("sh")
            .args(["-c", &format!("cat >/dev/null; echo {total} > {count}")])
            .process_group(0) // an interrupt typed at the test is not for it
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let loan = HugePages { page_size, keeper };
        for _ in 0..3 {
            let missing = wanted.saturating_sub(read("free_hugepages")?);
            if missing == 0 {
                return Ok(loan);
            }
            fs::write("/proc/sys/vm/compact_memory", "1").ok();
            fs::write(&count, (total + missing).to_string()).map_err(failed)?;
        }
        match read("free_hugepages")? {
            got if got >= wanted => Ok(loan),
            got => Err(Skip(format!("the kernel found {got} of {wanted} {pages}"))),
        }
    }

    /// The size of one, in bytes.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The bytes of a huge page of the default size.
fn default_size() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024).filter(|size| *size > 0)
}
