//! Builder → running shards → drain.

mod error;
mod listener;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::acceptor::ledger::Ledger;
use crate::budget::Limits;
use crate::buffer::{Arena, Memory};
use crate::driver::{Driver, Nanos};
use crate::handler::Handler;
use crate::mailbox::{HandOver, Mail, Mailbox, Remote};
use crate::metrics::{AllCounters, Counters, Metrics};
use crate::reason::Reason;
use crate::shard::{Link, Parts, Profile, Shard, stream_blocks};
pub use error::Error;

/// Which kernel interface a server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Choice {
    /// The best that works here.
    #[default]
    Auto,
    /// io_uring: Linux 6.1 or newer, where it is not forbidden.
    Uring,
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
            spin: false,
        }
    }
}

impl Builder {
    /// Listens at an address: `127.0.0.1:7000`, `[::]:7000` (IPv4 too), a name, port 0 for any.
    /// Without one nothing is accepted: a client only.
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

    /// Never sleeps: lowest latency, for a whole CPU per shard.
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Starts the shards. `factory` is called once on each shard's thread, with its number.
    ///
    /// # Errors
    ///
    /// Where the address cannot be used, the limits are nonsense or more than the machine has, or
    /// the kernel interface is not to be had. Nothing runs then.
    pub fn start<H, F>(self, factory: F) -> Result<Running, Error>
    where
        H: Handler,
        F: Fn(u32) -> H + Send + Sync + 'static,
    {
        self.limits.check().map_err(Error::Limits)?;
        #[cfg(target_os = "linux")]
        {
            use crate::driver::uring::Uring;
            let plan = self.plan()?;
            let listener = self.listen.as_deref().map(|at| listener::open(at, &self.limits));
            let listener = listener.transpose()?;
            let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
            let mut seats = Vec::new();
            for _ in 0..plan.shards {
                let arena = Arena::new(self.limits.blocks(), self.limits.block_bytes)
                    .map_err(Error::Arena)?;
                let driver = self.uring(plan.slots, arena.memory().clone())?;
                seats.push((driver, arena));
            }
            if let Some(listener) = listener {
                Driver::listen(&mut seats[0].0, listener);
            }
            let _: &Vec<(Uring, Arena)> = &seats;
            self.run(seats, plan, address, factory)
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = factory;
            Err(Error::NoDriver("io_uring is Linux', and no other driver is built yet".into()))
        }
    }

    /// How many shards, and how many slots in each.
    fn plan(&self) -> Result<Plan, Error> {
        let limits = &self.limits;
        let accepted = if self.listen.is_some() { limits.max_connections } else { 0 };
        let total = accepted.saturating_add(limits.max_outgoing).max(1);
        let files = listener::files_available();
        if u64::from(total) > files {
            return Err(Error::Impossible {
                limit: "max_connections",
                asked: u64::from(total),
                fits: files,
                resource: "fs.file-max (each connection is a file)",
                cure: format!("sysctl -w fs.file-max={}", u64::from(total) * 2 + files / 10),
            });
        }
        let table = u64::from(SESSIONS_PER_SHARD).min(listener::descriptor_limit()) as u32;
        if self.shards == Some(0) {
            return Err(Error::Limits("shards is 0: at least 1".into()));
        }
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        let shards = self.shards.unwrap_or(cpus).min(total).max(total.div_ceil(table.max(1)));
        let outgoing = limits.max_outgoing.div_ceil(shards);
        let slots = (accepted.div_ceil(shards) + outgoing).max(1);
        Ok(Plan { shards, slots, outgoing })
    }

    #[cfg(target_os = "linux")]
    fn uring(&self, slots: u32, memory: Arc<Memory>) -> Result<crate::driver::uring::Uring, Error> {
        use crate::driver::uring::{Config, Uring};
        let streams = self.profile == Profile::Throughput;
        let stream_blocks = if streams { stream_blocks(self.limits.blocks()) } else { 0 };
        let config = Config { stream_blocks, ..Config::new(slots) };
        Uring::new(&config, memory).map_err(|error| Error::NoDriver(error.to_string()))
    }

