//! Kernel memory by kind of object, from `/proc/slabinfo`. Root only.
//!
//! # What a connection is made of
//!
//! Measured on Linux 6.18 with 5,000 idle loopback connections; "end" is one of
//! the two sockets. Bytes are object size as the allocator rounds it.
//!
//! | objects | bytes | when |
//! |---|---|---|
//! | `TCP` (or `TCPv6`) 2,368, `sock_inode_cache` 832, `filp` 192, `dentry` 192, `lsm_inode_cache` 32, `lsm_file_cache` 24 | 3,640 | each end that a process holds |
//! | `TCP` 2,368, `request_sock_TCP` 320 | 2,688 | the server's end while it waits in the accept queue; the request goes when it is accepted |
//! | `tcp_bind_bucket` 128, `tcp_bind2_bucket` 128 | 256 | each local port in use: once for a server, per connection for clients that let the kernel choose ports |
//! | `eventpoll_epi` 128, `eventpoll_pwq` 64, `ep_head` 16 | 208 | watched by epoll |
//! | `io_kiocb` | 256 | parked in an `io_uring` by a one-shot poll |
//! | `tw_sock_TCP` | 256 | in `TIME_WAIT` |
//!
//! No `kmalloc-*` grows with idle connections. Security modules decide whether the `lsm_*` objects are there and how large.
//! Buffers with data in them are whole pages of `tcp_mem`
//! ([`Sockstat::memory_pages`](crate::sockstat::Sockstat)) and are not here,
//! except for their heads (`skbuff_*`) and small linear parts
//! (`skbuff_small_head`, `kmalloc-*`).
//!
//! # Merged caches
//!
//! SLUB keeps objects of one size and like flags together, and shows them under
//! one name: what is counted as `eventpoll_epi` may be bind buckets too, and
//! `eventpoll_pwq` may be counted as `anon_vma_chain`. Which, depends on the
//! kernel's configuration. [`Slabs::counting`] finds the line that counts a
//! name, and [`Slabs::merged_with`] what else it counts (from the links in
//! `/sys/kernel/slab`). A kernel started with `slab_nomerge` keeps them apart.
//!
//! # Precision
//!
//! `active` is all objects of all slabs less those free on the *node's* lists
//! (`get_slabinfo` in `mm/slub.c`). Free objects of the slab a CPU works on, and
//! of those it holds back (`cpu_partial`; sheaves in newer kernels), count as
//! active. With the kernel's defaults a reading is too high by up to 65 `TCP`,
//! 270 `filp` or `dentry`, 380 `lsm_inode_cache` per CPU, and each end of a
//! difference may err by that much. Seen on two CPUs: with 5,000 connections
//! `TCP` grew by 9,996 or 9,997 for 10,000 sockets, `filp` and `dentry` were
//! within 3 %, `lsm_inode_cache` within 4 %, the bytes of an end within 1 %.
//! Below 1,000 connections the small objects say little. Objects freed by RCU
//! (`filp`, `dentry`) stay active for some milliseconds.
//!
//! Other programs move the counts too. The commonest: whoever reads
//! `/proc/PID/fd` leaves one `proc_inode_cache`, one `dentry` and one
//! `lsm_inode_cache` for each descriptor (0.9 KB, reclaimable);
//! [`Slabs::tcp_delta`] takes these out again.

use std::collections::BTreeMap;
use std::fs;

use crate::source;
use crate::{Error, Result};

const PATH: &str = "/proc/slabinfo";

/// Kinds of objects that belong to TCP connections and to what watches them.
///
/// Not every kernel has them all, and some are counted under another name: see
/// [`Slabs::counting`]. `io_kiocb` is an operation of `io_uring` in flight.
pub const TCP_OBJECTS: &[&str] = &[
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "lsm_inode_cache",
    "lsm_file_cache",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "io_kiocb",
    "skbuff_head_cache",
    "skbuff_fclone_cache",
    "skbuff_small_head",
    "skbuff_ext_cache",
];

