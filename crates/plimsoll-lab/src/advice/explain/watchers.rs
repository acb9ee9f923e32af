//! What watches the connections: epoll's items and `io_uring`'s rings, from `/proc/PID/fdinfo`.
//!
//! Formats: `ep_show_fdinfo` in `fs/eventpoll.c`, `io_uring_show_fdinfo` in `io_uring/fdinfo.c`.
//! What cannot be read counts as 0.

use std::fs;
use std::path::Path;

/// Bytes of an entry of the submission queue, and of the completion queue, as they are by default.
const SQE_BYTES: u64 = 64;
const CQE_BYTES: u64 = 16;

/// The watchers of some processes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watchers {
    /// Descriptors in epoll sets.
    pub(super) epoll_items: u64,
    /// Rings.
    pub(super) rings: u64,
    /// Bytes of the rings' two queues.
    pub(super) ring_bytes: u64,
    /// Places in the rings' tables of direct descriptors.
    pub(super) direct_files: u64,
    /// Operations that wait for readiness (polls, and receives that found nothing).
    pub(super) ring_polls: u64,
}

impl Watchers {
    /// Reads the links of every descriptor, and fdinfo of the few that watch.
    pub(super) fn of(pids: &[u32]) -> Self {
        let mut all = Self::default();
        for pid in pids {
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                let Ok(link) = fs::read_link(entry.path()) else { continue };
                let info = || {
                    let path = Path::new("/proc")
                        .join(pid.to_string())
                        .join("fdinfo")
                        .join(entry.file_name());
                    fs::read_to_string(path).unwrap_or_default()
                };
                match link.to_str() {
                    Some("anon_inode:[eventpoll]") => all.add_epoll(&info()),
                    Some("anon_inode:[io_uring]") => all.add_ring(&info()),
                    _ => {}
                }
            }
        }
        all
    }

    /// Whether anything is watched at all.
    pub(super) fn watch(&self) -> bool {
        self.epoll_items > 0 || self.rings > 0
    }

    fn add_epoll(&mut self, info: &str) {
        self.epoll_items += info.lines().filter(|line| line.starts_with("tfd:")).count() as u64;
    }

    fn add_ring(&mut self, info: &str) {
        let number = |name: &str| {
            let text =
                info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim();
            match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        let entries = |mask: &str| number(mask).map_or(0, |mask: u64| mask.saturating_add(1));
        self.rings += 1;
        self.ring_bytes = self
            .ring_bytes
            .saturating_add(entries("SqMask").saturating_mul(SQE_BYTES))
            .saturating_add(entries("CqMask").saturating_mul(CQE_BYTES));
        self.direct_files = self.direct_files.saturating_add(number("UserFiles").unwrap_or(0));
        let polls = info.lines().skip_while(|line| *line != "PollList:").skip(1);
        self.ring_polls +=
            polls.take_while(|line| line.trim_start().starts_with("op=")).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_items_are_its_targets() {
        let mut all = Watchers::default();
        all.add_epoll(
            "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data: 5 pos:0\ntfd: 6\n",
        );
        all.add_epoll("");
        assert_eq!(all.epoll_items, 2);
    }

    #[test]
    fn a_ring_is_its_queues_files_and_polls() {
        let mut all = Watchers::default();
        all.add_ring(
            "SqMask:\t0xff\nSqHead:\t1\nCqMask:\t0x1ff\nUserFiles:\t1000\nUserBufs:\t0\nPollList:\n  op=6, task_works=0\n  op=6, task_works=0\nCqOverflowList:\n",
        );
        assert_eq!((all.rings, all.ring_bytes), (1, 256 * 64 + 512 * 16));
        assert_eq!((all.direct_files, all.ring_polls), (1000, 2));
    }

    #[test]
    fn hostile_text_counts_nothing() {
        let mut all = Watchers::default();
        for info in [
            "SqMask:\t0xffffffffffffffff\n",
            "SqMask:\t0x\nUserFiles:\t-1\n",
            "PollList:\nx\nop=1\n",
            "\0",
        ] {
            all.add_ring(info);
        }
        assert_eq!((all.direct_files, all.ring_polls, all.rings), (0, 0, 4));
    }
}
