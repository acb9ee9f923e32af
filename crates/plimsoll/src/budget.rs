//! Limits: what a server may take, and what one session may.
//!
//! *Reserved* limits are checked when the server starts, and refused in one line with the resource
//! that limits and the number that would fit. *Caps* bound one session; their sum may exceed the
//! machine.

use std::time::Duration;

/// The limits of a server. [`Limits::default`] holds 10,000 connections.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at once, all shards together. Never overshot: each accept is posted against a
    /// permit; who finds no room waits in the listener's backlog. At least 1.
    pub max_connections: u32,
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
    /// received in the same turn is held beside it: up to some 60 blocks in the throughput profile.
    pub outbox_high: u32,
    /// A send that would take its outbox past this many bytes is refused, and its session aborted.
    pub outbox_hard: u32,
    /// The kernel's send buffer of each connection (`SO_SNDBUF`, set on the listener; the kernel
    /// doubles it). `None`: as the system has it.
    pub kernel_send: Option<usize>,
    /// The kernel's receive buffer of each connection (`SO_RCVBUF`, as above).
    pub kernel_receive: Option<usize>,
    /// How long an accepted connection may say nothing.
    pub first_byte_timeout: Option<Duration>,
    /// How long a session may neither send nor receive.
    pub idle_timeout: Option<Duration>,
    /// The backlog asked of `listen(2)`; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_outgoing: 0,
            buffer_bytes: 64 << 20,
            block_bytes: 16 << 10,
            outbox_low: 16 << 10,
            outbox_high: 64 << 10,
            outbox_hard: 1 << 20,
            kernel_send: None,
            kernel_receive: None,
            first_byte_timeout: None,
            idle_timeout: None,
            backlog: 4096,
        }
    }
}

impl Limits {
    /// What is wrong with these limits in themselves, on any machine.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.max_connections == 0 {
            return Err("max_connections is 0: nobody could connect; at least 1".into());
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
        Ok(())
    }

    /// Blocks in each shard's arena.
    pub(crate) fn blocks(&self) -> u32 {
        let block = self.block_bytes.next_multiple_of(crate::buffer::page_bytes());
        u32::try_from(self.buffer_bytes / block).unwrap_or(u32::MAX).max(LEAST_BLOCKS)
    }

    /// The part that sessions need.
    pub(crate) fn session(&self) -> SessionLimits {
        SessionLimits {
            outbox_low: self.outbox_low,
            outbox_high: self.outbox_high,
            outbox_hard: self.outbox_hard,
            first_byte_timeout: self.first_byte_timeout,
            idle_timeout: self.idle_timeout,
        }
    }
}

/// One to receive into, one to send from, one to hold, one to spare.
const LEAST_BLOCKS: u32 = 4;

/// The caps on one session.
#[derive(Debug, Clone)]
pub(crate) struct SessionLimits {
    pub outbox_low: u32,
    pub outbox_high: u32,
    pub outbox_hard: u32,
    pub first_byte_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
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
            (Limits { block_bytes: 0, ..Limits::default() }, "block_bytes"),
            (Limits { buffer_bytes: 1, ..Limits::default() }, "buffer_bytes"),
        ];
        for (limits, name) in nonsense {
            assert!(limits.check().unwrap_err().contains(name), "{name}");
        }
    }
}
