//! Windows' table of TCP sockets (`GetExtendedTcpTable`), row by row.
//!
//! The system copies the whole table, both ends of loopback connections and every `TIME_WAIT`
//! included; what passes the filter is chosen here. It tells addresses and state of each socket, and neither the depth of an accept queue nor its limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(windows)]
use super::Family;
use super::{Connection, Filter, Listener, State};

/// Bytes of a row: `MIB_TCPROW`, `MIB_TCP6ROW_OWNER_PID` (`tcpmib.h`).
const ROW_V4: usize = 20;
const ROW_V6: usize = 56;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    local: SocketAddr,
    remote: SocketAddr,
    state: Option<State>,
    v6: bool,
}

impl Record {
    #[cfg(windows)]
    pub(super) fn state(&self) -> Option<State> {
        self.state
    }

    /// A queue cannot be seen, so that there is no listener as the type has it.
    #[allow(clippy::unused_self, reason = "the same name as on other systems")]
    pub(super) fn listener(&self) -> Option<Listener> {
        None
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        Some(Connection {
            local: plain(self.local),
            remote: plain(self.remote),
            state: self.state?,
            inode: 0,
            uid: 0,
            rqueue: 0,
            wqueue: 0,
            retransmits: 0,
            v6_socket: self.v6,
            memory: None,
            info: None,
        })
    }

    fn passes(&self, filter: &Filter) -> bool {
        self.state.is_some_and(|state| filter.states.contains(state))
            && filter.local_port.is_none_or(|port| port == self.local.port())
            && filter.remote_port.is_none_or(|port| port == self.remote.port())
            && filter
                .local_address
                .is_none_or(|wanted| wanted.to_canonical() == self.local.ip().to_canonical())
    }
}

/// Calls `each` with the rows of a table that pass the filter.
pub(super) fn rows(bytes: &[u8], v6: bool, filter: &Filter, each: &mut dyn FnMut(&Record)) {
    let Some((count, rows)) = bytes.split_at_checked(4) else { return };
    let count = word(count, 0) as usize;
    let (length, read): (_, fn(&[u8]) -> Record) =
        if v6 { (ROW_V6, row_v6) } else { (ROW_V4, row_v4) };
    for record in rows.chunks_exact(length).take(count).map(read) {
        if record.passes(filter) {
            each(&record);
        }
    }
}

/// Whether a filter asks for sockets of this family.
#[cfg(windows)]
pub(super) fn wanted(filter: &Filter, v6: bool) -> bool {
    match filter.family {
        Family::Any => true,
        Family::V4 => !v6,
        Family::V6 => v6,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
}

/// A port: in network order in the low half of its word.
fn port(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn row_v4(row: &[u8]) -> Record {
    // Addresses are in network order: the bytes as they are.
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(row[at], row[at + 1], row[at + 2], row[at + 3]));
    Record {
        state: state(word(row, 0)),
        local: SocketAddr::new(address(4), port(row, 8)),
        remote: SocketAddr::new(address(12), port(row, 16)),
        v6: false,
    }
}

fn row_v6(row: &[u8]) -> Record {
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&row[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    Record {
        local: SocketAddr::new(address(0), port(row, 20)),
        remote: SocketAddr::new(address(24), port(row, 44)),
        state: state(word(row, 48)),
        v6: true,
    }
}

/// `MIB_TCP_STATE` (`tcpmib.h`); `DELETE_TCB` (12) is none of the protocol's.
fn state(number: u32) -> Option<State> {
    Some(match number {
        1 => State::Close,
        2 => State::Listen,
        3 => State::SynSent,
        4 => State::SynRecv,
        5 => State::Established,
        6 => State::FinWait1,
        7 => State::FinWait2,
        8 => State::CloseWait,
        9 => State::Closing,
        10 => State::LastAck,
        11 => State::TimeWait,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::States;

    fn found(bytes: &[u8], v6: bool, filter: &Filter) -> Vec<Record> {
        let mut all = Vec::new();
        rows(bytes, v6, filter, &mut |record| all.push(*record));
        all
    }

    fn v4(state: u32, local: ([u8; 4], u16), remote: ([u8; 4], u16)) -> Vec<u8> {
        let mut row = state.to_ne_bytes().to_vec();
        for (address, port) in [local, remote] {
            row.extend(address);
            row.extend(port.to_be_bytes());
            row.extend([0; 2]);
        }
        row
    }

    #[test]
    fn rows_are_read_and_chosen_by_the_filter() {
        let here = ([127, 0, 0, 1], 7000);
        let mut table = 3_u32.to_ne_bytes().to_vec();
        table.extend(v4(11, here, ([127, 100, 0, 9], 50_000)));
        table.extend(v4(11, ([127, 100, 0, 9], 50_001), here));
        table.extend(v4(2, here, ([0; 4], 0)));
        // What lies behind the count is not a row.
        table.extend(v4(5, here, here));
        assert_eq!(found(&table, false, &Filter::default()).len(), 3);
        let waiting = Filter::local(7000).states(States::TIME_WAIT);
        let rows = found(&table, false, &waiting);
        assert_eq!(rows.len(), 1);
        let connection = rows[0].connection().unwrap();
        assert_eq!(connection.remote, "127.100.0.9:50000".parse().unwrap());
        assert_eq!(connection.state, State::TimeWait);
        assert_eq!(found(&table, false, &Filter::remote(7000)).len(), 1);
        assert_eq!(rows[0].listener(), None);
    }

    #[test]
    fn a_row_of_ipv6_and_a_table_cut_short() {
        let mut row = vec![0; ROW_V6];
        row[15] = 1;
        row[20..22].copy_from_slice(&443_u16.to_be_bytes());
        row[39] = 1;
        row[44..46].copy_from_slice(&50_000_u16.to_be_bytes());
        row[48..52].copy_from_slice(&5_u32.to_ne_bytes());
        let mut table = 2_u32.to_ne_bytes().to_vec();
        table.extend(&row);
        table.extend(&row[..20]);
        let rows = found(&table, true, &Filter::default());
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].local, "[::1]:443".parse().unwrap());
        assert_eq!(rows[0].remote, "[::1]:50000".parse().unwrap());
        for short in [&[][..], &[1, 0, 0], &[1, 0, 0, 0]] {
            assert!(found(short, false, &Filter::default()).is_empty());
        }
    }
}
