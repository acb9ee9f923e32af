//! Which operation can fail how, and which one does.

use super::random::Random;
use super::system::SystemErrors;
use crate::driver::{Failure, Fault};

mod possible;

pub use possible::POSSIBLE;

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
    /// [`Driver::close`](crate::driver::Driver::close): it is carried out all the same.
    Close,
    /// [`Driver::abort`](crate::driver::Driver::abort): it is carried out all the same.
    Abort,
}

impl Operation {
    /// All of them, in their order.
    pub const ALL: [Self; 11] = [
        Self::Accept,
        Self::Adopt,
        Self::Connect,
        Self::Park,
        Self::Receive,
        Self::Stream,
        Self::SendAtOnce,
        Self::Send,
        Self::HalfClose,
        Self::Close,
        Self::Abort,
    ];
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
    /// Linux' `errno`, or what `WSAGetLastError` gives.
    pub code: i32,
    /// What else happens.
    pub effect: Effect,
    /// When the real kernel does it.
    pub why: &'static str,
    /// Whose it is.
    pub system: SystemErrors,
}

impl Possible {
    pub(super) fn failure(&self) -> Failure {
        Failure { fault: self.fault, code: self.code }
    }
}

/// The systems' own numbers, on whichever the simulation runs.
pub(super) mod errno {
    macro_rules! numbers {
        ($($name:ident = $number:literal,)*) => {
            $(pub(in crate::driver::sim) const $name: i32 = $number;)*
        };
    }

    // Linux: include/uapi/asm-generic/errno-base.h, errno.h.
    numbers! {
        EPERM = 1, EINTR = 4, EIO = 5, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EINVAL = 22,
        ENFILE = 23, EMFILE = 24, ENOSPC = 28, EPIPE = 32, ENONET = 64, EPROTO = 71,
        ENOPROTOOPT = 92, EAFNOSUPPORT = 97, EADDRINUSE = 98, EADDRNOTAVAIL = 99, ENETDOWN = 100,
        ENETUNREACH = 101, ECONNABORTED = 103, ECONNRESET = 104, ENOBUFS = 105, ENOTCONN = 107,
        ETIMEDOUT = 110, ECONNREFUSED = 111, EHOSTDOWN = 112, EHOSTUNREACH = 113, ECANCELED = 125,
    }

    // Windows: winsock2.h, winerror.h.
    numbers! {
        WSA_NOT_ENOUGH_MEMORY = 8, WSA_OPERATION_ABORTED = 995, WSAEACCES = 10013,
        WSAEINVAL = 10022, WSAEMFILE = 10024, WSAEWOULDBLOCK = 10035, WSAEADDRINUSE = 10048,
        WSAEADDRNOTAVAIL = 10049, WSAENETDOWN = 10050, WSAENETUNREACH = 10051,
        WSAENETRESET = 10052, WSAECONNABORTED = 10053, WSAECONNRESET = 10054, WSAENOBUFS = 10055,
        WSAENOTCONN = 10057, WSAESHUTDOWN = 10058, WSAETIMEDOUT = 10060, WSAECONNREFUSED = 10061,
        WSAEHOSTUNREACH = 10065,
    }
}

/// The failure that a code means, of either system: no number is in both.
#[rustfmt::skip]
pub(super) fn failure(code: i32) -> Failure {
    #[allow(clippy::wildcard_imports, reason = "a module of numbers, most of them used here")]
    use errno::*;
    let fault = match code {
        ECANCELED | EINTR | WSA_OPERATION_ABORTED => Fault::Cancelled,
        ECONNRESET | EPIPE | ENOTCONN | WSAECONNRESET | WSAENETRESET | WSAENOTCONN
            | WSAESHUTDOWN => Fault::Reset,
        ECONNABORTED | EPROTO | WSAECONNABORTED => Fault::Aborted,
        ECONNREFUSED | WSAECONNREFUSED => Fault::Refused,
        ETIMEDOUT | WSAETIMEDOUT => Fault::TimedOut,
        ENETUNREACH | EHOSTUNREACH | ENETDOWN | EHOSTDOWN | WSAENETDOWN | WSAENETUNREACH
            | WSAEHOSTUNREACH => Fault::Unreachable,
        EADDRINUSE | EADDRNOTAVAIL | WSAEADDRINUSE | WSAEADDRNOTAVAIL => Fault::NoPorts,
        EMFILE | WSAEMFILE => Fault::ProcessDescriptors,
        ENFILE => Fault::SystemDescriptors,
        ENOBUFS | WSAENOBUFS => Fault::Buffers,
        ENOMEM | WSA_NOT_ENOUGH_MEMORY => Fault::Memory,
        ENOSPC => Fault::Watches,
        EAGAIN | WSAEWOULDBLOCK => Fault::WouldBlock,
        _ => Fault::Unexpected,
    };
    Failure { fault, code }
}

/// A stream found no block. Its number is Linux', which means something else where the kernel says it.
pub(super) const NO_BLOCK: Failure = Failure { fault: Fault::NoBlock, code: errno::ENOBUFS };

