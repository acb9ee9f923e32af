//! Everything that reads the system during an experiment. Nothing here judges: a [`Snapshot`] holds
//! what was read at one moment, and verdicts are made of it elsewhere.

pub(crate) mod family;
mod server;
mod snapshot;
pub(crate) mod threads;

pub use server::{Ended, How, Server};
pub use snapshot::{Depth, Memory, Process, ProcessFamily, Queue, Snapshot};
