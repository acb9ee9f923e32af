//! Whose limits a simulated machine has: Linux', or those of a Windows workstation.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Whose errors operations fail with: their numbers, and which there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SystemErrors {
    /// `errno`, as io_uring and epoll give it.
    Linux,
    /// `WSAGetLastError`, as completions of overlapped calls give it.
    Windows,
}

/// What becomes of a SYN that finds the queue of a listener full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// It is dropped in silence; the client comes again after 1, 2, 4, … seconds, so many times
    /// (`net.ipv4.tcp_syn_retries`), then fails with a time-out.
    Drops {
        /// How many times.
        retries: u32,
    },
    /// It is answered with a reset; Windows' client comes again twice, half a second apart, then
    /// fails as refused.
    Refuses,
}

/// The kernel memory that connections and operations are made of, and what each costs.
///
/// What finds none fails with ENOBUFS; what ends gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimPool {
    /// Bytes there are; `u64::MAX`: nothing is counted.
    pub bytes: u64,
    /// Bytes of a connection that a driver makes.
    pub connected: u32,
    /// Bytes of a connection that a driver accepts, from the SYN on: in the queue too.
    pub accepted: u32,
    /// Bytes of an operation in flight.
    pub operation: u32,
}

/// The limits of a simulated machine, and how it is when they are reached.
///
/// Start from [`linux`](Self::linux) or [`windows_workstation`](Self::windows_workstation).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimSystem {
    /// Whose errors there are.
    pub errors: SystemErrors,
    /// The most that a backlog is granted (`net.core.somaxconn`; Windows: `SOMAXCONN`).
    pub backlog_most: u32,
    /// The most that is granted to [`listen_hinted`](super::SimKernel::listen_hinted).
    pub backlog_hinted_most: u32,
    /// How many more than granted are admitted: Linux counts "more than", so 1.
    pub backlog_extra: u32,
    /// What becomes of those beyond.
    pub overflow: Overflow,
    /// Ports for connects that name none, for each source address.
    pub ports: RangeInclusive<u16>,
    /// How often bytes are sent again to one who does not answer, until the connection fails with
    /// a time-out: the time that all of them take.
    pub retransmits: Duration,
    /// Sockets that the drivers' process may hold, those it connects, accepts and hands over
    /// (`RLIMIT_NOFILE`): beyond is EMFILE.
    pub descriptors: u32,
    /// Sockets on the machine, peers' included, but for queued ones (`fs.file-max`): beyond is
    /// ENFILE.
    pub files: u32,
    /// Kernel memory.
    pub pool: SimPool,
    /// Bytes of buffers, in whole pages, that operations in flight may lock: beyond is ENOBUFS.
    /// `u64::MAX`: nothing is locked, as for TCP on Linux.
    pub pinned_bytes: u64,
    /// Whether a socket that was closed in order is used again, and keeps the key of its first
    /// association: [`SimDriver::keys`](super::SimDriver::keys).
    pub reuses_sockets: bool,
}

impl SimSystem {
    /// Linux 6 as it is installed: `somaxconn` 4,096 and one more admitted, overflow in silence,
    /// ports 32,768 to 60,999, six tries of a SYN, fifteen of data
    /// (`Documentation/networking/ip-sysctl.rst`: 924.6 s), `fs.nr_open` descriptors, as many
    /// files as memory holds.
    pub fn linux() -> Self {
        Self {
            errors: SystemErrors::Linux,
            backlog_most: 4096,
            backlog_hinted_most: 4096,
            backlog_extra: 1,
            overflow: Overflow::Drops { retries: 6 },
            ports: 32_768..=60_999,
            retransmits: Duration::from_millis(924_600),
            descriptors: 1 << 20,
            files: u32::MAX,
            pool: SimPool { bytes: u64::MAX, connected: 0, accepted: 0, operation: 0 },
            pinned_bytes: u64::MAX,
            reuses_sockets: false,
        }
    }

    /// A workstation edition of Windows with so many bytes of memory: a backlog of 200, of up to
    /// 65,535 by a hint, 16,384 dynamic ports (49,152 to 65,535), and a non-paged pool of a
    /// quarter of memory, of which a connected socket takes 2 KB, an accepted one 1.5 KB, an
    /// operation in flight 500 bytes (figures that Microsoft gave for 32-bit Windows: old, and in
    /// the proportion that counts). Five tries of data, about 21 s. Sockets are reused.
    pub fn windows_workstation(memory_bytes: u64) -> Self {
        Self {
            errors: SystemErrors::Windows,
            backlog_most: 200,
            backlog_hinted_most: 65_535,
            backlog_extra: 0,
            overflow: Overflow::Refuses,
            ports: 49_152..=65_535,
            retransmits: Duration::from_secs(21),
            descriptors: 1 << 24,
            files: u32::MAX,
            pool: SimPool {
                bytes: memory_bytes / 4,
                connected: 2048,
                accepted: 1536,
                operation: 500,
            },
            pinned_bytes: u64::MAX,
            reuses_sockets: true,
        }
    }

    pub(super) fn is_windows(&self) -> bool {
        self.errors == SystemErrors::Windows
    }

    /// Whether operations are charged for.
    pub(super) fn counts_operations(&self) -> bool {
        self.pool.bytes != u64::MAX || self.pinned_bytes != u64::MAX
    }
}
