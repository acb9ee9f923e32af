//! The machine's memory, as `/proc/meminfo` counts it.

use std::collections::BTreeMap;

use crate::source;
use crate::{Error, Result};

const PATH: &str = "/proc/meminfo";

/// One reading of `/proc/meminfo`: the whole machine, whatever the cgroup.
///
/// Sizes are in bytes (the kernel prints KiB); the few plain counts, such as
/// `HugePages_Total`, are counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meminfo {
    values: BTreeMap<String, u64>,
    /// All memory the kernel manages, in bytes.
    pub total: u64,
    /// Memory nothing is in, in bytes. Low on a healthy machine: the rest
    /// caches files.
    pub free: u64,
    /// What could be had without swapping, in bytes: the kernel's estimate,
    /// and the figure to plan with.
    pub available: u64,
    /// Pages of the slab allocator, in bytes: sockets, inodes, descriptors and
    /// much else.
    pub slab: Option<u64>,
    /// The part of `slab` that cannot be reclaimed, in bytes.
    pub slab_unreclaimable: Option<u64>,
    /// Stacks of threads in the kernel, in bytes.
    pub kernel_stack: Option<u64>,
    /// Page tables, in bytes.
    pub page_tables: Option<u64>,
}

impl Meminfo {
    /// Reads it; some 40 µs.
    ///
    /// On Windows total and available memory (`GlobalMemoryStatusEx`, some microseconds); what is
    /// available is free there, since that call does not tell them apart.
    pub fn read() -> Result<Self> {
        #[cfg(windows)]
        if let Some((available, total)) = crate::system::physical_memory() {
            let values = [("MemTotal", total), ("MemFree", available), ("MemAvailable", available)];
            let values = values.map(|(name, bytes)| (name.to_owned(), bytes)).into();
            return of_values(values);
        }
        parse(&source::read(PATH)?)
    }

    /// A value by the kernel's name (`"Shmem"`, `"Percpu"`), in bytes.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }
}

fn parse(text: &str) -> Result<Meminfo> {
    let mut values = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let bad = || Error::malformed(PATH, format!("`{line}` is not a name and a number"));
        let (name, rest) = line.split_once(':').ok_or_else(bad)?;
        let mut words = rest.split_ascii_whitespace();
        let number: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        let unit = if words.next() == Some("kB") { 1024 } else { 1 };
        values.insert(name.trim().to_owned(), number.saturating_mul(unit));
    }
    of_values(values)
}

fn of_values(values: BTreeMap<String, u64>) -> Result<Meminfo> {
    let need = |name: &str| {
        values.get(name).copied().ok_or_else(|| Error::malformed(PATH, format!("no {name}")))
    };
    Ok(Meminfo {
        total: need("MemTotal")?,
        free: need("MemFree")?,
        available: need("MemAvailable")?,
        slab: values.get("Slab").copied(),
        slab_unreclaimable: values.get("SUnreclaim").copied(),
        kernel_stack: values.get("KernelStack").copied(),
        page_tables: values.get("PageTables").copied(),
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_become_bytes_and_counts_stay() {
        let text = "HugePages_Total: 3\nMemAvailable: 2 kB\nMemFree: 1 kB\nMemTotal: 4 kB\n";
        let info = parse(text).unwrap();
        assert_eq!((info.total, info.available, info.free), (4096, 2048, 1024));
        assert_eq!(info.get("HugePages_Total"), Some(3));
        assert_eq!(info.slab, None);
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in ["", "MemTotal 4 kB\n", "MemTotal: four kB\n", "MemTotal: 4 kB\n"] {
            assert!(matches!(parse(text), Err(Error::Malformed { .. })), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        let info = Meminfo::read().unwrap();
        assert!(info.total > info.available && info.available > 0);
        assert!(info.slab.is_some_and(|slab| slab >= info.slab_unreclaimable.unwrap_or(0)));
    }
}
