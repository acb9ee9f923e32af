//! A shard's thread. Its driver is made, used and ended on it: the kernel ties a ring of io_uring to
//! the task that makes it, and what the ring's end leaves behind would reach that task.

use std::any::Any;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_kernel::process::Schedstat;

use super::Error;
use crate::acceptor::ledger::Ledger;
use crate::buffer::Arena;
use crate::deadline::Deadline;
use crate::driver::{Driver, Features, Nanos, Wake};
use crate::handler::Handler;
use crate::mailbox::{Mailbox, Remote};
use crate::shard::{Parts, Shard};

/// A turn that takes longer is told of: all sessions of its shard waited.
const LONG_TURN: Duration = Duration::from_millis(100);
/// Time between two such lines.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// In builds with debug assertions the accounts are reconciled after so many turns.
const TURNS_PER_AUDIT: u32 = 128;

/// How a shard's thread ended.
#[derive(Debug, Default)]
pub(super) struct ShardEnd {
    pub(super) blocks_lost: usize,
    pub(super) error: Option<std::io::Error>,
}

/// What others need to know of a driver.
pub(super) struct Made {
    pub(super) features: Features,
    pub(super) waker: Arc<dyn Wake>,
    /// Its connections are no descriptors of the process.
    pub(super) is_direct: bool,
}

/// What a thread that has a driver and an arena is given to begin with.
pub(super) struct Order<S> {
    pub(super) parts: Parts<S>,
    pub(super) listener: Option<TcpListener>,
    pub(super) leaving: Leaving,
    pub(super) spin: bool,
}

/// What a thread says while the server starts.
enum Report {
    /// Its driver is made, or why not.
    Made(Result<Made, Error>),
    /// Its handler has begun, or why not.
    Begun(Result<(), Error>),
}

/// A thread, and the ends of its channels that the starting thread has. Dropped before the shard was
/// told to go on, it ends the thread.
pub(super) struct ShardThread<S> {
    handle: JoinHandle<ShardEnd>,
    orders: Sender<Order<S>>,
    reports: Receiver<Report>,
    go: Sender<()>,
}

impl<S: Send + 'static> ShardThread<S> {
    /// Starts the thread of shard `number`, and waits until its driver is made.
    ///
    /// # Errors
    ///
    /// Where there is no thread to be had, or `make` fails.
    pub(super) fn start<D, H, F>(
        number: u32,
        make: impl FnOnce() -> Result<(D, Arena, bool), Error> + Send + 'static,
        factory: Arc<F>,
    ) -> Result<(Self, Made), Error>
    where
        D: Driver<Listener = TcpListener, Socket = S>,
        H: Handler,
        F: Fn(u32) -> H + Send + Sync + 'static,
    {
        let (orders, ordered) = channel();
        let (report, reports) = channel();
        let (go, gone) = channel();
        let body = move || {
            let (driver, arena) = match make() {
                Ok((driver, arena, is_direct)) => {
                    let (features, waker) = (driver.features().clone(), driver.waker());
                    let known = Made { features, waker, is_direct };
                    let _ = report.send(Report::Made(Ok(known)));
                    (driver, arena)
                }
                Err(error) => {
                    let _ = report.send(Report::Made(Err(error)));
                    return ShardEnd::default();
                }
            };
            let Ok(order) = ordered.recv() else { return ShardEnd::default() };
            run(number, driver, arena, order, factory.as_ref(), &report, &gone)
        };
        let thread = std::thread::Builder::new().name(format!("shard {number}"));
        let handle = thread.spawn(body).map_err(Error::Thread)?;
        let thread = Self { handle, orders, reports, go };
        match thread.reports.recv() {
            Ok(Report::Made(known)) => known.map(|known| (thread, known)),
            Ok(Report::Begun(_)) | Err(_) => Err(Error::Panicked),
        }
    }

    /// Gives the thread what it begins with.
    pub(super) fn give(&self, order: Order<S>) {
        // One that has ended says so when it is asked.
        let _ = self.orders.send(order);
    }

    /// Waits until the shard has begun: its handler was made, and `on_start` called.
    ///
    /// # Errors
    ///
    /// Where either of them panicked.
    pub(super) fn has_begun(&self) -> Result<(), Error> {
        match self.reports.recv() {
            Ok(Report::Begun(begun)) => begun,
            Ok(Report::Made(_)) | Err(_) => Err(Error::Panicked),
        }
    }

    /// Has the shard go on. Until then it serves nobody.
    fn go(self) -> JoinHandle<ShardEnd> {
        let _ = self.go.send(());
        self.handle
    }

    /// Ends a thread that was not told to go on.
    fn end(self) {
        let Self { handle, orders, reports, go } = self;
        drop((orders, reports, go));
        let _ = handle.join();
    }
}

/// The threads of a server that starts. Dropped, they end: nothing runs where one could not begin.
pub(super) struct Threads<S: Send + 'static>(pub(super) Vec<ShardThread<S>>);

impl<S: Send + 'static> Threads<S> {
    /// Has all shards go on.
    pub(super) fn go(mut self) -> Vec<JoinHandle<ShardEnd>> {
        self.0.drain(..).map(ShardThread::go).collect()
    }
}

impl<S: Send + 'static> Drop for Threads<S> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(ShardThread::end);
    }
}

