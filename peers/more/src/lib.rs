//! What the peers on rings have in common.

use clap::{Parser, ValueEnum};
use plimsoll_peers::peer::PeerArgs;

/// An echo server on one ring and one thread
#[derive(Parser)]
pub struct Args {
    /// What all peers take.
    #[command(flatten)]
    pub peer: PeerArgs,

    /// How the ring is set up
    #[arg(long, value_enum, default_value_t = Ring::Library)]
    pub ring: Ring,
}

/// How the kernel runs a ring's completions; each can be ranked as a server of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ring {
    /// As the library sets up a ring that it was told nothing about
    Library,
    /// `COOP_TASKRUN` and `TASKRUN_FLAG`: no interrupt of a running thread
    Coop,
    /// `SINGLE_ISSUER` and `DEFER_TASKRUN`: only when the thread asks for completions
    Defer,
}
