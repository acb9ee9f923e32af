//! Which operation can fail how, and which one does.

use super::random::Random;
use crate::driver::{Failure, Fault};

/// What an injected fault is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Driver::accept`](crate::driver::Driver::accept).
    Accept,
    /// [`Driver::adopt`](crate::driver::Driver::adopt).
    Adopt,
    /// [`Driver::connect`](crate::driver::Driver::connect).
    Connect,
    /// [`Driver::park`](crate::driver::Driver::park).
    Park,
    /// [`Driver::receive`](crate::driver::Driver::receive).
    Receive,
    /// [`Driver::stream`](crate::driver::Driver::stream).
    Stream,
    /// [`Driver::send`](crate::driver::Driver::send), to be carried out at once.
    SendAtOnce,
    /// [`Driver::send`](crate::driver::Driver::send), which may wait.
    Send,
    /// [`Driver::half_close`](crate::driver::Driver::half_close).
    HalfClose,
}

/// What a failure does beside failing the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the same operation may succeed when it is posted again.
    None,
    /// The connection is gone. Other operations in flight notice it as they do a reset.
    Kills,
    /// The connection at the head of the accept queue is gone.
    DropsQueued,
}

/// A failure that an operation can have.
#[derive(Debug, Clone, Copy)]
pub struct Possible {
    /// Of what.
    pub operation: Operation,
    /// Its meaning.
    pub fault: Fault,
    /// Linux' `errno`.
    pub code: i32,
    /// What else happens.
    pub effect: Effect,
    /// When the real kernel does it.
    pub why: &'static str,
}

impl Possible {
    pub(super) fn failure(&self) -> Failure {
        Failure { fault: self.fault, code: self.code }
    }
}

/// Linux' numbers, whichever system the simulation runs on (`include/uapi/asm-generic/errno*.h`).
pub(super) mod errno {
    pub(in crate::driver::sim) const ENOMEM: i32 = 12;
    pub(in crate::driver::sim) const EINVAL: i32 = 22;
    pub(in crate::driver::sim) const EAGAIN: i32 = 11;
    pub(in crate::driver::sim) const ENFILE: i32 = 23;
    pub(in crate::driver::sim) const EMFILE: i32 = 24;
    pub(in crate::driver::sim) const EPIPE: i32 = 32;
    pub(in crate::driver::sim) const EPERM: i32 = 1;
    pub(in crate::driver::sim) const EPROTO: i32 = 71;
    pub(in crate::driver::sim) const EADDRINUSE: i32 = 98;
    pub(in crate::driver::sim) const EADDRNOTAVAIL: i32 = 99;
    pub(in crate::driver::sim) const ENETUNREACH: i32 = 101;
    pub(in crate::driver::sim) const ECONNABORTED: i32 = 103;
    pub(in crate::driver::sim) const ECONNRESET: i32 = 104;
    pub(in crate::driver::sim) const ENOBUFS: i32 = 105;
    pub(in crate::driver::sim) const ENOTCONN: i32 = 107;
    pub(in crate::driver::sim) const ETIMEDOUT: i32 = 110;
    pub(in crate::driver::sim) const ECONNREFUSED: i32 = 111;
    pub(in crate::driver::sim) const EHOSTUNREACH: i32 = 113;
    pub(in crate::driver::sim) const ECANCELED: i32 = 125;
}

/// The failure that a code means.
pub(super) fn failure(code: i32) -> Failure {
    let fault = match code {
        errno::ECANCELED => Fault::Cancelled,
        errno::ECONNRESET | errno::EPIPE | errno::ENOTCONN => Fault::Reset,
        errno::ECONNABORTED | errno::EPROTO => Fault::Aborted,
        errno::ECONNREFUSED => Fault::Refused,
        errno::ETIMEDOUT => Fault::TimedOut,
        errno::ENETUNREACH | errno::EHOSTUNREACH => Fault::Unreachable,
        errno::EADDRINUSE | errno::EADDRNOTAVAIL => Fault::NoPorts,
        errno::EMFILE => Fault::ProcessDescriptors,
        errno::ENFILE => Fault::SystemDescriptors,
        errno::ENOBUFS => Fault::Buffers,
        errno::ENOMEM => Fault::Memory,
        errno::EAGAIN => Fault::WouldBlock,
        _ => Fault::Unexpected,
    };
    Failure { fault, code }
}

const fn possible(
    operation: Operation,
    fault: Fault,
    code: i32,
    effect: Effect,
    why: &'static str,
) -> Possible {
    Possible { operation, fault, code, effect, why }
}