/// A thread with a driver, from its order on.
fn run<D: Driver<Listener = TcpListener>, H: Handler>(
    number: u32,
    mut driver: D,
    arena: Arena,
    order: Order<D::Socket>,
    factory: &impl Fn(u32) -> H,
    report: &Sender<Report>,
    gone: &Receiver<()>,
) -> ShardEnd {
    // Dropped after the shard, however it ends.
    let mut leaving = order.leaving;
    if let Some(listener) = order.listener {
        driver.listen(listener);
    }
    let parts = order.parts;
    let begun = begin(number, factory, |handler| Shard::new(driver, arena, handler, parts));
    let shard = match begun {
        Ok(shard) => {
            let _ = report.send(Report::Begun(Ok(())));
            shard
        }
        Err(error) => {
            let _ = report.send(Report::Begun(Err(error)));
            return ShardEnd::default();
        }
    };
    if gone.recv().is_err() {
        // Another shard could not begin.
        return ShardEnd::default();
    }
    let end = drive(shard, order.spin);
    leaving.failed = end.error.is_some();
    end
}

/// Makes a shard's handler and the shard, and calls `on_start`.
fn begin<D: Driver, H: Handler>(
    shard: u32,
    factory: &impl Fn(u32) -> H,
    new: impl FnOnce(H) -> Shard<D, H>,
) -> Result<Shard<D, H>, Error> {
    let panicked = |callback, payload: Box<dyn Any + Send>| {
        let message = message_of(payload.as_ref());
        Error::Begin { shard, callback, message }
    };
    let handler = catch_unwind(AssertUnwindSafe(|| factory(shard)));
    let mut made = new(handler.map_err(|payload| panicked("the factory", payload))?);
    let now = made.driver().now();
    made.start(now).map_err(|payload| panicked("on_start", payload))?;
    Ok(made)
}

/// What a panic said.
fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}

/// Drives a shard to its end.
fn drive<D: Driver, H: Handler>(mut shard: Shard<D, H>, spin: bool) -> ShardEnd {
    let mut now = shard.driver().now();
    let mut slow = SlowTurns { told: None, looked: Nanos(0), waited: Duration::ZERO };
    let mut turns = 0_u32;
    loop {
        let until = shard.turn(now);
        let end = shard.driver().now();
        let took = end.since(now);
        shard.counters().count_turn(took);
        if took > LONG_TURN {
            slow.tell(&shard, end, took);
        } else {
            slow.look(end);
        }
        turns = turns.wrapping_add(1);
        if cfg!(debug_assertions) && turns.is_multiple_of(TURNS_PER_AUDIT) {
            shard.audit().expect("the accounts agree with what is there");
        }
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

/// Tells of turns that take long, and whose fault it was.
struct SlowTurns {
    told: Option<Nanos>,
    /// When it was looked how long the thread had waited for a processor, and how long that was.
    looked: Nanos,
    waited: Duration,
}

impl SlowTurns {
    /// A turn has ended, and was not slow. Looks once a second at most, which costs 6 µs.
    #[inline]
    fn look(&mut self, end: Nanos) {
        if end.since(self.looked) > LOG_EVERY {
            self.looked = end;
            self.waited = waited_for_a_processor();
        }
    }

    /// A turn took so long, until `end`. One line a second at most. A handler is blamed where its
    /// thread waited for a processor for less than half of that since the last look.
    #[cold]
    fn tell<D: Driver, H: Handler>(&mut self, shard: &Shard<D, H>, end: Nanos, took: Duration) {
        let waited_before = self.waited;
        (self.looked, self.waited) = (end, waited_for_a_processor());
        if self.told.is_some_and(|told| end.since(told) <= LOG_EVERY) {
            return;
        }
        self.told = Some(end);
        let waited = self.waited.saturating_sub(waited_before);
        let handler = std::any::type_name::<H>();
        let (called, shard) = (shard.called(), shard.number());
        let (last_callback, callbacks) = (called.last, called.count);
        if waited > took / 2 {
            tracing::warn!(
                %handler, last_callback, callbacks, shard, ?took, ?waited,
                "a turn took long, and its shard's thread has waited for a processor"
            );
        } else {
            tracing::warn!(
                %handler, last_callback, callbacks, shard, ?took, "a handler blocks its shard"
            );
        }
    }
}

/// For how long the calling thread has been ready to run, and had no processor; 0 where the system
/// does not tell, and no handler can be excused there.
fn waited_for_a_processor() -> Duration {
    Schedstat::of_this_thread().unwrap_or_default().waited
}

/// What is done when a shard's thread ends, however it ends. The others would wait for the acceptor
/// for ever, or go on taking connections, some of them for a shard that is gone.
pub(super) struct Leaving {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) remote: Remote,
    pub(super) deadline: Arc<Deadline>,
    /// The ledger, where this is the acceptor's thread.
    pub(super) ledger: Option<Arc<Ledger>>,
    /// It ends by an error, or a panic: `true` until it is known to be neither.
    pub(super) failed: bool,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.mailbox.end();
        if let Some(ledger) = &self.ledger {
            ledger.close();
        }
        if self.failed {
            self.deadline.set(Nanos(0));
        }
        if self.failed || self.ledger.is_some() {
            self.remote.ring_all();
        }
    }
}
