//! The ledger of permits, and the atomics that it stands on.

mod permits;

#[cfg(test)]
mod shuttled;
#[cfg(test)]
mod tests;

pub(crate) use permits::Ledger;

/// What `permits` is built on; the tests in `shuttled` have another.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
}