/// What can fail, how, and why: what the simulation injects, and the only such list.
pub const POSSIBLE: &[Possible] = {
    use Effect::{DropsQueued, Kills, None};
    use Operation::{Accept, Adopt, Connect, HalfClose, Park, Receive, Send, SendAtOnce, Stream};
    #[allow(clippy::wildcard_imports, reason = "a module of numbers, all of them used here")]
    use errno::*;
    &[
        possible(Accept, Fault::ProcessDescriptors, EMFILE, None, "RLIMIT_NOFILE is reached"),
        possible(Accept, Fault::SystemDescriptors, ENFILE, None, "fs.file-max, or a full table"),
        possible(Accept, Fault::Aborted, ECONNABORTED, DropsQueued, "gone before it was accepted"),
        possible(Accept, Fault::Aborted, EPROTO, DropsQueued, "a protocol error in the queue"),
        possible(Accept, Fault::Buffers, ENOBUFS, None, "no memory within the socket limits"),
        possible(Accept, Fault::Memory, ENOMEM, None, "no memory for socket, inode or request"),
        possible(Accept, Fault::Unreachable, EHOSTUNREACH, DropsQueued, "Linux passes ICMP on"),
        possible(Accept, Fault::Unexpected, EPERM, DropsQueued, "firewall rules forbid it"),
        possible(Adopt, Fault::SystemDescriptors, ENFILE, None, "the table of files is full"),
        possible(Adopt, Fault::Memory, ENOMEM, None, "no memory to register the file"),
        possible(Connect, Fault::Refused, ECONNREFUSED, None, "answered with a reset"),
        possible(Connect, Fault::TimedOut, ETIMEDOUT, None, "no answer to any SYN"),
        possible(Connect, Fault::Unreachable, ENETUNREACH, None, "no route"),
        possible(Connect, Fault::Unreachable, EHOSTUNREACH, None, "ICMP host unreachable"),
        possible(Connect, Fault::NoPorts, EADDRNOTAVAIL, None, "all ports of the source in use"),
        possible(Connect, Fault::NoPorts, EADDRINUSE, None, "the bind found no port"),
        possible(Connect, Fault::ProcessDescriptors, EMFILE, None, "RLIMIT_NOFILE is reached"),
        possible(Connect, Fault::SystemDescriptors, ENFILE, None, "fs.file-max, or a full table"),
        possible(Connect, Fault::Buffers, ENOBUFS, None, "the SYN found no buffer"),
        possible(Connect, Fault::Memory, ENOMEM, None, "no memory for the socket"),
        possible(Connect, Fault::Unexpected, EPERM, None, "a firewall dropped our own SYN"),
        possible(Park, Fault::Memory, ENOMEM, None, "no memory for the poll entry"),
        possible(Receive, Fault::Reset, ECONNRESET, Kills, "the peer has reset"),
        possible(Receive, Fault::TimedOut, ETIMEDOUT, Kills, "keep-alive or user time-out"),
        possible(Receive, Fault::Unreachable, EHOSTUNREACH, Kills, "ICMP while retransmitting"),
        possible(Receive, Fault::Buffers, ENOBUFS, None, "no memory within the limits"),
        possible(Receive, Fault::Memory, ENOMEM, None, "no memory for the request"),
        possible(Stream, Fault::Reset, ECONNRESET, Kills, "the peer has reset"),
        possible(Stream, Fault::TimedOut, ETIMEDOUT, Kills, "keep-alive or user time-out"),
        possible(Stream, Fault::Unreachable, EHOSTUNREACH, Kills, "ICMP while retransmitting"),
        possible(Stream, Fault::Buffers, ENOBUFS, None, "no block was seen, though there is one"),
        possible(Stream, Fault::Memory, ENOMEM, None, "no memory for the request"),
        possible(SendAtOnce, Fault::WouldBlock, EAGAIN, None, "no room, by some other measure"),
        possible(SendAtOnce, Fault::Reset, EPIPE, Kills, "reset, seen as a closed direction"),
        possible(SendAtOnce, Fault::Reset, ECONNRESET, Kills, "the peer has reset"),
        possible(SendAtOnce, Fault::TimedOut, ETIMEDOUT, Kills, "retransmissions ran out"),
        possible(SendAtOnce, Fault::Unreachable, EHOSTUNREACH, Kills, "ICMP while retransmitting"),
        possible(SendAtOnce, Fault::Buffers, ENOBUFS, None, "the device's queue is full"),
        possible(SendAtOnce, Fault::Memory, ENOMEM, None, "no memory for the bytes"),
        possible(Send, Fault::Reset, EPIPE, Kills, "reset, seen as a closed direction"),
        possible(Send, Fault::Reset, ECONNRESET, Kills, "the peer has reset"),
        possible(Send, Fault::TimedOut, ETIMEDOUT, Kills, "retransmissions ran out"),
        possible(Send, Fault::Unreachable, EHOSTUNREACH, Kills, "ICMP while retransmitting"),
        possible(Send, Fault::Buffers, ENOBUFS, None, "the device's queue is full"),
        possible(Send, Fault::Memory, ENOMEM, None, "no memory for the bytes"),
        possible(HalfClose, Fault::Reset, ENOTCONN, Kills, "the peer was first, with a reset"),
        possible(HalfClose, Fault::Memory, ENOMEM, None, "no memory for the request"),
    ]
};

