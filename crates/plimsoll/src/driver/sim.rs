//! The simulated kernel: a driver without sockets, threads or clocks.
//!
//! A [`SimKernel`] is a machine with a loopback network in virtual time. Any number of
//! [`SimDriver`]s run on it (one for each shard), and [`SimPeer`]s which a test drives by hand. One
//! seed fixes everything that is left to chance, so a run that failed once fails again:
//!
//! - the network: latencies, how bytes are cut into segments, bounded buffers at both ends, a
//!   listener's backlog of n + 1 with SYNs dropped in silence beyond and tried again after 1 s, dead
//!   connections that keep their place in the accept queue;
//! - the kernel: short sends and receives, completions late and in any order, streams that end at
//!   whim, and [each failure that each operation can have](POSSIBLE), by chance or by script.
//!
//! It asserts the caller's side of the contract ([`Driver`](super::Driver)'s rules) and panics with
//! the tokens concerned: two operations of a kind on a slot, an operation on an empty slot, a slot
//! used again too early, a block lent twice, or written while it is being sent. What is left at the
//! end is told by [`SimDriver::holdings`] and [`SimKernel::report`].
//!
//! Its limits are those of a [system](SimSystem): backlog, ports, descriptors, kernel memory, and
//! the errors and their numbers, as [Linux](SimSystem::linux) has them or a
//! [workstation with Windows](SimSystem::windows_workstation), where a socket that is used again
//! keeps the key of its first association.
//!
//! # One driver, or several
//!
//! With one driver, its waits move the clock. With several, set
//! [`held_clock`](SimOptions::held_clock): waits return at once, and the caller says in which order
//! the drivers run and when time [advances](SimKernel::advance).
//!
//! ```
//! use plimsoll::buffer::Arena;
//! use plimsoll::driver::sim::{SimDriver, SimKernel, SimOptions, SimRead};
//! use plimsoll::driver::{Driver, Into, Kind, Token};
//!
//! let kernel = SimKernel::new(SimOptions::rough(42));
//! let arena = Arena::new(4, 4096)?;
//! let mut driver = SimDriver::new(&kernel, 1, arena.memory().clone());
//! let listener = kernel.listen("127.0.0.1:7".parse().unwrap(), 128);
//! driver.listen(listener);
//! let peer = kernel.connect("127.0.0.1:7".parse().unwrap());
//!
//! let accept = Token::new(Kind::Accept, 1, 0);
//! driver.accept(accept, Into::Slot);
//! let mut done = Vec::with_capacity(16);
//! while done.is_empty() {
//!     driver.wait(None, &mut done)?;
//! }
//! assert_eq!(driver.accepted(accept).peer, peer.address());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use self::kernel::Kernel;
use self::resources::Opened;
use super::{Fault, Nanos};

mod driver;
mod faults;
mod kernel;
mod network;
mod oddities;
mod opening;
mod options;
mod peer;
pub(crate) mod random;
mod resources;
mod rules;
mod slot;
mod socket;
mod system;
mod trace;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use self::driver::{SimDriver, SimHoldings};
pub use self::faults::{Effect, Operation, POSSIBLE, Possible};
pub use self::options::SimOptions;
pub use self::peer::{SimListener, SimPeer, SimPeerListener, SimRead, SimSocket};
pub use self::system::{Overflow, SimPool, SimSystem, SystemErrors};
pub use self::trace::Step;

/// A simulated machine: a clock, a loopback network, and the chances of one seed. Clones share it.
///
/// Belongs to one thread.
#[derive(Debug, Clone)]
pub struct SimKernel {
    shared: Rc<RefCell<Kernel>>,
}

/// What a simulated machine holds, and what has happened on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimReport {
    /// Ends of connections that exist: peers', drivers', queued, handed over, and orphans.
    pub sockets: usize,
    /// Of these, closed ones for which the kernel still has bytes or an end of stream to deliver.
    pub orphans: usize,
    /// Connections that nobody has accepted.
    pub queued: usize,
    /// SYNs that found a full queue.
    pub dropped_syns: u64,
    /// Things that happened in the network.
    pub events: u64,
    /// Completions that drivers were given.
    pub completions: u64,
    /// Stale ones, beside these.
    pub stale_completions: u64,
    /// Operations that failed because it was their turn: drawn, or scripted.
    pub faults: u64,
    /// Sockets that the drivers hold, those on their way between two of them included.
    pub descriptors: u32,
    /// Sockets that drivers and peers hold.
    pub files: u32,
    /// Kernel memory in use, of the [pool](SimSystem::pool).
    pub pool_bytes: u64,
    /// The most of it that ever was.
    pub pool_high_water: u64,
    /// Bytes of buffers that are locked.
    pub pinned_bytes: u64,
}

