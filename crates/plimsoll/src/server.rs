//! Builder → running shards → drain.

mod error;
mod listener;
mod plan;
mod seats;
mod shared;
mod thread;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::budget::Limits;
use crate::deadline::Deadline;
use crate::driver::{Driver, monotonic};
use crate::handler::Handler;
use crate::mailbox::{Mail, Remote};
use crate::metrics::{AllCounters, Metrics};
use crate::monitor::{Gauge, Monitor, Pressure};
use crate::reason::Reason;
use crate::shard::Profile;
pub use error::Error;
use seats::Seats;
use shared::Shared;
use thread::{ShardEnd, ShardThread, Threads};

/// Which kernel interface a server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Choice {
    /// The best that works here: io_uring, or readiness where that is not to be had, which one line
    /// of the log says then, with the reason. [`Running::features`] tells which it is.
    #[default]
    Auto,
    /// io_uring or nothing: Linux 6.1 or newer, where it is not forbidden.
    Uring,
    /// Readiness: epoll on Linux, kqueue on macOS and FreeBSD. Each connection is a descriptor of
    /// the process, so that `RLIMIT_NOFILE` bounds all shards together.
    Ready,
    /// Completion ports: Windows. [`Choice::Auto`] there.
    Iocp,
}

/// The most sessions that one shard serves: rings of io_uring cancel and look up slower with more
/// in flight (a hash of 256 buckets: 0.7 µs at 4,000, 4 µs at 32,000).
pub const SESSIONS_PER_SHARD: u32 = 16_384;

/// A server, or a client, before it runs.
///
/// ```no_run
/// use plimsoll::{Context, Handler, Server};
///
/// struct Echo;
/// impl Handler for Echo {
///     type State = ();
///     fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
///         cx.send(bytes);
///         bytes.len()
///     }
/// }
///
/// fn main() -> Result<(), plimsoll::Error> {
///     Server::builder().listen("127.0.0.1:7000").start(|_shard| Echo)?.wait()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    listen: Option<String>,
    profile: Profile,
    choice: Choice,
    limits: Limits,
    shards: Option<u32>,
    pool: bool,
    spin: bool,
}

/// The way to a [`Builder`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server that listens nowhere yet, with default limits.
    pub fn builder() -> Builder {
        Builder {
            listen: None,
            profile: Profile::default(),
            choice: Choice::default(),
            limits: Limits::default(),
            shards: None,
            pool: true,
            spin: false,
        }
    }
}