/// One cache, or several that the kernel has merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slab {
    /// The kernel's name of it, or the first of those merged.
    pub name: String,
    /// Objects in use, and those free that a CPU holds: see the module's text.
    pub active: u64,
    /// Objects there is room for.
    pub total: u64,
    /// Bytes of one object, with its padding and metadata.
    pub object_size: u64,
    /// Objects in one slab.
    pub objects_per_slab: u64,
    /// Pages of one slab.
    pub pages_per_slab: u64,
    /// Slabs held: `slabs × pages_per_slab` pages are taken from the machine.
    pub slabs: u64,
}

impl Slab {
    /// Bytes of the objects in use.
    pub fn active_bytes(&self) -> u64 {
        self.active.saturating_mul(self.object_size)
    }

    /// Pages taken from the machine.
    pub fn pages(&self) -> u64 {
        self.slabs.saturating_mul(self.pages_per_slab)
    }
}

/// What has changed in one cache between two readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlabDelta {
    /// The cache.
    pub name: String,
    /// Objects more (or fewer) in use.
    pub objects: i64,
    /// Bytes of one object.
    pub object_bytes: u64,
    /// `objects × object_bytes`.
    pub bytes: i64,
}

/// One reading of `/proc/slabinfo`: the whole machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slabs {
    slabs: Vec<Slab>,
    aliases: Aliases,
}

impl Slabs {
    /// Reads all caches, and which names are merged. Costs 1 to 2 ms, and the
    /// kernel holds the allocator's mutex meanwhile: not for a hot loop.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for anybody but root.
    pub fn read() -> Result<Self> {
        let slabs = parse(&source::read(PATH)?)?;
        Ok(Self { slabs, aliases: Aliases::read() })
    }

    /// Caches as a recorded `/proc/slabinfo` has them; no name is merged with another.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is none.
    pub fn of_text(text: &str) -> Result<Self> {
        Ok(Self { slabs: parse(text)?, aliases: Aliases::default() })
    }

    /// The line of this very name.
    pub fn get(&self, name: &str) -> Option<&Slab> {
        self.slabs.iter().find(|slab| slab.name == name)
    }

    /// The line that counts objects of this name: its own, or that of a cache
    /// it was merged with. `None` if this kernel has no such objects.
    pub fn counting(&self, name: &str) -> Option<&Slab> {
        self.get(name)
            .or_else(|| self.slabs.iter().find(|slab| self.aliases.are_merged(name, &slab.name)))
    }

    /// The other names whose objects are counted together with `name`'s, sorted.
    pub fn merged_with(&self, name: &str) -> Vec<&str> {
        self.aliases.others(name)
    }

    /// All lines, in the kernel's order.
    pub fn iter(&self) -> impl Iterator<Item = &Slab> {
        self.slabs.iter()
    }

    /// Every cache whose count has moved since `earlier`, by bytes, largest
    /// first. A cache that has appeared or gone counts from or to 0.
    pub fn delta(&self, earlier: &Self) -> Vec<SlabDelta> {
        let mut moved: Vec<SlabDelta> = Vec::new();
        for slab in &self.slabs {
            let before = earlier.get(&slab.name).map_or(0, |slab| slab.active);
            moved.extend(difference(slab, before, slab.active));
        }
        for slab in earlier.slabs.iter().filter(|slab| self.get(&slab.name).is_none()) {
            moved.extend(difference(slab, slab.active, 0));
        }
        moved.sort_by_key(|delta| std::cmp::Reverse(delta.bytes.unsigned_abs()));
        moved
    }

    /// The part of [`delta`](Self::delta) that counts [`TCP_OBJECTS`]: what
    /// connections cost. A merged cache is in it once, with all that it counts.
    ///
    /// The change of `proc_inode_cache` is taken off `dentry` and
    /// `lsm_inode_cache`: each such inode has one of either, and is somebody's
    /// look at `/proc`, not a socket. (With 18,000 sockets and 15,226 such
    /// inodes: 33,201 dentries, 17,975 after that.)
    pub fn tcp_delta(&self, earlier: &Self) -> Vec<SlabDelta> {
        let mut moved = self.delta(earlier);
        let looks = moved.iter().find(|delta| delta.name == "proc_inode_cache");
        let looks = looks.map_or(0, |delta| delta.objects);
        moved.retain_mut(|delta| {
            if ["dentry", "lsm_inode_cache"].contains(&delta.name.as_str()) {
                delta.objects = delta.objects.saturating_sub(looks);
                delta.bytes = delta.objects.saturating_mul(delta.object_bytes as i64);
            }
            delta.objects != 0 && self.counts_tcp(&delta.name)
        });
        moved
    }

