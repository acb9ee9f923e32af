//! Limits: what a server may take, and what one session may.
//!
//! *Reserved* limits are checked when the server starts, and refused in one line with the resource
//! that limits and the number that would fit. *Caps* bound one session; their sum may exceed the
//! machine.

use std::time::Duration;

use crate::acceptor::REFUSING;
use crate::driver::MAX_HANDED;

/// The limits of a server. [`Limits::default`] holds 10,000 connections.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at once, all shards together. Never overshot: each accept is posted against a
    /// permit; who finds no room waits in the listener's backlog. At least 1.
    pub max_connections: u32,
    /// Connections at once from one peer: an IPv4 address, or a /64 of IPv6. Who comes beyond is
    /// refused as [`Limits::when_full`] says, or reset where that says to wait: nobody can be left
    /// in the backlog by address. Costs 48 bytes for each of `max_connections`.
    pub max_per_peer: Option<u32>,
    /// Connections accepted in a second, all shards together; who comes faster waits in the
    /// backlog. Over any time `t` no more than `rate × t` and a tenth of a second's more are accepted.
    pub max_accept_rate: Option<u32>,
    /// What becomes of those who come when there are `max_connections`.
    pub when_full: WhenFull,
    /// Throughput profile: how many sessions are read at a time, all shards together; the others
    /// are accepted, and wait for their turn unread, in one line, first come first served. A
    /// waiting session that ends costs O(those who wait).
    pub service_set: Option<u32>,
    /// How long a session of the service set is read while others wait; then it goes to the end of
    /// the line, so that an idle one keeps nobody out.
    pub service_time: Duration,
    /// Connections whose slot and one block of buffer are made ready at start, all shards together,
    /// so that the first to come find them warm. Some 0.2 KB and a block each.
    pub warm_up: u32,
    /// Bytes of buffers that may be posted to the kernel at once, all shards together: memory that
    /// it may pin (on Windows: locked pages), in whole blocks. Who needs more waits. At least a
    /// block for each shard. `None`: as the buffers allow.
    pub pinned_bytes: Option<usize>,
    /// Operations in flight at once, all shards together: each takes some memory of the kernel (256 to
    /// 864 B on io_uring; some 500 B of non-paged pool on Windows). One for each connection, to read
    /// with, and [`MAX_HANDED`](crate::driver::MAX_HANDED) accepts on their way between shards are
    /// reserved; what is left is shared out evenly among the shards for what they send, two at
    /// least for each. A session that finds no place to send waits for one, first come first served;
    /// half of a shard's places at most is taken by sends that wait for a peer, and so `drain_rate`
    /// should be set too. A close takes no place: it waits for nobody.
    pub max_operations: Option<u32>,
    /// Connections that handlers make at once, all shards together, beside those accepted.
    pub max_outgoing: u32,
    /// Bytes of buffers in each shard's arena, for received bytes and outboxes together. Address
    /// space at first; memory when used. Rounded down to whole blocks, at least four.
    pub buffer_bytes: usize,
    /// Bytes in one block of the arena, rounded up to whole pages: the most that a handler is
    /// shown at once, and so the longest message it can wait for.
    pub block_bytes: usize,
    /// When an outbox has been over the high mark, its session reads again below this many bytes.
    pub outbox_low: u32,
    /// At this many bytes in its outbox, nothing more is received from a session. What has been
    /// received in the same turn is held beside it: a block; in the throughput profile what one wait
    /// brings, some 30 to 90 blocks of a fast sender, and never more than are lent to streams (half
    /// of the arena, at most 512).
    pub outbox_high: u32,
    /// A send that would take its outbox past this many bytes is refused, and its session aborted. At
    /// least a block, and at most what the arena holds ([`Limits::arena_bytes`]).
    pub outbox_hard: u32,
    /// The kernel's send buffer of each connection (`SO_SNDBUF`, set on the listener; the kernel
    /// doubles it). `None`: as the system has it.
    pub kernel_send: Option<usize>,
    /// The kernel's receive buffer of each connection (`SO_RCVBUF`, as above).
    pub kernel_receive: Option<usize>,
    /// How long an outgoing connection may take to be made: then it is given up, with
    /// [`crate::Reason::ConnectTimeout`]. By default 10 s; `None`: as long as the system tries (Linux:
    /// `net.ipv4.tcp_syn_retries`, 6 by default, two minutes).
    pub connect_timeout: Option<Duration>,
    /// How long an accepted connection may say nothing.
    pub first_byte_timeout: Option<Duration>,
    /// How long a session may neither send nor receive.
    pub idle_timeout: Option<Duration>,
    /// How long a handler may be kept waiting for the rest of a message: for how long bytes may be
    /// held of which it consumed nothing. It is counted from when the handler first left the present
    /// first byte unconsumed; only a handler that consumes something starts it anew. More bytes
    /// alone do not, so that a byte now and then puts nothing off, and an idle session that owes
    /// nothing is never hit. While the session is not read (paused by its handler, over the high
    /// mark, waiting for its turn or for a buffer) its peer is not to blame: where the time ends
    /// then, it begins again. Costs 8 bytes for each of `max_connections`.
    pub message_timeout: Option<Duration>,
    /// After how long a silence the kernel asks whether an accepted connection's peer is still there
    /// (TCP keep-alive); it asks three times more, a third of this time apart, before it gives up:
    /// a peer that vanished is found within twice this time. Whole seconds, at least one.
    pub keep_alive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged before an accepted connection is given up
    /// (`TCP_USER_TIMEOUT`, RFC 5482). Linux only, and refused elsewhere.
    pub user_timeout: Option<Duration>,
    /// The fewest bytes per second that a peer must take while its outbox is blocked; one that is
    /// slower is aborted. While the kernel's send buffer is full it takes from us only what the peer
    /// has acknowledged, so this counts acknowledged bytes; but it takes nothing before a third of
    /// the buffer is free (`sk_stream_is_writeable`). So a peer is watched for [`DRAIN_WINDOW`], or
    /// for twice as long as a third takes at this rate, whichever is longer: with a low rate, set
    /// `kernel_send` too.
    pub drain_rate: Option<u32>,
    /// Whom to give up first when the machine runs out of memory.
    pub shed: Shed,
    /// The backlog asked of `listen(2)`; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Limits that are watched and not kept.
    pub dry_run: DryRun,
}

