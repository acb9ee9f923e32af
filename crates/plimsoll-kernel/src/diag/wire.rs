//! The bytes of a request, and of a socket's record.
//!
//! Records are read in place: a dump of a million sockets allocates nothing.
//! Extensions grow from kernel to kernel, so each field is taken by its offset
//! if the kernel sent that much.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLA_HEADER_SIZE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NlasIterator,
};
use netlink_packet_sock_diag::constants::{
    INET_DIAG_INFO, INET_DIAG_SKMEMINFO, INET_DIAG_SKV6ONLY, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};

use super::{Connection, Filter, Listener, SkMem, State, TcpInfo};

/// `struct inet_diag_msg`: family, state, timer, retransmits; the socket's id
/// (ports, addresses, interface, cookie: 48 bytes); five numbers.
const RECORD_BYTES: usize = 72;

/// `INET_DIAG_REQ_BYTECODE`, and the one instruction used of it.
const BYTECODE: u16 = 1;
const BC_SOURCE: u8 = 7;

/// The whole message that asks for the sockets of one family.
pub(super) fn request(family: u8, filter: &Filter) -> Vec<u8> {
    let mut extensions = ExtensionFlags::empty();
    extensions.set(ExtensionFlags::SKMEMINFO, filter.memory);
    extensions.set(ExtensionFlags::INFO, filter.info);
    // The kernel compares the ports of the id in a dump too, before it runs any
    // bytecode (`inet_diag_dump_icsk`, `tcp_diag_dump`); 0 is any port.
    let body = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions,
        states: StateFlags::from_bits_retain(filter.states.bits()),
        socket_id: SocketId {
            source_port: filter.local_port.unwrap_or(0),
            destination_port: filter.remote_port.unwrap_or(0),
            ..SocketId::new_v4()
        },
    };
    let condition = filter.local_address.map(|address| address_condition(family, address));
    let condition = condition.unwrap_or_default();

    let mut header = NetlinkHeader::default();
    let length = header.buffer_len() + body.buffer_len() + condition.len();
    header.length = length as u32;
    header.message_type = SOCK_DIAG_BY_FAMILY;
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;

    let mut bytes = vec![0; length];
    let (head, rest) = bytes.split_at_mut(header.buffer_len());
    let (middle, tail) = rest.split_at_mut(body.buffer_len());
    header.emit(head);
    body.emit(middle);
    tail.copy_from_slice(&condition);
    bytes
}

/// A bytecode program of one instruction: the source address equals `address`.
///
/// `struct inet_diag_bc_op { code: u8, yes: u8, no: u16 }`, then `struct
/// inet_diag_hostcond { family: u8, prefix_len: u8, port: i32 }` and the
/// address. A jump to the program's end accepts, one 4 bytes past it refuses.
/// The kernel compares an IPv4 condition with a mapped address by itself
/// (`inet_diag_bc_run`), so one program does for both families of socket.
fn address_condition(family: u8, address: IpAddr) -> Vec<u8> {
    let (kind, octets): (i32, Vec<u8>) = match address.to_canonical() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    debug_assert!(i32::from(family) == libc::AF_INET6 || kind == libc::AF_INET);
    let program = 4 + 8 + octets.len();
    let mut bytes = Vec::with_capacity(4 + program);
    bytes.extend_from_slice(&(4 + program as u16).to_ne_bytes());
    bytes.extend_from_slice(&BYTECODE.to_ne_bytes());
    bytes.extend_from_slice(&[BC_SOURCE, program as u8]);
    bytes.extend_from_slice(&(program as u16 + 4).to_ne_bytes());
    bytes.extend_from_slice(&[kind as u8, octets.len() as u8 * 8, 0, 0]);
    bytes.extend_from_slice(&(-1_i32).to_ne_bytes());
    bytes.extend_from_slice(&octets);
    bytes
}

/// A socket's record, not yet decoded.
pub(super) struct Record<'a> {
    fixed: &'a [u8; RECORD_BYTES],
    attributes: &'a [u8],
}

impl<'a> Record<'a> {
    /// `None` if the payload is shorter than a record.
    pub(super) fn new(payload: &'a [u8]) -> Option<Self> {
        let (fixed, attributes) = payload.split_first_chunk()?;
        Some(Self { fixed, attributes })
    }

    pub(super) fn state(&self) -> Option<State> {
        State::from_kernel(self.fixed[1])
    }

    /// The record of a listener; `None` if it is none.
    pub(super) fn listener(&self) -> Option<Listener> {
        if self.state() != Some(State::Listen) {
            return None;
        }
        let v6_only = self.attribute(INET_DIAG_SKV6ONLY).and_then(<[u8]>::first);
        Some(Listener {
            local: self.address(4, 8)?,
            depth: self.number(56),
            limit: self.number(60),
            inode: self.number(68),
            uid: self.number(64),
            dual: self.is_v6() && self.raw_ip(8)?.is_unspecified() && v6_only == Some(&0),
        })
    }

    /// The record of any other socket; `None` for a listener.
    pub(super) fn connection(&self) -> Option<Connection> {
        let state = self.state().filter(|state| *state != State::Listen)?;
        Some(Connection {
            local: self.address(4, 8)?,
            remote: self.address(6, 24)?,
            state,
            inode: self.number(68),
            uid: self.number(64),
            rqueue: self.number(56),
            wqueue: self.number(60),
            retransmits: self.fixed[3],
            v6_socket: self.is_v6(),
            memory: self.attribute(INET_DIAG_SKMEMINFO).map(memory),
            info: self.attribute(INET_DIAG_INFO).map(info),
        })
    }

