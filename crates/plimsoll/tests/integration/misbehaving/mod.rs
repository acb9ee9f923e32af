//! Peers that misbehave: what each can make the server hold, how it ends and with which reason, and
//! that the others are served meanwhile.
//!
//! Every test ends with the accounts reconciled, a drain that loses no block, and the reasons that
//! the handler heard equal to those that the metrics counted ([`test_server::TestServer::finish`]).

mod crowd;
mod reading;
mod resets;
mod sending;
mod silent;
mod test_server;

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(unix)]
mod urgent;
#[cfg(target_os = "linux")]
mod vanished;
