//! The counter-proof: the named limit is raised, where that needs no change of the system, and one
//! looks whether the line moves.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::Target;
use super::ramp::Ramp;
use crate::Result;
use crate::results::{Side, StoppedBy};
use crate::verdict::Stop;
use crate::worker::{Connect, Keep, Report, Request};

/// Connections made for a counter-proof.
const PROOF: u64 = 64;

/// The counter-proof of a verdict, in words; `None` where the limit cannot be raised.
pub(super) fn counter_proof(ramp: &mut Ramp<'_>, stop: &Stop) -> Result<Option<String>> {
    let target = ramp.server.address();
    let loopback = target.is_ipv4() && target.ip().is_loopback();
    if stop.by == StoppedBy::Ports && loopback && !ramp.lab.is_interrupted() {
        let Some(other) = outside(ramp) else { return Ok(None) };
        let made = from_another(ramp, other)?;
        return Ok(Some(format!(
            "from one more source address, {other}, {made} of {PROOF} further connections were made: \
             {}",
            if made > 0 { "the line moves with the addresses" } else { "the line does not move" }
        )));
    }
    let workers = ramp.workers.len() as u64;
    if workers > 1 {
        return Ok(Some(format!(
            "one client process can hold {} connections (its descriptors); with {workers} of them \
             the line moved to {}",
            ramp.workers.room(0),
            ramp.tally.established
        )));
    }
    if stop.by == StoppedBy::Descriptors
        && stop.side == Some(Side::Server)
        && matches!(ramp.options.target, Target::Embedded(_))
    {
        return Ok(Some(
            "none: the embedded server runs with its hard limit on descriptors already".to_owned(),
        ));
    }
    Ok(None)
}

/// A loopback address that was not a source.
fn outside(ramp: &Ramp<'_>) -> Option<IpAddr> {
    let asked = ramp.options.sources?;
    let ours = |address: &IpAddr| {
        (0..asked.count().min(1 << 16)).any(|index| asked.nth(index).as_ref() == Some(address))
    };
    (2..250).map(|last| IpAddr::V4(Ipv4Addr::new(127, 77, 77, last))).find(|one| !ours(one))
}

fn from_another(ramp: &mut Ramp<'_>, source: IpAddr) -> Result<u64> {
    let worker = ramp.workers.add()?;
    ramp.workers.ask(
        worker,
        &Request::Connect(Connect {
            target: ramp.server.address(),
            source: Some(source),
            count: PROOF,
            keep: Keep::Open,
            in_flight: PROOF as usize,
            timeout_ms: ramp.options.timeout.as_millis() as u64,
            failures: 16,
            one_cpu: false,
        }),
    )?;
    let patience = ramp.options.timeout * 2 + Duration::from_secs(1);
    let deadline = Instant::now() + patience;
    while let Some((_, report)) =
        ramp.workers.next(deadline.saturating_duration_since(Instant::now()))?
    {
        if let Report::Connected(connected) = report {
            return Ok(connected.tally.established);
        }
    }
    Ok(0)
}