/// A failure of the simulated network, which speaks Linux', with the number that Windows has for
/// it.
#[cold]
pub(super) fn on_windows(failure: Failure) -> Failure {
    #[allow(clippy::wildcard_imports, reason = "a module of numbers, most of them used here")]
    use errno::*;
    let code = match failure.code {
        ECANCELED => WSA_OPERATION_ABORTED,
        ECONNRESET | EPIPE => WSAECONNRESET,
        ENOTCONN => WSAENOTCONN,
        ECONNABORTED => WSAECONNABORTED,
        ECONNREFUSED => WSAECONNREFUSED,
        ETIMEDOUT => WSAETIMEDOUT,
        ENETUNREACH => WSAENETUNREACH,
        EHOSTUNREACH => WSAEHOSTUNREACH,
        EADDRINUSE | EADDRNOTAVAIL => WSAEADDRINUSE,
        EMFILE => WSAEMFILE,
        ENFILE | ENOBUFS => WSAENOBUFS,
        ENOMEM => WSA_NOT_ENOUGH_MEMORY,
        EAGAIN => WSAEWOULDBLOCK,
        EINVAL => WSAEINVAL,
        code => code,
    };
    // The meaning is the number's, but for this one, which is no failure of a system.
    let fault = if failure == NO_BLOCK { Fault::NoBlock } else { self::failure(code).fault };
    Failure { fault, code }
}

/// Which operations are to fail.
#[derive(Debug)]
pub(super) struct Faults {
    /// For every operation, whatever the table gives for it.
    per_million: u32,
    /// The lines of the table for each operation, of one system.
    lines: [Vec<usize>; Operation::ALL.len()],
    system: SystemErrors,
    /// Beside that, for one line of the table: its index, and how often.
    rates: Vec<(usize, u32)>,
    script: Vec<Scripted>,
    /// How often each operation was begun.
    pub(super) begun: [u64; Operation::ALL.len()],
    /// How many failed.
    pub(super) struck: u64,
}

#[derive(Debug)]
struct Scripted {
    line: usize,
    /// So many operations of its kind from now, this one included.
    countdown: u32,
}

impl Faults {
    pub(super) fn new(per_million: u32, system: SystemErrors) -> Self {
        let lines = Operation::ALL.map(|operation| {
            let own = |line: &Possible| line.operation == operation && line.system == system;
            POSSIBLE.iter().enumerate().filter(|(_, line)| own(line)).map(|(at, _)| at).collect()
        });
        let begun = [0; Operation::ALL.len()];
        Self { per_million, lines, system, rates: Vec::new(), script: Vec::new(), begun, struck: 0 }
    }

    /// The `nth` operation of its kind from now (1 is the next) fails.
    pub(super) fn script(&mut self, operation: Operation, nth: u32, fault: Fault) {
        let line = self.line_of(operation, fault);
        self.script_line(line, nth);
    }

    /// The `nth` operation of a line's kind from now fails as the line has it.
    pub(super) fn script_line(&mut self, line: usize, nth: u32) {
        assert!(nth > 0, "the first operation from now is number 1");
        self.script.push(Scripted { line, countdown: nth });
    }

    pub(super) fn set_rate(&mut self, operation: Operation, fault: Fault, per_million: u32) {
        let line = self.line_of(operation, fault);
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
        self.begun[operation as usize] += 1;
        if let Some(line) = self.scripted(operation) {
            self.struck += 1;
            return Some((&POSSIBLE[line], true));
        }
        for &(line, per_million) in &self.rates {
            if POSSIBLE[line].operation == operation && random.chance(per_million) {
                self.struck += 1;
                return Some((&POSSIBLE[line], false));
            }
        }
        if !random.chance(self.per_million) {
            return None;
        }
        let lines = &self.lines[operation as usize];
        self.struck += 1;
        Some((&POSSIBLE[lines[random.below(lines.len() as u64) as usize]], false))
    }

    fn scripted(&mut self, operation: Operation) -> Option<usize> {
        if self.script.is_empty() {
            return None;
        }
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

    /// The first line of the table with the operation and the fault.
    fn line_of(&self, operation: Operation, fault: Fault) -> usize {
        let lines = &self.lines[operation as usize];
        let at = lines.iter().find(|&&at| POSSIBLE[at].fault == fault);
        *at.unwrap_or_else(|| {
            panic!("{operation:?} never fails with {fault:?} on {:?}: see POSSIBLE", self.system)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_hits_the_nth_of_its_kind() {
        let mut faults = Faults::new(0, SystemErrors::Linux);
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
        let [mut linux, mut windows] = [SystemErrors::Linux, SystemErrors::Windows]
            .map(|system| Faults::new(1_000_000, system));
        let mut random = Random::new(3);
        for line in POSSIBLE {
            let faults = match line.system {
                SystemErrors::Linux => &mut linux,
                SystemErrors::Windows => &mut windows,
            };
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
        Faults::new(0, SystemErrors::Linux).script(Operation::Park, 1, Fault::Refused);
    }
}
