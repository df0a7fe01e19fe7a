//! Huge pages on loan from the machine.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::Skip;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// Free huge pages of the default size for as long as this lives.
///
/// The number is put back by a small process of its own that waits for the end of its input: it closes when this is dropped, and also when
/// the test is killed.
#[derive(Debug)]
pub struct HugePages {
    page_size: u64,
    keeper: Child,
}

impl HugePages {
    /// See to it that `bytes` can be had in free huge pages.
    pub fn reserve(bytes: u64) -> Result<HugePages, Skip> {
        let failed = |error: std::io::Error| Skip(format!("no huge pages: {error}"));
        let (_, page_size) = pages().ok_or_else(|| Skip("this kernel has no huge pages".into()))?;
        let wanted = bytes.div_ceil(page_size);
        let before = fs::read_to_string(COUNT).map_err(failed)?;
        let total: u64 = before.trim().parse().unwrap_or(0);
        let keeper = Command::new("sh")
            .args(["-c", &format!("cat >/dev/null; echo {total} > {COUNT}")])
            .process_group(0) // an interrupt typed at the test is not for it
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let loan = HugePages { page_size, keeper };
        let free = || pages().map_or(0, |(free, _)| free);
        for _ in 0..3 {
            let missing = wanted.saturating_sub(free());
            if missing == 0 {
                return Ok(loan);
            }
            fs::write("/proc/sys/vm/compact_memory", "1").ok();
            fs::write(COUNT, (total + missing).to_string()).map_err(failed)?;
        }
        match free() {
            got if got >= wanted => Ok(loan),
            got => Err(Skip(format!("the kernel found {got} of {wanted} huge pages"))),
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

/// How many huge pages are free, and the bytes of one.
fn pages() -> Option<(u64, u64)> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some((field("HugePages_Free")?, field("Hugepagesize")?.checked_mul(1024).filter(|size| *size > 0)?))
}