impl SimKernel {
    /// A machine on which nothing has happened.
    pub fn new(options: SimOptions) -> Self {
        Self { shared: Rc::new(RefCell::new(Kernel::new(options))) }
    }

    /// The virtual time.
    pub fn now(&self) -> Nanos {
        self.shared.borrow().now
    }

    /// A listener, for [`Driver::listen`](super::Driver::listen). Port 0 takes a free one below
    /// 32,768. How many connections can wait in it is up to the [system](SimSystem): `backlog`
    /// and one more on Linux, at most 4,097 there; at most 200 on Windows.
    ///
    /// # Panics
    ///
    /// Where somebody listens at the address.
    pub fn listen(&self, address: SocketAddr, backlog: u32) -> SimListener {
        let most = self.shared.borrow().options.system.backlog_most;
        let (at, address) = self.listener(address, backlog.min(most), false);
        SimListener { at, address }
    }

    /// A listener whose backlog is a hint (a negated one): Windows takes it for what it is,
    /// between 200 and 65,535; Linux for a very large one.
    ///
    /// # Panics
    ///
    /// Where somebody listens at the address.
    pub fn listen_hinted(&self, address: SocketAddr, hint: u32) -> SimListener {
        let system = self.shared.borrow().options.system.clone();
        let granted = match system.errors {
            SystemErrors::Linux => system.backlog_hinted_most,
            SystemErrors::Windows => hint.clamp(200, system.backlog_hinted_most),
        };
        let (at, address) = self.listener(address, granted, false);
        SimListener { at, address }
    }

    /// A listener whose connections the test accepts by hand: where drivers connect to.
    ///
    /// # Panics
    ///
    /// Where somebody listens at the address.
    pub fn peer_listener(&self, address: SocketAddr, backlog: u32) -> SimPeerListener {
        let (at, address) = self.listener(address, backlog, true);
        SimPeerListener::new(self.shared.clone(), at, address)
    }

    fn listener(&self, address: SocketAddr, granted: u32, of_peer: bool) -> (usize, SocketAddr) {
        let mut kernel = self.shared.borrow_mut();
        let at = kernel.listen(address, granted, of_peer);
        let address = kernel.listeners[at].as_ref().expect("made in the line above").address;
        (at, address)
    }

    /// A peer that begins to connect from the loopback address, and a port of the
    /// [range](SimSystem::ports).
    ///
    /// # Panics
    ///
    /// Where every port is in use: see [`connect_from`](Self::connect_from).
    pub fn connect(&self, to: SocketAddr) -> SimPeer {
        self.connect_from(None, to).unwrap_or_else(|failure| panic!("connect to {to}: {failure}"))
    }

    /// A peer that begins to connect from an address (port 0: any).
    ///
    /// # Errors
    ///
    /// [`Fault::NoPorts`] where the port, or every port, is in use; [`Fault::SystemDescriptors`]
    /// where the machine has no more [files](SimSystem::files); `EINVAL` where one address is IPv4
    /// and the other IPv6.
    pub fn connect_from(
        &self,
        source: Option<SocketAddr>,
        to: SocketAddr,
    ) -> Result<SimPeer, super::Failure> {
        let mut kernel = self.shared.borrow_mut();
        let id = kernel.connect(to, source, Opened::ByPeer).map_err(faults::failure)?;
        let address = kernel.sockets.find(id).expect("made in the line above").local;
        Ok(SimPeer::new(self.shared.clone(), id, address))
    }

    /// The `nth` operation of its kind from now, in whichever driver, fails: 1 is the next.
    ///
    /// # Panics
    ///
    /// Where [`POSSIBLE`] has no such failure of the operation.
    pub fn fail_nth(&self, operation: Operation, nth: u32, fault: Fault) {
        self.shared.borrow_mut().faults.script(operation, nth, fault);
    }