/// How long a slow peer is watched at least before it is judged by [`Limits::drain_rate`].
pub const DRAIN_WINDOW: Duration = Duration::from_secs(5);

/// What becomes of those who come when the server has as many connections as it may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// They wait in the listener's backlog until there is room.
    #[default]
    Wait,
    /// They are accepted and reset.
    Reset,
    /// They are told these bytes, and closed. What does not fit the kernel's send buffer at once
    /// (some 16 KiB at least) is not sent.
    Tell(Vec<u8>),
}

/// Whom to give up first under [`crate::Pressure::Shedding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shed {
    /// Who has neither sent nor received for longest.
    #[default]
    LongestIdle,
    /// Who has most in its outbox; among those with nothing, who has been idle for longest.
    SlowestReader,
    /// Who came last.
    Newest,
}

impl WhenFull {
    /// What to tell who is refused; nothing resets.
    pub(crate) fn message(&self) -> &[u8] {
        match self {
            Self::Wait | Self::Reset => &[],
            Self::Tell(message) => message,
        }
    }
}

/// Limits that are in dry run: what they would have done is counted
/// ([`crate::Metrics::dry_run`]), and not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DryRun(u16);

/// A limit that can be in dry run, in the order of [`DryRun::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dry {
    AcceptRate,
    FirstByteTimeout,
    IdleTimeout,
    MessageTimeout,
    OutboxHard,
    PeerLimit,
    ServiceSet,
    Shed,
    SlowReader,
}

impl DryRun {
    /// The limits that can be in dry run: by the reason that they end sessions with, or by what they
    /// make wait. Of `accept_rate` the connections are counted that would not have been accepted when
    /// they came; of `service_set` the sessions that would have begun with waiting for their turn.
    pub const NAMES: [&'static str; 9] = [
        "accept_rate",
        "first_byte_timeout",
        "idle_timeout",
        "message_timeout",
        "outbox_hard",
        "peer_limit",
        "service_set",
        "shed",
        "slow_reader",
    ];

    /// This one too. False where no limit has this name.
    pub fn add(&mut self, name: &str) -> bool {
        let number = Self::number(name);
        if let Some(number) = number {
            self.0 |= 1 << number;
        }
        number.is_some()
    }

