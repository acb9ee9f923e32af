//! Echo servers to stand beside, an independent verifier, and a runner that
//! ranks servers against each other.
//!
//! - [`verifier`]: both ends of a checked byte stream on blocking standard
//!   sockets. It shares no code with the engine, so that a fault which both of
//!   the engine's ends have in common does not cancel out.
//! - [`rank`]: all servers up at once, loaded in short turns, compared within
//!   a sweep by the CPU time that the kernel charged to them.
//! - [`peer`]: the flags that all peers share, and their listener.
//! - [`buffer_ring`]: the provided buffers of `peer-ring`.
//! - [`sys`]: the few system calls that the standard library does not offer.
//! - [`units`]: times and sizes on command lines.
//!
//! The peers themselves are binaries: `peer-epoll`, `peer-ring`, `peer-tokio`, and those
//! of the package in `more/`. So are `faulty`, an echo server with faults on purpose, and
//! `truth`, which provokes limits with it and checks what `plimsoll` says of them.

pub mod buffer_ring;
pub mod peer;
pub mod rank;
pub mod sys;
pub mod units;
pub mod verifier;