    fn counts_tcp(&self, slab: &str) -> bool {
        TCP_OBJECTS.iter().any(|name| *name == slab || self.aliases.are_merged(name, slab))
    }
}

fn difference(slab: &Slab, before: u64, now: u64) -> Option<SlabDelta> {
    let objects = now.wrapping_sub(before) as i64;
    (objects != 0).then(|| SlabDelta {
        name: slab.name.clone(),
        objects,
        object_bytes: slab.object_size,
        bytes: objects.saturating_mul(slab.object_size as i64),
    })
}

/// Which names are links to one cache: name → the cache's own name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Aliases {
    targets: BTreeMap<String, String>,
}

impl Aliases {
    /// Reads the links of `/sys/kernel/slab`; empty where it is not there.
    fn read() -> Self {
        let entries = fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten();
        let targets = entries.filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let target = target.file_name()?.to_str()?.to_owned();
            Some((entry.file_name().into_string().ok()?, target))
        });
        Self { targets: targets.collect() }
    }

    fn are_merged(&self, one: &str, other: &str) -> bool {
        self.targets.get(one).is_some_and(|target| self.targets.get(other) == Some(target))
    }

    fn others(&self, name: &str) -> Vec<&str> {
        let same = self.targets.keys().filter(|other| self.are_merged(name, other));
        same.map(String::as_str).filter(|other| *other != name).collect()
    }
}

/// Parses the lines by the names in the line that starts with `# name`.
///
/// The words of that line and of the others match one to one, counted from the
/// end, so that a name with a space in it does no harm.
fn parse(text: &str) -> Result<Vec<Slab>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("# name"));
    let header =
        lines.next().ok_or_else(|| Error::malformed(PATH, "no line that starts with `# name`"))?;
    let titles: Vec<&str> = header.split_ascii_whitespace().skip(2).collect();
    let column = |title: &str| {
        titles
            .iter()
            .position(|other| *other == title)
            .ok_or_else(|| Error::malformed(PATH, format!("no column {title}")))
    };
    let columns = [
        column("<active_objs>")?,
        column("<num_objs>")?,
        column("<objsize>")?,
        column("<objperslab>")?,
        column("<pagesperslab>")?,
        column("<num_slabs>")?,
    ];
    lines
        .filter(|line| !line.trim().is_empty())
        .map(|line| parse_line(line, titles.len(), columns))
        .collect()
}