    /// The place of a limit's name in [`DryRun::NAMES`], and so in [`crate::Metrics::dry_run`].
    pub fn number(name: &str) -> Option<usize> {
        Self::NAMES.iter().position(|known| *known == name)
    }

    /// Whether a limit is in dry run.
    pub(crate) fn has(self, limit: Dry) -> bool {
        self.0 & 1 << limit as u16 != 0
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_per_peer: None,
            max_accept_rate: None,
            when_full: WhenFull::default(),
            service_set: None,
            service_time: Duration::from_secs(2),
            warm_up: 0,
            pinned_bytes: None,
            max_operations: None,
            max_outgoing: 0,
            buffer_bytes: 64 << 20,
            block_bytes: 16 << 10,
            outbox_low: 16 << 10,
            outbox_high: 64 << 10,
            outbox_hard: 1 << 20,
            kernel_send: None,
            kernel_receive: None,
            connect_timeout: Some(Duration::from_secs(10)),
            first_byte_timeout: None,
            idle_timeout: None,
            message_timeout: None,
            keep_alive: None,
            user_timeout: None,
            drain_rate: None,
            shed: Shed::default(),
            backlog: 4096,
            dry_run: DryRun::default(),
        }
    }
}

impl Limits {
    /// What is wrong with these limits in themselves, on any machine.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.max_connections == 0 {
            return Err("max_connections is 0: nobody could connect; at least 1".into());
        }
        for (name, limit) in [
            ("max_per_peer", self.max_per_peer),
            ("max_accept_rate", self.max_accept_rate),
            ("service_set", self.service_set),
            ("drain_rate", self.drain_rate),
        ] {
            if limit == Some(0) {
                return Err(format!("{name} is 0: nobody could be served; at least 1"));
            }
        }
        if self.keep_alive.is_some_and(|time| time < Duration::from_secs(1)) {
            return Err("keep_alive is below 1 s: the kernel counts whole seconds".into());
        }
        if self.user_timeout.is_some_and(|time| time < Duration::from_millis(1)) {
            return Err("user_timeout is below 1 ms, which the kernel takes for none".into());
        }
        if self.user_timeout.is_some() && !cfg!(target_os = "linux") {
            return Err("user_timeout is Linux' own: leave it out, and set keep_alive".into());
        }
        if self.service_time.is_zero() {
            return Err("service_time is 0: nobody would be read; at least 1 ms".into());
        }
        if self.outbox_low > self.outbox_high || self.outbox_high > self.outbox_hard {
            return Err(format!(
                "outbox marks must rise: low {} ≤ high {} ≤ hard {}",
                self.outbox_low, self.outbox_high, self.outbox_hard
            ));
        }
        if self.outbox_high == 0 {
            return Err("outbox_high is 0: no session could ever receive; at least 1".into());
        }
        if self.block_bytes == 0 || self.block_bytes > 1 << 30 {
            return Err(format!("block_bytes is {}: 1 to 1 GiB", self.block_bytes));
        }
        let least = self.block_bytes.saturating_mul(LEAST_BLOCKS as usize);
        if self.buffer_bytes < least {
            return Err(format!(
                "buffer_bytes is {}: at least {LEAST_BLOCKS} blocks of {} bytes, {least}",
                self.buffer_bytes, self.block_bytes
            ));
        }
        if (self.outbox_hard as usize) < self.block_bytes {
            return Err(format!(
                "outbox_hard ({}) is less than a block ({}): an echo of one block would end its \
                 session",
                self.outbox_hard, self.block_bytes
            ));
        }
        let holds = self.arena_bytes();
        if self.outbox_hard as usize > holds {
            return Err(format!(
                "outbox_hard is {}, but the buffers of a shard hold {holds} bytes ({} blocks): a \
                 session would end for want of a buffer before its outbox is so long; lower \
                 outbox_hard to {holds}, or raise buffer_bytes to {}",
                self.outbox_hard,
                self.blocks(),
                (self.outbox_hard as usize).next_multiple_of(self.whole_block_bytes())
            ));
        }
        Ok(())
    }

    /// Bytes in one block as the arena has it: whole pages.
    fn whole_block_bytes(&self) -> usize {
        self.block_bytes.next_multiple_of(crate::buffer::page_bytes())
    }

    /// Bytes that each shard's arena holds: `buffer_bytes` in whole blocks. No outbox can be longer,
    /// and so [`Limits::outbox_hard`] may not be.
    pub fn arena_bytes(&self) -> usize {
        (self.blocks() as usize).saturating_mul(self.whole_block_bytes())
    }

    /// Blocks in each shard's arena.
    pub(crate) fn blocks(&self) -> u32 {
        u32::try_from(self.buffer_bytes / self.whole_block_bytes())
            .unwrap_or(u32::MAX)
            .max(LEAST_BLOCKS)
    }

    /// Of these blocks, how many one of so many shards may post to the kernel at once.
    pub(crate) fn pinned_blocks(&self, shards: u32) -> u32 {
        let blocks = self.blocks();
        let block = self.whole_block_bytes();
        match self.pinned_bytes {
            None => blocks,
            Some(bytes) => u32::try_from(bytes / block / shards.max(1) as usize)
                .unwrap_or(u32::MAX)
                .clamp(1, blocks),
        }
    }

    /// The least that [`Limits::max_operations`] can be, for so many shards of so many slots.
    pub(crate) fn least_operations(&self, shards: u32, slots: u32) -> u64 {
        u64::from(shards) * (u64::from(slots) + LEAST_SENDS) + u64::from(self.hand_overs(shards))
    }

    /// How many sends of one of so many shards, of so many slots each, may be in flight; `None`
    /// where that is not limited.
    pub(crate) fn sends_in_flight(&self, shards: u32, slots: u32) -> Option<u32> {
        let most = u64::from(self.max_operations?);
        let shards = shards.max(1);
        let reserved = u64::from(shards) * u64::from(slots) + u64::from(self.hand_overs(shards));
        let each = most.saturating_sub(reserved) / u64::from(shards);
        Some(each.max(LEAST_SENDS) as u32)
    }

    /// Accepts in flight whose connection goes to another shard, or is refused.
    fn hand_overs(&self, shards: u32) -> u32 {
        match self.when_full {
            _ if shards > 1 => MAX_HANDED,
            WhenFull::Wait => 0,
            WhenFull::Reset | WhenFull::Tell(_) => REFUSING,
        }
    }

    /// How long a peer whose outbox is blocked is watched before it is judged by
    /// [`Limits::drain_rate`]: [`DRAIN_WINDOW`], or longer where the kernel's send buffer needs it.
    pub fn drain_window(&self) -> Duration {
        let Some(rate) = self.drain_rate else { return DRAIN_WINDOW };
        // The kernel doubles what is asked for; else it grows to the third figure of tcp_wmem.
        let buffer = self.kernel_send.map_or_else(largest_send_buffer, |bytes| bytes as u64 * 2);
        let third = Duration::from_secs_f64(buffer as f64 / 3.0 / f64::from(rate.max(1)));
        DRAIN_WINDOW.max(third * 2)
    }

    /// The part that sessions need.
    pub(crate) fn session(&self) -> SessionLimits {
        SessionLimits {
            drain_rate: self.drain_rate,
            drain_window: self.drain_window(),
            dry_run: self.dry_run,
            outbox_low: self.outbox_low,
            outbox_high: self.outbox_high,
            outbox_hard: self.outbox_hard,
            connect_timeout: self.connect_timeout,
            first_byte_timeout: self.first_byte_timeout,
            idle_timeout: self.idle_timeout,
            message_timeout: self.message_timeout,
        }
    }
}

