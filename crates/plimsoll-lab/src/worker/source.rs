//! Source addresses: the second dimension of a client's ports.
//!
//! A connection is named by both addresses and both ports. Towards one
//! destination a source address has as many connections as
//! `net.ipv4.ip_local_port_range` has ports (28,232 as Linux is delivered);
//! then `connect` fails with `EADDRNOTAVAIL`. The way on is another source
//! address. Towards loopback Linux takes any address of `127.0.0.0/8` as a
//! source without configuration; IPv6 has `::1` only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::{Error, Result};

/// A block of addresses, from `ADDRESS/PREFIX` or a single address.
///
/// Of an IPv4 block of 4 and more, the first address and the last (the network's and the broadcast
/// address) are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    count: u64,
}

impl AddressRange {
    /// Every address of `127.0.0.0/8` that can be a source.
    pub const LOOPBACK: Self =
        Self { first: IpAddr::V4(Ipv4Addr::LOCALHOST), count: (1 << 24) - 2 };

    /// How many addresses there are; at most 2⁶³.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The address number `index`, from 0; `None` past the end. O(1).
    pub fn nth(&self, index: u64) -> Option<IpAddr> {
        if index >= self.count {
            return None;
        }
        Some(match self.first {
            // The constructor keeps first + count inside the family's space.
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) + index as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + u128::from(index)).into(),
        })
    }
}

impl FromStr for AddressRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::usage(
                format!("`{text}` is not a block of source addresses: {why}"),
                "give ADDRESS or ADDRESS/PREFIX, such as 127.0.0.0/8 or 10.0.0.5",
            )
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => {
                (address, Some(prefix.parse::<u32>().map_err(|_| bad("the prefix is no number"))?))
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad("the address cannot be read"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(width);
        if prefix > width {
            return Err(bad(&format!("the prefix is larger than {width}")));
        }
        let free = width - prefix;
        let size = if free >= 63 { 1 << 63 } else { 1_u64 << free };
        Ok(match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(free).unwrap_or(0);
                let network = u32::from(address) & mask;
                let edge = u32::from(size >= 4);
                Self {
                    first: Ipv4Addr::from(network + edge).into(),
                    count: size - 2 * u64::from(edge),
                }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(free).unwrap_or(0);
                Self { first: Ipv6Addr::from(u128::from(address) & mask).into(), count: size }
            }
        })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nth(self.count.saturating_sub(1)) {
            Some(last) if self.count > 1 => write!(out, "{}–{last}", self.first),
            _ => write!(out, "{}", self.first),
        }
    }
}

/// The addresses a connection may be made from: an address to bind to, or `None` to leave the
/// choice to the route.
pub type Source = Option<IpAddr>;

/// Hands out source addresses to workers, one at a time.
///
/// A fresh address each time while there are any, so that two workers do not search the same
/// ports; after that the ones that still have ports are shared.
#[derive(Debug, Clone)]
pub struct SourcePool {
    range: Option<AddressRange>,
    handed: u64,
    /// Handed out, and not known to be out of ports.
    open: Vec<Source>,
    turn: usize,
}

impl SourcePool {
    /// The sources towards `target`: what was asked for; else, towards IPv4 loopback,
    /// `127.0.0.0/8`; else the route's address.
    ///
    /// # Errors
    /// [`Error::Usage`] when the block's family is not the target's.
    pub fn new(target: SocketAddr, asked: Option<AddressRange>) -> Result<Self> {
        let range = match asked {
            Some(range) if range.first.is_ipv4() != target.is_ipv4() => {
                return Err(Error::usage(
                    format!(
                        "the source addresses {range} and the target {target} differ in family"
                    ),
                    "give sources of the target's family, or none",
                ));
            }
            Some(range) => Some(range),
            None if target.is_ipv4() && target.ip().is_loopback() => Some(AddressRange::LOOPBACK),
            None => None,
        };
        Ok(Self { range, handed: 0, open: Vec::new(), turn: 0 })
    }

    /// How many addresses there are to choose from; 1 where the route decides.
    pub fn size(&self) -> u64 {
        self.range.map_or(1, |range| range.count)
    }

    /// How many were handed out so far.
    pub fn used(&self) -> u64 {
        self.handed
    }

    /// A source for one worker; `None` when all are out of ports.
    pub fn take(&mut self) -> Option<Source> {
        let fresh = match &self.range {
            Some(range) => range.nth(self.handed).map(Some),
            None => (self.handed == 0).then_some(None),
        };
        if let Some(source) = fresh {
            self.handed += 1;
            self.open.push(source);
            return Some(source);
        }
        if self.open.is_empty() {
            return None;
        }
        self.turn = (self.turn + 1) % self.open.len();
        Some(self.open[self.turn])
    }

    /// Says that `connect` from `source` failed with `EADDRNOTAVAIL`.
    pub fn exhausted(&mut self, source: Source) {
        self.open.retain(|other| *other != source);
    }

    /// Whether every address was handed out and is out of ports.
    pub fn is_empty(&self) -> bool {
        self.handed >= self.size() && self.open.is_empty()
    }

    /// The addresses in words, for evidence.
    pub fn describe(&self) -> String {
        match &self.range {
            Some(range) => range.to_string(),
            None => "the route's address".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read() {
        let range: AddressRange = "127.0.0.0/8".parse().unwrap();
        assert_eq!(range, AddressRange::LOOPBACK);
        assert_eq!(range.nth(0), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(range.nth(range.count() - 1), Some("127.255.255.254".parse().unwrap()));
        assert_eq!(range.nth(range.count()), None);
        let one: AddressRange = "10.1.2.3".parse().unwrap();
        assert_eq!((one.count(), one.nth(0)), (1, Some("10.1.2.3".parse().unwrap())));
        let two: AddressRange = "10.1.2.3/31".parse().unwrap();
        assert_eq!((two.count(), two.nth(0)), (2, Some("10.1.2.2".parse().unwrap())));
        let all: AddressRange = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.nth(all.count() - 1), Some("255.255.255.254".parse().unwrap()));
        let six: AddressRange = "fd00::/120".parse().unwrap();
        assert_eq!((six.count(), six.nth(255)), (256, Some("fd00::ff".parse().unwrap())));
        assert_eq!("::/0".parse::<AddressRange>().unwrap().count(), 1 << 63);
        for bad in ["", "127.0.0.1/33", "127.0.0/8", "::1/129", "127.0.0.1/x"] {
            assert_eq!(bad.parse::<AddressRange>().unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn fresh_addresses_first_then_shared_then_none() {
        let target = "127.0.0.1:7000".parse().unwrap();
        let mut pool = SourcePool::new(target, Some("127.0.0.4/31".parse().unwrap())).unwrap();
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(one, two);
        assert_eq!(pool.used(), 2);
        pool.exhausted(one);
        assert_eq!(pool.take(), Some(two));
        assert!(!pool.is_empty());
        pool.exhausted(two);
        assert_eq!(pool.take(), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn the_route_decides_elsewhere() {
        let mut pool = SourcePool::new("[::1]:7000".parse().unwrap(), None).unwrap();
        assert_eq!(pool.take(), Some(None));
        assert_eq!(pool.take(), Some(None));
        pool.exhausted(None);
        assert_eq!(pool.take(), None);
        let mixed = SourcePool::new("[::1]:7000".parse().unwrap(), Some(AddressRange::LOOPBACK));
        assert_eq!(mixed.unwrap_err().exit_code(), 2);
    }
}