impl Builder {
    /// Listens at an address: `127.0.0.1:7000`, `[::]:7000` (IPv4 too), a name, port 0 for any.
    /// Without one nothing is accepted: a client only.
    ///
    /// On Unix the address is free again as soon as its last server has ended (`SO_REUSEADDR`). On
    /// Windows it is reserved for this server alone (`SO_EXCLUSIVEADDRUSE`), so that no other program
    /// can take its connections. The price, by Microsoft's documentation: [`Error::InUse`] while a
    /// connection of the last server has not ended, which a peer that acknowledges nothing can delay
    /// beyond the end of the process. A drain whose sessions end orderly avoids that.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// What it is tuned for.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Which kernel interface it uses.
    pub fn driver(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// What it may take.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How many shards, a thread each. By default as many as there are CPUs to run on. More are
    /// started where the limits ask for more than [`SESSIONS_PER_SHARD`] on each.
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Whether buffers and descriptors are recycled: on by default. Off, each block gives its pages
    /// back to the system when it is free, and each connection is a new descriptor of the process
    /// instead of an entry of a table made ahead: for measuring what the pools save.
    pub fn pool(mut self, pool: bool) -> Self {
        self.pool = pool;
        self
    }

    /// Never sleeps: lowest latency, for a whole CPU per shard.
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Starts the shards, and returns when all have begun: `factory` has been called on each shard's
    /// thread, with its number, and [`Handler::on_start`] after it.
    ///
    /// # Errors
    ///
    /// Where the address cannot be used, the limits are nonsense or more than the machine has, the
    /// kernel interface is not to be had, or `factory` or [`Handler::on_start`] panics
    /// ([`Error::Begin`]). Nothing runs then.
    pub fn start<H, F>(self, factory: F) -> Result<Running, Error>
    where
        H: Handler,
        F: Fn(u32) -> H + Send + Sync + 'static,
    {
        self.limits.check().map_err(Error::Limits)?;
        let factory = Arc::new(factory);
        match self.choice {
            #[cfg(target_os = "linux")]
            Choice::Uring => self.run(&Seats::uring(&self)?, &factory),
            #[cfg(target_os = "linux")]
            Choice::Auto => {
                match Seats::uring(&self).and_then(|seats| self.run(&seats, &factory)) {
                    Err(Error::NoDriver(why)) => {
                        tracing::warn!(%why, "no io_uring here: connections are served on epoll");
                        self.run(&Seats::ready(&self)?, &factory)
                    }
                    started => started,
                }
            }
            #[cfg(all(unix, not(target_os = "linux")))]
            Choice::Auto => self.run(&Seats::ready(&self)?, &factory),
            #[cfg(unix)]
            Choice::Ready => self.run(&Seats::ready(&self)?, &factory),
            #[cfg(not(target_os = "linux"))]
            Choice::Uring => {
                Err(Error::NoDriver("io_uring is Linux' own; choose `Ready` or `Auto`".into()))
            }
            #[cfg(windows)]
            Choice::Auto | Choice::Iocp => self.run(&Seats::iocp(&self)?, &factory),
            #[cfg(not(windows))]
            Choice::Iocp => Err(Error::NoDriver(
                "completion ports are Windows' own; choose `Uring`, `Ready` or `Auto`".into(),
            )),
            #[cfg(windows)]
            Choice::Ready => Err(Error::NoDriver(
                "readiness (epoll, kqueue) is not Windows'; choose `Iocp` or `Auto`".into(),
            )),
        }
    }

    /// Has each shard's driver made on a thread of its own, opens the listener, and starts them.
    fn run<D, H, F>(&self, seats: &Seats<D>, factory: &Arc<F>) -> Result<Running, Error>
    where
        D: Driver<Listener = TcpListener, Socket: Send> + 'static,
        H: Handler,
        F: Fn(u32) -> H + Send + Sync + 'static,
    {
        let (mut threads, mut made) = (Threads(Vec::new()), Vec::new());
        for number in 0..seats.plan.shards {
            let (thread, one) = ShardThread::start(number, seats.maker(), factory.clone())?;
            threads.0.push(thread);
            made.push(one);
        }
        seats.check(&made)?;
        let listener = self.listen.as_deref().map(|at| listener::open(at, &self.limits));
        let mut listener = listener.transpose()?;
        let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let shared = Shared::new(self, seats.plan, address.is_some(), &made);
        for (number, thread) in threads.0.iter().enumerate() {
            thread.give(shared.order(self, number, listener.take()));
        }
        threads.0.iter().try_for_each(ShardThread::has_begun)?;
        let mut running = shared.running(address, made.swap_remove(0).features);
        let remote = running.remote();
        let monitor = Monitor::start(&running.gauge, move |_| remote.ring_all());
        running.monitor = Some(monitor.map_err(Error::Thread)?);
        running.threads = threads.go();
        Ok(running)
    }
}

/// A running server. Dropping it cuts every session and stops it.
#[derive(Debug)]
pub struct Running {
    address: Option<SocketAddr>,
    remote: Remote,
    counters: AllCounters,
    deadline: Arc<Deadline>,
    threads: Vec<JoinHandle<ShardEnd>>,
    features: crate::driver::Features,
    gauge: Arc<Gauge>,
    monitor: Option<Monitor>,
}

/// Looks at a running server, from any thread. Cheap to clone; it outlives the server, and then
/// shows its last figures.
#[derive(Debug, Clone)]
pub struct Observer {
    counters: AllCounters,
    gauge: Arc<Gauge>,
}

impl Observer {
    /// What has been counted so far. O(shards).
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.counters.sum();
        let figures = self.gauge.figures();
        (metrics.braked, metrics.shed, metrics.calmed) =
            (figures.braked, figures.shed, figures.calmed);
        metrics
    }

