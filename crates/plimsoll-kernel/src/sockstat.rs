//! How many sockets there are, and how many pages TCP holds.

use crate::source;
use crate::{Error, Result};

/// One reading of `/proc/net/sockstat` and `/proc/net/sockstat6`.
///
/// Per network namespace, except for `orphans`, `allocated` and `memory_pages`,
/// which are the whole machine's (`net/ipv4/proc.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sockstat {
    /// Sockets of every family that processes of this namespace hold.
    pub sockets_used: u64,
    /// TCP over IPv4 in use: hashed sockets, listeners included, `TIME_WAIT` not.
    pub tcp_inuse: u64,
    /// TCP over IPv6 in use, or `None` if the kernel has no IPv6.
    pub tcp6_inuse: Option<u64>,
    /// Sockets no process holds any more that still have to deliver or wait.
    /// Bounded by `net.ipv4.tcp_max_orphans`.
    pub orphans: u64,
    /// Sockets in `TIME_WAIT`. Bounded by `net.ipv4.tcp_max_tw_buckets`.
    pub time_wait: u64,
    /// TCP sockets allocated, of IPv4 and IPv6, whatever their state.
    pub allocated: u64,
    /// Pages of buffers that TCP has charged against `net.ipv4.tcp_mem`. Each
    /// CPU keeps up to 1 MiB of changes to itself before it books them
    /// (`SK_MEMORY_PCPU_RESERVE`), so small differences mean nothing.
    pub memory_pages: u64,
}

impl Sockstat {
    /// Reads the figures of the calling thread's network namespace; some 20 µs.
    pub fn read() -> Result<Self> {
        Self::read_below("/proc/thread-self/net")
    }

    /// Reads the figures of the namespace that process `pid` lives in.
    pub fn of(pid: u32) -> Result<Self> {
        Self::read_below(&format!("/proc/{pid}/net")).map_err(|error| source::gone(pid, error))
    }

    fn read_below(folder: &str) -> Result<Self> {
        let path = format!("{folder}/sockstat");
        let text = source::read(&path)?;
        let text6 = source::read_optional(format!("{folder}/sockstat6"));
        parse(&path, &text, text6.as_deref())
    }
}

fn parse(path: &str, text: &str, text6: Option<&str>) -> Result<Sockstat> {
    let need = |group: &str, name: &str| {
        field(text, group, name)
            .ok_or_else(|| Error::malformed(path, format!("no number for `{group}: {name}`")))
    };
    Ok(Sockstat {
        sockets_used: need("sockets", "used")?,
        tcp_inuse: need("TCP", "inuse")?,
        tcp6_inuse: text6.and_then(|text| field(text, "TCP6", "inuse")),
        orphans: need("TCP", "orphan")?,
        time_wait: need("TCP", "tw")?,
        allocated: need("TCP", "alloc")?,
        memory_pages: need("TCP", "mem")?,
    })
}

/// The number after `name` in the line that starts with `group:`.
pub(crate) fn field(text: &str, group: &str, name: &str) -> Option<u64> {
    let line =
        text.lines().find_map(|line| line.split_once(':').filter(|(start, _)| *start == group))?.1;
    let mut words = line.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let value = words.next()?;
        if word == name {
            return value.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "sockets: used 11\nTCP: inuse 1 orphan 2 tw 3 alloc 4 mem 399\nUDP: inuse 0 mem 0\n";
    const SHUFFLED: &str =
        "UDP: inuse 8 mem 9\nTCP: new 6 mem 399 tw 3 orphan 2 inuse 1 alloc 4\nsockets: used 11\n";

    #[test]
    fn fields_are_found_by_name() {
        let one = parse("fixture", TEXT, Some("TCP6: inuse 5\n")).unwrap();
        let other = parse("fixture", SHUFFLED, Some("UDP6: inuse 0\nTCP6: inuse 5\n")).unwrap();
        assert_eq!(one, other);
        assert_eq!((one.time_wait, one.memory_pages, one.tcp6_inuse), (3, 399, Some(5)));
        assert_eq!(parse("fixture", TEXT, None).unwrap().tcp6_inuse, None);
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in ["", "sockets: used\nTCP: inuse 1\n", &TEXT.replace("399", "many")] {
            let error = parse("fixture", text, None).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_is_in_use() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let now = Sockstat::read().unwrap();
        assert!(now.tcp_inuse >= 1 && now.allocated >= 1 && now.sockets_used >= 1, "{now:?}");
    }
}
