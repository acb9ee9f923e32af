//! Ctrl-C: the first one asks the experiment to end with what it has, the second ends at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use plimsoll_lab::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit code after an interruption, as shells have it: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// A flag that the first SIGINT or SIGTERM sets. The second one exits with 130 at once; workers and
/// the embedded server are tied to this process by the kernel, and end with it.
pub(crate) fn flag() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: on the first signal the shutdown still sees an unset flag.
        let shut_down =
            flag::register_conditional_shutdown(signal, EXIT_CODE.into(), Arc::clone(&interrupted));
        shut_down.and_then(|_| flag::register(signal, Arc::clone(&interrupted))).map_err(
            |error| {
                Error::machine(
                    format!("cannot handle signals: {error}"),
                    "run it where a process may install signal handlers",
                )
            },
        )?;
    }
    Ok(interrupted)
}