    /// How short the machine is of memory and files, and why, in a sentence with the numbers; no
    /// sentence where it is calm.
    pub fn pressure(&self) -> (Pressure, Option<String>) {
        (self.gauge.level(), self.gauge.cause().map(|cause| cause.to_string()))
    }
}

/// What a drain did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Sessions that ended in time.
    pub ended: u64,
    /// Sessions that were cut at the deadline.
    pub cut: u64,
    /// Blocks of the arenas that did not come back: zero, or there is a bug.
    pub blocks_lost: u64,
}

impl Running {
    /// Where it listens; `None` for a client.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What the driver can do here.
    pub fn features(&self) -> &crate::driver::Features {
        &self.features
    }

    /// Reaches the shards from any thread.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// What has been counted so far. O(shards).
    pub fn metrics(&self) -> Metrics {
        self.observer().metrics()
    }

    /// Looks at the server from other threads, while this one waits or drains.
    pub fn observer(&self) -> Observer {
        Observer { counters: self.counters.clone(), gauge: self.gauge.clone() }
    }

    /// How short the machine is of memory and files, and why.
    pub fn pressure(&self) -> (Pressure, Option<String>) {
        self.observer().pressure()
    }

    /// Reconciles every shard's accounts with what is there: slots, operations in flight, leases,
    /// permits, bytes. Each shard stops for O(slots ever used), some 10 ns each.
    ///
    /// # Errors
    ///
    /// [`Error::Audit`] with what does not agree, which is a bug; or where a shard does not answer
    /// within `patience`.
    pub fn audit(&self, patience: Duration) -> Result<(), Error> {
        let (answer, answers) = std::sync::mpsc::channel();
        for mailbox in self.remote.shards.iter() {
            let asked = mailbox.put(Mail::Audit(answer.clone()));
            asked.map_err(|why| Error::Audit(why.to_string()))?;
        }
        let deadline = std::time::Instant::now() + patience;
        for _ in self.remote.shards.iter() {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let said = answers.recv_timeout(left);
            let said = said.map_err(|_| Error::Audit("a shard does not answer".into()))?;
            said.map_err(Error::Audit)?;
        }
        Ok(())
    }

    /// Stops accepting, tells every session ([`Handler::on_drain`]), waits until they have ended,
    /// and cuts what is left after `within`.
    ///
    /// # Errors
    ///
    /// Where a shard had ended early, with the error that it ended with.
    pub fn drain(mut self, within: Duration) -> Result<DrainReport, Error> {
        let before = self.metrics();
        self.ask_to_drain(within);
        let ends = self.join()?;
        let after = self.metrics();
        let cut = Reason::CutByDrain.number();
        let cut = after.ended[cut] - before.ended[cut];
        let ended: u64 = after.ended.iter().sum::<u64>() - before.ended.iter().sum::<u64>();
        let blocks_lost = ends.iter().map(|end| end.blocks_lost as u64).sum();
        Ok(DrainReport { ended: ended - cut, cut, blocks_lost })
    }

    /// Waits until the server ends: never, unless a shard fails, which ends the others too.
    ///
    /// # Errors
    ///
    /// The error that a shard ended with.
    pub fn wait(mut self) -> Result<(), Error> {
        self.join().map(drop)
    }

    /// Whether a shard has ended: after a failure, or after a drain.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Has all shards drain, until the same moment.
    fn ask_to_drain(&self, within: Duration) {
        self.deadline.set(monotonic().after(within));
        self.remote.ring_all();
    }

    fn join(&mut self) -> Result<Vec<ShardEnd>, Error> {
        // All of them, whatever one says.
        let joined: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        let mut ends = Vec::new();
        for end in joined {
            let mut end = end.map_err(|_| Error::Panicked)?;
            match end.error.take() {
                Some(error) => return Err(Error::Shard(error)),
                None => ends.push(end),
            }
        }
        Ok(ends)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.ask_to_drain(Duration::ZERO);
            let _ = self.join();
        }
    }
}
