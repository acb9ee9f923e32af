//! Why a session ended: one word for the handler, the log and the metrics.

use crate::driver::{Failure, Fault};

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The peer ended its stream, and the handler closed in turn.
    PeerEnded,
    /// The peer reset the connection.
    PeerReset,
    /// The handler closed it: what was in the outbox has been sent.
    Closed,
    /// The handler aborted it.
    Aborted,
    /// The handler's `on_connect` refused it.
    Refused,
    /// Nothing was received in the time allowed for the first byte.
    FirstByteTimeout,
    /// Nothing was received or sent in the time allowed.
    IdleTimeout,
    /// The peer did not read, and the outbox passed its hard mark.
    OutboxHard,
    /// The handler consumed nothing of a whole block: a message is longer than the block.
    MessageTooLong,
    /// The arena had no block left for what was to be sent.
    NoBuffer,
    /// The handler panicked.
    Panicked,
    /// The server drains.
    Drained,
    /// The server drained, and its deadline came first: what was in the outbox is lost.
    CutByDrain,
    /// Somebody else than its handler's callback asked for it ([`crate::Remote::disconnect`],
    /// [`crate::ShardContext::disconnect`]).
    Disconnected,
    /// An outgoing connection could not be made.
    ConnectFailed(Failure),
    /// The kernel failed an operation.
    Failed(Failure),
    /// The server had as many connections as it may.
    Full,
    /// Its peer had as many connections as one may.
    PeerLimit,
    /// The peer took less than the lowest rate allowed from a full outbox.
    SlowReader,
    /// The machine was short of memory, and this session was given up to save the others.
    Shed,
    /// The peer is not there any more: it acknowledged nothing in the time that the kernel allows
    /// (see [`crate::Limits::keep_alive`] and [`crate::Limits::user_timeout`]), or there is no way
    /// to it.
    PeerVanished,
    /// The rest of a message did not come in the time allowed.
    MessageTimeout,
    /// An outgoing connection was not made in the time allowed
    /// ([`crate::Limits::connect_timeout`]).
    ConnectTimeout,
}

impl Reason {
    /// How many reasons there are, as metrics count them.
    pub const COUNT: usize = 23;

    /// The name, as metrics and logs spell it.
    pub fn name(self) -> &'static str {
        NAMES[self.number()]
    }

    /// The names, in the order of [`Reason::number`].
    pub fn names() -> &'static [&'static str; Self::COUNT] {
        &NAMES
    }

    /// Its number, `0..COUNT`: for arrays of counters.
    pub fn number(self) -> usize {
        match self {
            Self::PeerEnded => 0,
            Self::PeerReset => 1,
            Self::Closed => 2,
            Self::Aborted => 3,
            Self::Refused => 4,
            Self::FirstByteTimeout => 5,
            Self::IdleTimeout => 6,
            Self::OutboxHard => 7,
            Self::MessageTooLong => 8,
            Self::NoBuffer => 9,
            Self::Panicked => 10,
            Self::Drained => 11,
            Self::CutByDrain => 12,
            Self::Disconnected => 13,
            Self::ConnectFailed(_) => 14,
            Self::Failed(_) => 15,
            Self::Full => 16,
            Self::PeerLimit => 17,
            Self::SlowReader => 18,
            Self::Shed => 19,
            Self::PeerVanished => 20,
            Self::MessageTimeout => 21,
            Self::ConnectTimeout => 22,
        }
    }

    /// The reason for an operation of an open session that failed.
    pub(crate) fn of(failure: Failure) -> Self {
        match failure.fault {
            Fault::Reset | Fault::Aborted => Self::PeerReset,
            Fault::TimedOut | Fault::Unreachable => Self::PeerVanished,
            _ => Self::Failed(failure),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConnectFailed(failure) | Self::Failed(failure) => {
                write!(f, "{}: {failure}", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

const NAMES: [&str; Reason::COUNT] = [
    "peer_ended",
    "peer_reset",
    "closed",
    "aborted",
    "refused",
    "first_byte_timeout",
    "idle_timeout",
    "outbox_hard",
    "message_too_long",
    "no_buffer",
    "panicked",
    "drained",
    "cut_by_drain",
    "disconnected",
    "connect_failed",
    "failed",
    "full",
    "peer_limit",
    "slow_reader",
    "shed",
    "peer_vanished",
    "message_timeout",
    "connect_timeout",
];
