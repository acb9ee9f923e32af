//! Why a server does not start, or ended.

use std::io;

/// What shows the program that listens.
const SHOWS_IT: &str = if cfg!(windows) { "netstat -ano" } else { "ss -ltnp" };
/// What else keeps an address: Windows' listeners reserve theirs (`Builder::listen`).
const OR_WAIT: &str =
    if cfg!(windows) { ", wait until connections of an earlier server have ended" } else { "" };

/// Why a server does not start, or ended. Each text names the cause and the cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is none, or no address of this machine. The caller's mistake.
    #[error("{address} is no address to listen at: {cause}; give one such as 127.0.0.1:7000")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The address is in use: by a program, or, on Windows, by a connection of an earlier server that
    /// has not ended.
    #[error(
        "{address} is in use: end the program that listens there ({SHOWS_IT} shows it){OR_WAIT}, or choose another port"
    )]
    InUse {
        /// As it was given.
        address: String,
    },
    /// The kernel does not let us listen there.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// As it was given.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The limits are nonsense in themselves. The caller's mistake.
    #[error("{0}")]
    Limits(String),
    /// The limits are more than this machine has.
    #[error("{limit} {asked} does not fit: {resource} allows {fits}; lower it, or: {cure}")]
    Impossible {
        /// The limit's name.
        limit: &'static str,
        /// What was asked for.
        asked: u64,
        /// What would fit.
        fits: u64,
        /// What limits it.
        resource: &'static str,
        /// The command that raises it.
        cure: String,
    },
    /// No kernel interface is to be had.
    #[error("{0}")]
    NoDriver(String),
    /// The buffers are not to be had.
    #[error("no address space for the buffers: {0}; lower buffer_bytes")]
    Arena(#[source] io::Error),
    /// A thread cannot be started.
    #[error(
        "cannot start a shard's thread: {0}; lower the number of shards, or raise the limit on processes (ulimit -u)"
    )]
    Thread(#[source] io::Error),
    /// The handler's factory or its `on_start` panicked: the server does not start.
    #[error("shard {shard} does not begin, since {callback} panicked: {message}")]
    Begin {
        /// The shard's number.
        shard: u32,
        /// Which of the two.
        callback: &'static str,
        /// What the panic said.
        message: String,
    },
    /// A shard's accounts do not agree with what is there.
    #[error("the accounts do not agree: {0}; this is a bug in plimsoll")]
    Audit(String),
    /// A shard ended with an error of the kernel's.
    #[error("a shard ended: {0}")]
    Shard(#[source] io::Error),
    /// A shard panicked. Callbacks that panic cost a session only: so the `default` or `drop` of a
    /// handler's state did, or it is a bug in the engine.
    #[error(
        "a shard panicked, outside of a callback: look at the default and drop of the handler's state; if it is neither, this is a bug in plimsoll"
    )]
    Panicked,
}
