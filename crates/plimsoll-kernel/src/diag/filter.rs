//! Which sockets are asked for.

use std::net::IpAddr;
use std::ops::{BitOr, Sub};

/// A state of a TCP socket, as RFC 9293 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of RFC 9293")]
pub enum State {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl State {
    /// All states, in the kernel's order.
    pub const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
    ];

    /// The state with the kernel's number (`include/net/tcp_states.h`), from 1.
    /// `TCP_NEW_SYN_RECV` (12) is an unfinished handshake like `SYN_RECV`.
    #[cfg(target_os = "linux")]
    pub(super) fn from_kernel(number: u8) -> Option<Self> {
        match number {
            12 => Some(Self::SynRecv),
            _ => Self::ALL.get(usize::from(number).checked_sub(1)?).copied(),
        }
    }

    const fn bit(self) -> u32 {
        // `ALL` is in the declared order, and the kernel counts from 1.
        1 << (self as u32 + 1)
    }
}

/// A set of states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States(u32);

#[allow(missing_docs, reason = "the names are those of RFC 9293")]
impl States {
    pub const ESTABLISHED: Self = Self(State::Established.bit());
    pub const SYN_SENT: Self = Self(State::SynSent.bit());
    pub const SYN_RECV: Self = Self(State::SynRecv.bit());
    pub const FIN_WAIT1: Self = Self(State::FinWait1.bit());
    pub const FIN_WAIT2: Self = Self(State::FinWait2.bit());
    pub const TIME_WAIT: Self = Self(State::TimeWait.bit());
    pub const CLOSE: Self = Self(State::Close.bit());
    pub const CLOSE_WAIT: Self = Self(State::CloseWait.bit());
    pub const LAST_ACK: Self = Self(State::LastAck.bit());
    pub const LISTEN: Self = Self(State::Listen.bit());
    pub const CLOSING: Self = Self(State::Closing.bit());
    /// Every state, listeners included.
    pub const ALL: Self = Self(0x0ffe);

    /// Whether the set has this state.
    pub const fn contains(self, state: State) -> bool {
        self.0 & state.bit() != 0
    }

    #[cfg(target_os = "linux")]
    pub(super) const fn bits(self) -> u32 {
        self.0
    }
}

impl From<State> for States {
    fn from(state: State) -> Self {
        Self(state.bit())
    }
}

impl BitOr for States {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Sub for States {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Of which kind the *socket* is; IPv4 clients may be served by one of IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    /// Both: two dumps, each over the whole table.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only, with those that carry IPv4.
    V6,
}

/// Which sockets are wanted, and what of them. By default all, bare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states.
    pub states: States,
    /// With this port at this end.
    pub local_port: Option<u16>,
    /// With this port at the other end.
    pub remote_port: Option<u16>,
    /// With this address at this end; an IPv4 one is found on IPv6 sockets too.
    pub local_address: Option<IpAddr>,
    /// Of this kind of socket.
    pub family: Family,
    /// Ask for [`SkMem`](super::SkMem).
    pub memory: bool,
    /// Ask for [`TcpInfo`](super::TcpInfo).
    pub info: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            states: States::ALL,
            local_port: None,
            remote_port: None,
            local_address: None,
            family: Family::Any,
            memory: false,
            info: false,
        }
    }
}

impl Filter {
    /// Sockets with this port at this end: a server's side of its connections.
    pub fn local(port: u16) -> Self {
        Self { local_port: Some(port), ..Self::default() }
    }

    /// Sockets with this port at the other end: the clients' side.
    pub fn remote(port: u16) -> Self {
        Self { remote_port: Some(port), ..Self::default() }
    }

    /// The same, in these states only.
    pub fn states(self, states: impl Into<States>) -> Self {
        Self { states: states.into(), ..self }
    }

    /// The same, with [`SkMem`](super::SkMem) of each socket.
    pub fn with_memory(self) -> Self {
        Self { memory: true, ..self }
    }

    /// The same, with [`TcpInfo`](super::TcpInfo) of each socket.
    pub fn with_info(self) -> Self {
        Self { info: true, ..self }
    }

    pub(super) fn without_extensions(self) -> Self {
        Self { memory: false, info: false, ..self }
    }

    /// The families to dump. An IPv6 address is only found on IPv6 sockets; an
    /// IPv4 one on both.
    #[cfg(target_os = "linux")]
    pub(super) fn families(&self) -> &'static [u8] {
        const V4: u8 = libc::AF_INET as u8;
        const V6: u8 = libc::AF_INET6 as u8;
        match (self.family, self.local_address.map(|address| address.to_canonical())) {
            (Family::V4, _) => &[V4],
            (Family::V6, _) | (Family::Any, Some(IpAddr::V6(_))) => &[V6],
            (Family::Any, _) => &[V4, V6],
        }
    }
}