    /// The `nth` operation of its kind from now, in whichever driver, fails as a line of
    /// [`POSSIBLE`] has it: for sweeps over all of them.
    ///
    /// # Panics
    ///
    /// Where there is no such line.
    pub fn fail_nth_as(&self, line: usize, nth: u32) {
        assert!(line < POSSIBLE.len(), "line {line} of {}", POSSIBLE.len());
        self.shared.borrow_mut().faults.script_line(line, nth);
    }

    /// How many such operations were begun.
    pub fn begun(&self, operation: Operation) -> u64 {
        self.shared.borrow().faults.begun[operation as usize]
    }

    /// So many of a million such operations fail like this, from now on, beside what the
    /// [options](SimOptions::fault_per_million) say.
    ///
    /// # Panics
    ///
    /// Where [`POSSIBLE`] has no such failure of the operation.
    pub fn set_fault_rate(&self, operation: Operation, fault: Fault, per_million: u32) {
        self.shared.borrow_mut().faults.set_rate(operation, fault, per_million);
    }

    /// From now on nothing fails but for the peers' doing: for the end of a test, in which
    /// everything must come to rest. Connections that are doomed already still die.
    pub fn heal(&self) {
        let mut kernel = self.shared.borrow_mut();
        kernel.faults.set_all(0);
        kernel.options.stale_per_million = 0;
    }

    /// When something happens next: in the network, or a completion that a driver has to give, or
    /// the end of a driver's wait. `None` where nothing ever will: the shards are deadlocked, or
    /// at rest.
    ///
    /// A time that is not after [`now`](Self::now) means that some driver should be turned first.
    pub fn next_event(&self) -> Option<Nanos> {
        let kernel = self.shared.borrow();
        let ends = kernel.drivers.iter();
        if ends
            .clone()
            .any(|end| end.woken.load(Ordering::Acquire) || end.arrivals || !end.stirred.is_empty())
        {
            return Some(kernel.now);
        }
        let drivers = ends.flat_map(|end| [end.due, end.until]).flatten().min();
        kernel.next_event().into_iter().chain(drivers).min()
    }

    /// Moves the clock to [what comes next](Self::next_event), and lets it happen. Gives the time;
    /// `None` where nothing will ever come.
    pub fn advance(&self) -> Option<Nanos> {
        let next = self.next_event()?;
        let mut kernel = self.shared.borrow_mut();
        kernel.advance_to(next);
        kernel.run();
        Some(kernel.now)
    }

    /// Moves the clock to what comes next after now, whether or not some driver should be turned
    /// first: that one is late, as a thread on a busy machine is. Gives the time; `None` where
    /// nothing will ever come.
    pub fn advance_anyway(&self) -> Option<Nanos> {
        let mut kernel = self.shared.borrow_mut();
        let now = kernel.now;
        let drivers = kernel.drivers.iter().flat_map(|end| [end.due, end.until]).flatten();
        let drivers = drivers.filter(|time| *time > now).min();
        let next = kernel.next_event().into_iter().chain(drivers).min()?;
        kernel.advance_to(next);
        kernel.run();
        Some(kernel.now)
    }

    /// Moves the clock on by a duration, and lets everything happen on the way.
    pub fn advance_by(&self, duration: std::time::Duration) {
        let end = self.now().after(duration);
        let mut kernel = self.shared.borrow_mut();
        while let Some(next) = kernel.next_event().filter(|next| *next <= end) {
            kernel.advance_to(next);
            kernel.run();
        }
        kernel.advance_to(end);
    }

    /// What it holds, and what has happened. O(sockets).
    pub fn report(&self) -> SimReport {
        self.shared.borrow().report()
    }

    /// A hash of all completions so far, their times and outcomes: equal in runs that are equal.
    pub fn trace_hash(&self) -> u64 {
        self.shared.borrow().trace.hash
    }

    /// All completions so far; empty unless [recorded](SimOptions::record).
    pub fn trace(&self) -> Vec<Step> {
        self.shared.borrow().trace.steps.clone().unwrap_or_default()
    }
}
