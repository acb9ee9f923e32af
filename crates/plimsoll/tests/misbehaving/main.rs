//! Peers that misbehave: what each can make the server hold, how it ends and with which reason, and
//! that the others are served meanwhile.
//!
//! Every test ends with the accounts reconciled, a drain that loses no block, and the reasons that
//! the handler heard equal to those that the metrics counted ([`stage::Stage::finish`]).

#[path = "../common/mod.rs"]
mod common;

mod crowd;
mod reading;
mod resets;
mod sending;
mod silent;
mod stage;

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(target_os = "linux")]
mod inner;
#[cfg(target_os = "linux")]
mod vanished;
