//! Worker processes: the clients' side of an experiment.
//!
//! A process holds at most `RLIMIT_NOFILE` descriptors, and beyond
//! `fs.nr_open` nobody can raise that: more connections take more processes.
//! A worker makes connections, holds them as plain sockets that nothing
//! watches (so that kernel memory per connection is the connection's alone),
//! and looks at them when asked. It obeys requests on stdin and reports on
//! stdout, one JSON object a line.
//!
//! A worker ignores SIGINT (its parent decides), and never outlives its
//! parent: it is killed when the parent's thread that spawned it ends, and
//! exits at the end of stdin.
//!
//! [`Workers`] is the parent's side; [`main`] is the whole of a worker.

pub mod exchange;
pub mod source;

mod connect;
mod held;
mod http;
mod pool;
mod probe;
mod process;
mod protocol;

pub use pool::Workers;
pub use process::main;
pub use protocol::{Checked, Connect, Connected, Ended, Keep, Probed, Report, Request, Tally, Why};

pub use exchange::{Exchange, Payload, ReplyEnd};