    /// Starts a thread for each driver.
    fn run<D, H, F>(
        self,
        seats: Vec<(D, Arena)>,
        plan: Plan,
        address: Option<SocketAddr>,
        factory: F,
    ) -> Result<Running, Error>
    where
        D: Driver + Send + 'static,
        H: Handler,
        F: Fn(u32) -> H + Send + Sync + 'static,
    {
        let features = seats[0].0.features().clone();
        let wakers: Vec<_> = seats.iter().map(|(driver, _)| driver.waker()).collect();
        let permits = self.limits.max_connections.max(1);
        let ledger = Arc::new(Ledger::new(permits, seats.len(), wakers[0].clone()));
        let links: Arc<[Link<D::Socket>]> = wakers
            .into_iter()
            .map(|waker| Link {
                mailbox: Arc::new(Mailbox::new(waker)),
                handed: HandOver::new(plan.slots as usize),
            })
            .collect();
        let counters: Arc<[Arc<Counters>]> = seats.iter().map(|_| Arc::default()).collect();
        let remote = Remote { shards: links.iter().map(|link| link.mailbox.clone()).collect() };
        let factory = Arc::new(factory);
        let threads = Vec::new();
        let mut running =
            Running { address, remote, counters: AllCounters(counters), threads, features };
        for (number, (driver, arena)) in seats.into_iter().enumerate() {
            let parts = Parts {
                number: number as u32,
                profile: self.profile,
                limits: self.limits.clone(),
                slots: plan.slots,
                outgoing: plan.outgoing,
                arena,
                links: links.clone(),
                ledger: ledger.clone(),
                counters: running.counters.0[number].clone(),
                accepts: number == 0 && address.is_some(),
            };
            let (factory, spin) = (factory.clone(), self.spin);
            let remote = running.remote();
            let thread = std::thread::Builder::new()
                .name(format!("shard {number}"))
                .spawn(move || {
                    let mut alarm = Alarm { remote, armed: true };
                    let end = drive(Shard::new(driver, factory(parts.number), parts), spin);
                    alarm.armed = end.error.is_some();
                    end
                })
                // Dropped here, `running` ends the shards that were started.
                .map_err(Error::Thread)?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

/// How many shards, and how many slots in each.
#[derive(Debug, Clone, Copy)]
struct Plan {
    shards: u32,
    slots: u32,
    /// Of the slots of each shard, those for connections that its handler makes.
    outgoing: u32,
}

/// A shard's thread.
fn drive<D: Driver, H: Handler>(mut shard: Shard<D, H>, spin: bool) -> ShardEnd {
    let mut now = shard.driver().now();
    loop {
        let until = shard.turn(now);
        if shard.is_drained() {
            return ShardEnd { blocks_lost: shard.settle_accounts(), error: None };
        }
        let until = if spin { Some(Nanos(0)) } else { until };
        match shard.wait(until) {
            Ok(later) => now = later,
            Err(error) => return ShardEnd { blocks_lost: 0, error: Some(error) },
        }
    }
}

/// Cuts all shards when the one that holds it fails or panics: the others would go on taking
/// connections, some of them for a shard that is gone.
struct Alarm {
    remote: Remote,
    armed: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.armed {
            ask_to_drain(&self.remote, Duration::ZERO);
        }
    }
}

/// Has all shards drain.
fn ask_to_drain(remote: &Remote, within: Duration) {
    for mailbox in remote.shards.iter() {
        let mut mail = Mail::Drain(within);
        // A full mailbox is read within a turn or two, or never, where its shard has ended.
        for _ in 0..10_000 {
            match mailbox.put(mail) {
                Ok(()) => break,
                Err(back) => mail = back,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How a shard's thread ended.
#[derive(Debug)]
struct ShardEnd {
    blocks_lost: usize,
    error: Option<std::io::Error>,
}

/// A running server. Dropping it cuts every session and stops it.
#[derive(Debug)]
pub struct Running {
    address: Option<SocketAddr>,
    remote: Remote,
    counters: AllCounters,
    threads: Vec<JoinHandle<ShardEnd>>,
    features: crate::driver::Features,
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
        self.counters.sum()
    }

    /// Stops accepting, tells every session ([`Handler::on_drain`]), waits until they have ended,
    /// and cuts what is left after `within`.
    ///
    /// # Errors
    ///
    /// Where a shard had ended early, with the error that it ended with.
    pub fn drain(mut self, within: Duration) -> Result<DrainReport, Error> {
        let before = self.metrics();
        ask_to_drain(&self.remote, within);
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
            ask_to_drain(&self.remote, Duration::ZERO);
            let _ = self.join();
        }
    }
}
