//! The clients' own limits: what their processes can hold, found before the run where it can be.

use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::process;

use super::ramp::Ramp;
use crate::verdict::machine::NoMoreWorkers;
use crate::{Error, Lab, Result, errno, sys, units};

/// Descriptors that this process keeps for itself while it starts a worker and reads the system.
const KEPT: u64 = 16;
/// Descriptors of this process that one worker takes: its stdin and its stdout.
const PER_WORKER: u64 = 2;

/// Checks before the run whether the clients can hold that many connections, and warns where not.
///
/// # Errors
/// [`Error::Machine`] where it can hold none.
pub(super) fn check(lab: &Lab, connections: Option<u64>) -> Result<()> {
    sys::raise_descriptor_limit();
    let room = sys::room_of_worker();
    let (used, limit) = own_descriptors();
    let workers = limit.saturating_sub(used + KEPT) / PER_WORKER;
    if room == 0 || workers == 0 {
        return Err(Error::machine(
            format!(
                "the clients' side has no descriptors for connections: RLIMIT_NOFILE is {limit}, \
                 {used} are open in this process, and each process keeps some for itself"
            ),
            "raise it: `ulimit -n 1024` or more, hard limit and soft",
        ));
    }
    let most = room.saturating_mul(workers);
    if connections.is_some_and(|asked| asked > most) {
        lab.progress.warn(&format!(
            "the clients' side can hold about {} connections: {workers} processes of {room} each, \
             under RLIMIT_NOFILE {limit}; `ulimit -n` raises it",
            units::count(most)
        ));
    }
    Ok(())
}

/// Descriptors that this process has open, and how many it may open.
fn own_descriptors() -> (u64, u64) {
    let used = process::descriptors(std::process::id()).unwrap_or(0);
    let limit = Limits::read().nofile.map_or(u64::MAX, |limit| limit.soft);
    (used, limit)
}

impl Ramp<'_> {
    /// Starts one more worker; `Some` where that cannot be.
    ///
    /// # Errors
    /// [`Error::Machine`] where it would have been the first one.
    pub(super) fn another_worker(&mut self) -> Result<Option<NoMoreWorkers>> {
        let workers = self.workers.len() as u64;
        let (used, limit) = own_descriptors();
        if workers > 0 && used + KEPT > limit {
            let room = self.workers.room(0);
            return Ok(Some(NoMoreWorkers::Descriptors { used, room, workers }));
        }
        match self.workers.try_add()? {
            Ok(_) => {
                self.held.push(0);
                self.looks.push(crate::worker::Checked::default());
                Ok(None)
            }
            Err(error) if workers == 0 => Err(Error::machine(
                format!("cannot start a worker: {error}"),
                "check the limits on processes (`ulimit -u`), descriptors and memory",
            )),
            Err(error) => {
                Ok(Some(NoMoreWorkers::Refused { error: errno::name_of(&error), workers }))
            }
        }
    }
}
