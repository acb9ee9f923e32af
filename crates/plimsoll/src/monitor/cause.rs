//! Why the pressure is what it is, in one sentence with the numbers.

use std::fmt;

use crate::driver::Fault;

/// A figure that something is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Pages that TCP holds in the whole machine.
    TcpPages,
    /// Bytes of this process' memory control group, against its limit.
    GroupMemory,
    /// The same, against `memory.high`.
    GroupHigh,
    /// Bytes of TCP buffers of the control group.
    GroupTcp,
    /// Out-of-memory events of the control group.
    GroupOom,
    /// Time in which some task waited for memory, in hundredths of a percent.
    StallsSome,
    /// Time in which all tasks waited for memory, in hundredths of a percent.
    StallsFull,
    /// Bytes in use in the machine.
    SystemMemory,
    /// Open files of the machine.
    Files,
}

/// Why the pressure is what it is, with the numbers: one sentence when displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A figure of the kernel's passed a mark, and is not yet back below where it is let go.
    Past {
        /// Which.
        figure: Figure,
        /// Its value, in the figure's unit.
        value: u64,
        /// The mark that it passed.
        mark: u64,
        /// The limit behind the mark; of a counter the mark itself.
        limit: u64,
    },
    /// Operations failed for want of something of the kernel's.
    Shortage {
        /// The last of them.
        fault: Fault,
        /// How many, since the start.
        count: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Past { figure, value, mark, limit } => {
                past(f, figure, value, mark, limit)?;
                f.write_str(if value < mark { "; it is falling" } else { "" })
            }
            Self::Shortage { fault, count } => {
                let name = match fault {
                    Fault::SystemDescriptors => "ENFILE: the system has no more files",
                    Fault::Buffers => "ENOBUFS: the kernel has no buffer",
                    Fault::Watches => "ENOSPC: fs.epoll.max_user_watches is reached",
                    _ => "ENOMEM: the kernel has no memory",
                };
                write!(f, "operations fail with {name} ({count} so far)")
            }
        }
    }
}

fn past(
    f: &mut fmt::Formatter<'_>,
    figure: Figure,
    value: u64,
    mark: u64,
    limit: u64,
) -> fmt::Result {
    let (held, of, from) = (Bytes(value), Bytes(limit), Bytes(mark));
    match figure {
        Figure::TcpPages => write!(
            f,
            "TCP holds {value} pages in the whole machine, the mark is {mark} and \
             net.ipv4.tcp_mem allows {limit}"
        ),
        Figure::GroupMemory => {
            write!(f, "the control group holds {held} of its limit of {of}, the mark is {from}")
        }
        Figure::GroupHigh => {
            write!(
                f,
                "the control group holds {held} of its memory.high of {of}, the mark is {from}"
            )
        }
        Figure::GroupTcp => write!(
            f,
            "the control group holds {held} of TCP buffers, the mark is {from} and \
             memory.kmem.tcp.limit_in_bytes {of}"
        ),
        Figure::GroupOom => {
            write!(
                f,
                "the control group has run out of memory {value} times, and processes may be killed"
            )
        }
        Figure::StallsSome => write!(
            f,
            "some task was waiting for memory {} % of the last 10 s, the mark is {} %",
            Percent(value),
            Percent(mark)
        ),
        Figure::StallsFull => write!(
            f,
            "all tasks were waiting for memory {} % of the last 10 s, the mark is {} %",
            Percent(value),
            Percent(mark)
        ),
        Figure::SystemMemory => {
            write!(f, "{held} of the machine's {of} are in use, the mark is {from}")
        }
        Figure::Files => write!(
            f,
            "{value} files are open in the whole machine, the mark is {mark} and fs.file-max {limit}"
        ),
    }
}

/// A size in words: whole KiB below 10 MiB, MiB above.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            small if small < 10 << 20 => write!(f, "{} KiB", small >> 10),
            large => write!(f, "{} MiB", large >> 20),
        }
    }
}

/// Hundredths of a percent.
struct Percent(u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}