    fn is_v6(&self) -> bool {
        i32::from(self.fixed[0]) == libc::AF_INET6
    }

    fn number(&self, offset: usize) -> u32 {
        u32_at(self.fixed, offset)
    }

    fn raw_ip(&self, offset: usize) -> Option<IpAddr> {
        let octets = self.fixed.get(offset..)?;
        match i32::from(self.fixed[0]) {
            libc::AF_INET => Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(*octets.first_chunk::<16>()?).into()),
            _ => None,
        }
    }

    fn address(&self, port: usize, ip: usize) -> Option<SocketAddr> {
        let port = u16::from_be_bytes([self.fixed[port], self.fixed[port + 1]]);
        Some(SocketAddr::new(self.raw_ip(ip)?.to_canonical(), port))
    }

    fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        if self.attributes.is_empty() {
            return None;
        }
        // A broken attribute ends the walk: what comes after has no known start.
        NlasIterator::new(self.attributes)
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == kind)
            .and_then(|attribute| {
                let length = usize::from(attribute.length());
                attribute.into_inner().get(NLA_HEADER_SIZE..length)
            })
    }
}

/// `SK_MEMINFO_*` of `include/uapi/linux/sock_diag.h`: an array of numbers.
fn memory(bytes: &[u8]) -> SkMem {
    let number = |index: usize| u32_at(bytes, index * 4);
    SkMem {
        rmem: number(0),
        rcvbuf: number(1),
        wmem: number(2),
        sndbuf: number(3),
        fwd_alloc: number(4),
        wmem_queued: number(5),
        optmem: number(6),
        backlog: number(7),
        drops: number(8),
    }
}

/// `struct tcp_info`; the offsets have never changed, it only grows.
fn info(bytes: &[u8]) -> TcpInfo {
    let micros = |offset| Duration::from_micros(u32_at(bytes, offset).into());
    let millis = |offset| Duration::from_millis(u32_at(bytes, offset).into());
    TcpInfo {
        rto: micros(8),
        send_mss: u32_at(bytes, 16),
        unacked: u32_at(bytes, 24),
        since_sent: millis(44),
        since_received: millis(52),
        rtt: micros(68),
        rtt_deviation: micros(72),
        cwnd: u32_at(bytes, 80),
        retrans: u32_at(bytes, 100),
        bytes_acked: u64_at(bytes, 120),
        bytes_received: u64_at(bytes, 128),
        notsent_bytes: u32_at(bytes, 144),
        rtt_min: micros(148),
        window_limited: Duration::from_micros(u64_at(bytes, 176)),
    }
}

/// The number at an offset; 0 if the kernel did not send that much.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u64::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(family: libc::c_int, state: u8) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_BYTES];
        bytes[0] = family as u8;
        bytes[1] = state;
        bytes[4..8].copy_from_slice(&[0x1b, 0x58, 0x00, 0x50]);
        bytes[8..12].copy_from_slice(&[127, 0, 0, 1]);
        bytes[56..60].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[60..64].copy_from_slice(&16_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_request_has_the_length_it_states() {
        for (address, length) in [(None, 72), (Some([127, 0, 0, 1]), 72 + 20)] {
            let local_address = address.map(IpAddr::from);
            let bytes = request(libc::AF_INET as u8, &Filter { local_address, ..Filter::local(7) });
            assert_eq!(bytes.len(), length);
            assert_eq!(u32_at(&bytes, 0) as usize, length);
        }
    }

    #[test]
    fn a_listeners_record_is_read() {
        let bytes = fixed(libc::AF_INET, 10);
        let listener = Record::new(&bytes).unwrap().listener().unwrap();
        assert_eq!(listener.local, "127.0.0.1:7000".parse().unwrap());
        assert_eq!((listener.depth, listener.limit, listener.dual), (5, 16, false));
        assert_eq!(Record::new(&bytes).unwrap().connection(), None);
    }

    #[test]
    fn short_and_broken_records_are_not_read_past_their_end() {
        let mut bytes = fixed(libc::AF_INET, 1);
        assert!(Record::new(&bytes[..RECORD_BYTES - 1]).is_none());
        // A meminfo cut after two numbers, then an attribute with a length of 1.
        bytes.extend_from_slice(&12_u16.to_ne_bytes());
        bytes.extend_from_slice(&INET_DIAG_SKMEMINFO.to_ne_bytes());
        bytes.extend_from_slice(&7_u32.to_ne_bytes());
        bytes.extend_from_slice(&9_u32.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0, 2, 0]);
        let connection = Record::new(&bytes).unwrap().connection().unwrap();
        assert_eq!(connection.memory, Some(SkMem { rmem: 7, rcvbuf: 9, ..SkMem::default() }));
        assert_eq!(connection.info, None);
    }

    #[test]
    fn an_unknown_family_or_state_is_left_out() {
        assert_eq!(Record::new(&fixed(libc::AF_UNIX, 1)).unwrap().connection(), None);
        assert_eq!(Record::new(&fixed(libc::AF_INET, 99)).unwrap().state(), None);
        assert_eq!(Record::new(&fixed(libc::AF_INET, 0)).unwrap().state(), None);
    }
}
