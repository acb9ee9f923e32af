//! A completion-based TCP engine that stays inside a written budget.
//!
//! A server is a [`Handler`], and limits. Each *shard* is one thread with one kernel interface (a
//! [driver]), one table of sessions and one arena of buffers; shards share nothing on the
//! path of a message. This is a whole server:
//!
//! ```no_run
//! use plimsoll::{Context, Handler, Server};
//!
//! struct Echo;
//! impl Handler for Echo {
//!     type State = ();
//!     fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
//!         cx.send(bytes);
//!         bytes.len()
//!     }
//! }
//!
//! fn main() -> Result<(), plimsoll::Error> {
//!     Server::builder().listen("127.0.0.1:7000").start(|_shard| Echo)?.wait()
//! }
//! ```
//!
//! - [`Limits`] say what the server, and one session, may take. Accepts are posted against
//!   permits, so that the limit on connections is never overshot: who finds no room waits in the
//!   listener's backlog.
//! - [`Profile`] chooses between many connections that cost little and few that are fast.
//! - [`Choice`] names the kernel interface: io_uring where it works, else readiness (epoll, kqueue:
//!   `driver::ready`), with one line of the log that says why; on Windows completion ports
//!   (`driver::iocp`).
//! - [`Reason`] says why a session ended, in one word for handler, log and metrics.
//! - [`Remote`] reaches sessions from other threads.
//! - [`driver::sim`] is a kernel in virtual time, for tests of handlers: every error of every
//!   operation, from a seed.

mod acceptor;
mod budget;
pub mod buffer;
mod deadline;
pub mod driver;
mod handler;
mod mailbox;
mod metrics;
mod monitor;
mod reason;
mod server;
mod session;
mod shard;

pub use budget::{DRAIN_WINDOW, DryRun, Limits, Shed, WhenFull};
pub use handler::{Context, Handler, NotBegun, Queue, ShardContext};
pub use mailbox::{MAILBOX, Remote, Undelivered};
pub use metrics::{Metrics, TURN_TIMES};
pub use monitor::Pressure;
pub use reason::Reason;
pub use server::{
    Builder, Choice, DrainReport, Error, Observer, Running, SESSIONS_PER_SHARD, Server,
};
pub use session::SessionId;
pub use shard::Profile;