/// One that is carried out at once, one that waits for its peer.
const LEAST_SENDS: u64 = 2;

/// One to receive into, one to send from, one to hold, one to spare.
const LEAST_BLOCKS: u32 = 4;

/// The caps on one session.
#[derive(Debug, Clone)]
pub(crate) struct SessionLimits {
    pub outbox_low: u32,
    pub outbox_high: u32,
    pub outbox_hard: u32,
    pub connect_timeout: Option<Duration>,
    pub first_byte_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub message_timeout: Option<Duration>,
    pub drain_rate: Option<u32>,
    pub drain_window: Duration,
    pub dry_run: DryRun,
}

/// The most that the kernel lets a send buffer grow to, in bytes; Linux' default where it does not
/// say.
fn largest_send_buffer() -> u64 {
    let said = plimsoll_kernel::limits::Limits::read().tcp_wmem;
    said.map_or(4 << 20, |triple| triple.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_nonsense_is_named() {
        assert_eq!(Limits::default().check(), Ok(()));
        let nonsense = [
            (Limits { max_connections: 0, ..Limits::default() }, "max_connections"),
            (Limits { outbox_low: 2, outbox_high: 1, ..Limits::default() }, "outbox marks"),
            (Limits { outbox_low: 0, outbox_high: 0, ..Limits::default() }, "outbox_high"),
            (Limits { max_per_peer: Some(0), ..Limits::default() }, "max_per_peer"),
            (Limits { service_time: Duration::ZERO, ..Limits::default() }, "service_time"),
            (Limits { block_bytes: 0, ..Limits::default() }, "block_bytes"),
            (Limits { buffer_bytes: 1, ..Limits::default() }, "buffer_bytes"),
        ];
        for (limits, name) in nonsense {
            assert!(limits.check().unwrap_err().contains(name), "{name}");
        }
    }

    #[test]
    fn no_outbox_may_be_longer_than_the_arena() {
        let limits = |outbox_hard| Limits {
            block_bytes: 64 << 10,
            // Half a block more than sixteen of them: it is no use to an outbox.
            buffer_bytes: (1 << 20) + (32 << 10),
            outbox_hard,
            ..Limits::default()
        };
        assert_eq!(limits(0).arena_bytes(), 1 << 20);
        assert_eq!(limits(1 << 20).check(), Ok(()));
        let error = limits((1 << 20) + 1).check().unwrap_err();
        for told in ["outbox_hard is 1048577", "hold 1048576 bytes", "16 blocks"] {
            assert!(error.contains(told), "{error}");
        }
        // Either of the two ways out that it names is one.
        assert!(error.contains("lower outbox_hard to 1048576"), "{error}");
        assert!(error.contains("raise buffer_bytes to 1114112"), "{error}");
        let raised = Limits { buffer_bytes: 1_114_112, ..limits((1 << 20) + 1) };
        assert_eq!(raised.check(), Ok(()));
    }

    #[test]
    fn a_slow_peer_is_watched_for_as_long_as_its_buffer_takes() {
        let rate = |drain_rate, kernel_send| {
            Limits { kernel_send, drain_rate, ..Limits::default() }.drain_window()
        };
        assert_eq!(rate(Some(100_000), Some(16 << 10)), DRAIN_WINDOW);
        assert_eq!(rate(Some(1_000), Some(30_000)).as_secs(), 40);
        assert!(rate(Some(1_000), None) > Duration::from_secs(60));
    }

    #[test]
    fn a_dry_run_knows_its_names() {
        let mut dry = DryRun::default();
        for name in DryRun::NAMES {
            assert!(dry.add(name), "{name}");
        }
        assert!(!dry.add("closed") && !dry.add("max_connections"));
        let mut dry = DryRun::default();
        assert!(dry.add("slow_reader") && dry.has(Dry::SlowReader) && !dry.has(Dry::Shed));
        assert!(dry.add("accept_rate") && dry.has(Dry::AcceptRate));
        assert_eq!(DryRun::number("slow_reader"), Some(Dry::SlowReader as usize));
    }

    #[test]
    fn the_least_operations_leave_two_sends_for_each_shard() {
        let limits = Limits { max_operations: Some(2 * (10 + 2) + 64), ..Limits::default() };
        assert_eq!(limits.least_operations(2, 10), 88);
        assert_eq!(limits.sends_in_flight(2, 10), Some(2));
        let limits = Limits { max_operations: Some(100), ..limits };
        assert_eq!(limits.sends_in_flight(2, 10), Some(8));
        assert_eq!(limits.least_operations(1, 10), 12);
        let limits = Limits { when_full: WhenFull::Reset, ..limits };
        assert_eq!(limits.least_operations(1, 10), 16);
        assert_eq!(Limits::default().sends_in_flight(2, 10), None);
    }

    #[test]
    fn pinned_bytes_are_whole_blocks_of_each_shard() {
        let limits = Limits { pinned_bytes: Some(1 << 20), ..Limits::default() };
        assert_eq!(limits.pinned_blocks(2), 32);
    }
}
