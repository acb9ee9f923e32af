//! The counters of TCP: overflows, drops, retransmissions, resets.
//!
//! They are totals since the network namespace was made, shared by all that
//! runs in it: take two readings and look at the difference. Another
//! program's traffic in the same namespace moves them too.

use std::collections::BTreeMap;

use crate::source;
use crate::{Error, Result};

/// One reading of `/proc/net/netstat` and `/proc/net/snmp`.
///
/// The names of the group `TcpExt` stand alone (`ListenOverflows`,
/// `ListenDrops`, `TCPTimeWaitOverflow`); those of every other group carry the
/// group's name and a dot (`Tcp.PassiveOpens`, `Tcp.CurrEstab`,
/// `Ip.InReceives`, `MPTcpExt.…`).
///
/// Names and meanings: `net/ipv4/proc.c` and `include/uapi/linux/snmp.h`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netstat {
    counters: BTreeMap<String, u64>,
}

impl Netstat {
    /// Reads the counters of the calling thread's network namespace.
    ///
    /// The kernel sums some 400 counters over all possible CPUs: about 0.2 ms.
    pub fn read() -> Result<Self> {
        Self::read_below("/proc/thread-self/net")
    }

    /// Reads the counters of the namespace that process `pid` lives in.
    pub fn of(pid: u32) -> Result<Self> {
        Self::read_below(&format!("/proc/{pid}/net")).map_err(|error| source::gone(pid, error))
    }

    /// A counter by name, or `None` if this kernel does not have it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.counters.get(name).copied()
    }

    /// How far a counter has moved since `earlier`; `None` if either reading
    /// lacks it. Negative only for what is a gauge, such as `Tcp.CurrEstab`.
    pub fn delta(&self, earlier: &Self, name: &str) -> Option<i64> {
        let (now, then) = (self.get(name)?, earlier.get(name)?);
        // Counters wrap; the difference of two readings is right all the same.
        Some(now.wrapping_sub(then) as i64)
    }

    /// All counters that have moved since `earlier`, in order of name.
    pub fn delta_all(&self, earlier: &Self) -> Vec<(String, i64)> {
        self.counters
            .keys()
            .filter_map(|name| Some((name.clone(), self.delta(earlier, name)?)))
            .filter(|(_, moved)| *moved != 0)
            .collect()
    }

    /// All counters, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn read_below(folder: &str) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for file in ["netstat", "snmp"] {
            let path = format!("{folder}/{file}");
            parse(&path, &source::read(&path)?, &mut counters)?;
        }
        Ok(Self { counters })
    }
}

/// Counters that were recorded: names as [`Netstat`] has them, and values.
impl<'a> FromIterator<(&'a str, u64)> for Netstat {
    fn from_iter<I: IntoIterator<Item = (&'a str, u64)>>(counters: I) -> Self {
        let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { counters }
    }
}

/// Parses pairs of lines, names and then values, each with the group's name in
/// front. A value below zero (`Tcp.MaxConn` is −1) is no counter: left out.
fn parse(path: &str, text: &str, counters: &mut BTreeMap<String, u64>) -> Result<()> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    while let Some(names) = lines.next() {
        let values = lines
            .next()
            .ok_or_else(|| Error::malformed(path, "the last line of names has no values"))?;
        let (group, names) = split_group(path, names)?;
        let (group_of_values, values) = split_group(path, values)?;
        if group != group_of_values {
            let why = format!("names of {group} are followed by values of {group_of_values}");
            return Err(Error::malformed(path, why));
        }
        let names: Vec<&str> = names.split_ascii_whitespace().collect();
        let values: Vec<&str> = values.split_ascii_whitespace().collect();
        if names.len() != values.len() {
            let why = format!("{group} has {} names and {} values", names.len(), values.len());
            return Err(Error::malformed(path, why));
        }
        for (name, value) in names.into_iter().zip(values) {
            let full = if group == "TcpExt" { name.to_owned() } else { format!("{group}.{name}") };
            match value.parse::<u64>() {
                Ok(number) => {
                    counters.insert(full, number);
                }
                Err(_) if value.parse::<i64>().is_ok() => {}
                Err(_) => {
                    let why = format!("{full} is `{value}`, not a number");
                    return Err(Error::malformed(path, why));
                }
            }
        }
    }
    Ok(())
}

fn split_group<'a>(path: &str, line: &'a str) -> Result<(&'a str, &'a str)> {
    line.split_once(':').ok_or_else(|| {
        let start: String = line.chars().take(20).collect();
        Error::malformed(path, format!("the line `{start}…` names no group"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Netstat> {
        let mut counters = BTreeMap::new();
        parse("fixture", text, &mut counters)?;
        Ok(Netstat { counters })
    }

    #[test]
    fn columns_are_found_by_name() {
        let one = parsed("TcpExt: A ListenOverflows B\nTcpExt: 1 7 2\n").unwrap();
        let other = parsed("TcpExt: ListenOverflows New A B\nTcpExt: 9 5 1 2\n").unwrap();
        assert_eq!(one.get("ListenOverflows"), Some(7));
        assert_eq!(other.get("ListenOverflows"), Some(9));
        assert_eq!(other.delta(&one, "ListenOverflows"), Some(2));
        assert_eq!(other.delta(&one, "New"), None);
        assert_eq!(other.delta_all(&one), [("ListenOverflows".to_owned(), 2)]);
    }

    #[test]
    fn other_groups_carry_their_name_and_gauges_may_fall() {
        let text = "Tcp: MaxConn CurrEstab\nTcp: -1 5\nIpExt: InOctets\nIpExt: 3\n";
        let one = parsed(text).unwrap();
        assert_eq!(one.get("Tcp.CurrEstab"), Some(5));
        assert_eq!(one.get("Tcp.MaxConn"), None);
        assert_eq!(one.get("IpExt.InOctets"), Some(3));
        let other = parsed("Tcp: CurrEstab\nTcp: 1\n").unwrap();
        assert_eq!(other.delta(&one, "Tcp.CurrEstab"), Some(-4));
    }

    #[test]
    fn a_wrapped_counter_still_has_its_difference() {
        let one = parsed(&format!("TcpExt: A\nTcpExt: {}\n", u64::MAX)).unwrap();
        let other = parsed("TcpExt: A\nTcpExt: 4\n").unwrap();
        assert_eq!(other.delta(&one, "A"), Some(5));
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in [
            "TcpExt: A B\nTcpExt: 1\n",
            "TcpExt: A\n",
            "TcpExt: A\nIpExt: 1\n",
            "TcpExt: A\nTcpExt: one\n",
            "no group here\n1 2 3\n",
        ] {
            assert!(matches!(parsed(text), Err(Error::Malformed { .. })), "{text}");
        }
        assert_eq!(parsed("").unwrap().iter().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_kernel_has_the_counters_we_rest_on() {
        let now = Netstat::read().unwrap();
        for name in ["ListenOverflows", "ListenDrops", "Tcp.PassiveOpens", "Tcp.CurrEstab"] {
            assert!(now.get(name).is_some(), "{name}");
        }
        assert!(Netstat::of(std::process::id()).unwrap().get("ListenDrops").is_some());
    }
}