/// Which operations are to fail.
#[derive(Debug)]
pub(super) struct Faults {
    /// For every operation, whatever the table gives for it.
    per_million: u32,
    /// Beside that, for one line of the table: its index, and how often.
    rates: Vec<(usize, u32)>,
    script: Vec<Scripted>,
}

#[derive(Debug)]
struct Scripted {
    line: usize,
    /// So many operations of its kind from now, this one included.
    countdown: u32,
}

impl Faults {
    pub(super) fn new(per_million: u32) -> Self {
        Self { per_million, rates: Vec::new(), script: Vec::new() }
    }

    /// The `nth` operation of its kind from now (1 is the next) fails.
    pub(super) fn script(&mut self, operation: Operation, nth: u32, fault: Fault) {
        assert!(nth > 0, "the first operation from now is number 1");
        self.script.push(Scripted { line: line_of(operation, fault), countdown: nth });
    }

    pub(super) fn set_rate(&mut self, operation: Operation, fault: Fault, per_million: u32) {
        let line = line_of(operation, fault);
        self.rates.retain(|(at, _)| *at != line);
        self.rates.push((line, per_million));
    }

    pub(super) fn set_all(&mut self, per_million: u32) {
        self.per_million = per_million;
        self.rates.clear();
        self.script.clear();
    }

    /// Whether this operation fails, and how; and whether it was scripted.
    pub(super) fn draw(
        &mut self,
        operation: Operation,
        random: &mut Random,
    ) -> Option<(&'static Possible, bool)> {
        if let Some(line) = self.scripted(operation) {
            return Some((&POSSIBLE[line], true));
        }
        for &(line, per_million) in &self.rates {
            if POSSIBLE[line].operation == operation && random.chance(per_million) {
                return Some((&POSSIBLE[line], false));
            }
        }
        if !random.chance(self.per_million) {
            return None;
        }
        let count = POSSIBLE.iter().filter(|line| line.operation == operation).count();
        let at = random.below(count as u64) as usize;
        POSSIBLE.iter().filter(|line| line.operation == operation).nth(at).map(|it| (it, false))
    }

    fn scripted(&mut self, operation: Operation) -> Option<usize> {
        let mut due = None;
        for scripted in &mut self.script {
            if POSSIBLE[scripted.line].operation == operation && scripted.countdown > 0 {
                scripted.countdown -= 1;
                if scripted.countdown == 0 {
                    due = due.or(Some(scripted.line));
                }
            }
        }
        self.script.retain(|scripted| scripted.countdown > 0);
        due
    }
}

/// The first line of the table with the operation and the fault.
fn line_of(operation: Operation, fault: Fault) -> usize {
    POSSIBLE
        .iter()
        .position(|line| line.operation == operation && line.fault == fault)
        .unwrap_or_else(|| panic!("{operation:?} never fails with {fault:?}: see POSSIBLE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_hits_the_nth_of_its_kind() {
        let mut faults = Faults::new(0);
        let mut random = Random::new(0);
        faults.script(Operation::Send, 3, Fault::Buffers);
        let mut hits = |operation| faults.draw(operation, &mut random).map(|(it, _)| it.code);
        assert_eq!(hits(Operation::Send), None);
        assert_eq!(hits(Operation::Receive), None);
        assert_eq!(hits(Operation::Send), None);
        assert_eq!(hits(Operation::Send), Some(errno::ENOBUFS));
        assert_eq!(hits(Operation::Send), None);
    }

    #[test]
    fn codes_and_faults_agree() {
        for line in POSSIBLE {
            assert_eq!(failure(line.code), line.failure(), "{line:?}");
        }
    }

    #[test]
    fn every_line_comes_up() {
        let mut faults = Faults::new(1_000_000);
        let mut random = Random::new(3);
        for line in POSSIBLE {
            let drawn = (0..10_000).any(|_| {
                let (it, _) = faults.draw(line.operation, &mut random).expect("always");
                it.code == line.code
            });
            assert!(drawn, "{line:?}");
        }
    }

    #[test]
    #[should_panic(expected = "never fails with")]
    fn what_cannot_happen_cannot_be_scripted() {
        Faults::new(0).script(Operation::Park, 1, Fault::Refused);
    }
}