fn parse_line(line: &str, titles: usize, columns: [usize; 6]) -> Result<Slab> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let bad = || Error::malformed(PATH, format!("`{line}` does not match its header"));
    let names = words.len().checked_sub(titles).filter(|names| *names > 0).ok_or_else(bad)?;
    let (name, values) = words.split_at(names);
    let mut numbers = [0_u64; 6];
    for (number, column) in numbers.iter_mut().zip(columns) {
        *number = values[column].parse().map_err(|_| bad())?;
    }
    let [active, total, object_size, objects_per_slab, pages_per_slab, slabs] = numbers;
    let name = name.join(" ");
    Ok(Slab { name, active, total, object_size, objects_per_slab, pages_per_slab, slabs })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n";
    const SHUFFLED: &str =
        "# name <objsize> <new> <num_objs> <active_objs> <num_slabs> <pagesperslab> <objperslab>\n";

    fn slabs(text: &str) -> Slabs {
        Slabs { slabs: parse(text).unwrap(), aliases: Aliases::default() }
    }

    #[test]
    fn columns_are_found_by_name() {
        let one =
            slabs(&format!("{HEADER}TCP 10 13 2368 13 8 : tunables 0 0 0 : slabdata 1 1 0\n"));
        let other = slabs(&format!("{SHUFFLED}TCP 2368 99 13 10 1 8 13\n"));
        assert_eq!(one, other);
        let tcp = one.get("TCP").unwrap();
        assert_eq!((tcp.active_bytes(), tcp.pages()), (23_680, 8));
    }

    #[test]
    fn a_difference_is_signed_and_sorted_by_bytes() {
        let one = slabs(&format!(
            "{SHUFFLED}gone 8 0 9 2 1 1 1\nTCP 100 0 9 5 1 1 1\nfilp 10 0 9 9 1 1 1\n"
        ));
        let other = slabs(&format!("{SHUFFLED}TCP 100 0 9 8 1 1 1\nfilp 10 0 9 4 1 1 1\n"));
        let delta = other.delta(&one);
        let brief: Vec<_> = delta.iter().map(|d| (d.name.as_str(), d.objects, d.bytes)).collect();
        assert_eq!(brief, [("TCP", 3, 300), ("filp", -5, -50), ("gone", -2, -16)]);
        assert_eq!(other.tcp_delta(&one).len(), 2);
    }

    #[test]
    fn merged_names_are_found_through_their_links() {
        let mut slabs = slabs(&format!("{SHUFFLED}anon_vma_chain 64 0 9 5 1 1 1\n"));
        for name in ["anon_vma_chain", "eventpoll_pwq"] {
            slabs.aliases.targets.insert(name.to_owned(), ":A-0000064".to_owned());
        }
        assert_eq!(slabs.get("eventpoll_pwq"), None);
        assert_eq!(slabs.counting("eventpoll_pwq").unwrap().name, "anon_vma_chain");
        assert_eq!(slabs.merged_with("eventpoll_pwq"), ["anon_vma_chain"]);
        assert_eq!(slabs.counting("none"), None);
    }

    #[test]
    fn a_name_with_a_space_is_kept_whole() {
        let slabs = slabs(&format!("{SHUFFLED}odd name 64 0 9 5 1 1 1\n"));
        assert_eq!(slabs.get("odd name").unwrap().active, 5);
    }

    #[test]
    fn looks_at_proc_are_taken_off() {
        let one = slabs(SHUFFLED);
        let other = slabs(&format!(
            "{SHUFFLED}TCP 100 0 9 8 1 1 1\ndentry 10 0 9 20 1 1 1\nproc_inode_cache 50 0 9 12 1 1 1\n"
        ));
        let delta = other.tcp_delta(&one);
        let brief: Vec<_> = delta.iter().map(|d| (d.name.as_str(), d.objects, d.bytes)).collect();
        assert_eq!(brief, [("TCP", 8, 800), ("dentry", 8, 80)]);
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in [
            String::new(),
            "# name <active_objs>\nTCP 1\n".to_owned(),
            format!("{SHUFFLED}TCP 1 2\n"),
            format!("{SHUFFLED}TCP 1 2 3 x 5 6 7\n"),
        ] {
            assert!(matches!(parse(&text), Err(Error::Malformed { .. })), "{text}");
        }
    }

    /// Sockets made meanwhile by other programs move the counts, and so do those
    /// that end: a few attempts, one of which must come out right.
    #[cfg(target_os = "linux")]
    #[test]
    fn sockets_are_seen_as_the_objects_they_consist_of() {
        if let Err(error @ Error::Unreadable { .. }) = Slabs::read() {
            eprintln!("skipped: {error}");
            return;
        }
        let limit = crate::limits::Limits::read().nofile.map_or(0, |limit| limit.soft);
        let connections = (limit.saturating_sub(400) / 2).min(2000) as i64;
        if connections < 1000 {
            eprintln!("skipped: needs 2,400 descriptors, `ulimit -n` is {limit}");
            return;
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            seen = grown_by(connections);
            let near = |name: &str| {
                let grown = seen.iter().find(|d| d.name == name).map_or(0, |d| d.objects);
                (grown - 2 * connections).abs() <= connections / 5
            };
            if near("TCP") && near("sock_inode_cache") {
                return;
            }
        }
        panic!("{connections} connections, and {seen:?}");
    }

    #[cfg(target_os = "linux")]
    fn grown_by(connections: i64) -> Vec<SlabDelta> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let before = Slabs::read().unwrap();
        let held: Vec<_> = (0..connections)
            .map(|_| {
                let client = std::net::TcpStream::connect(address).unwrap();
                // It resets as it closes, and so leaves no TIME_WAIT behind.
                let at_once = Some(std::time::Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&client, at_once).unwrap();
                (client, listener.accept().unwrap())
            })
            .collect();
        let grown = Slabs::read().unwrap().tcp_delta(&before);
        drop(held);
        grown
    }
}
