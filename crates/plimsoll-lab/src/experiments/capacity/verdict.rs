//! What ended a ramp, from the server's side and the clients'.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::Target;
use super::ramp::{Ramp, Step};
use crate::evidence::{self, Stop, words};
use crate::results::{Side, StoppedBy};
use crate::worker::{Connect, Keep, Report, Request, Tally, Why};
use crate::{Error, Result, errno};

/// The verdict after a step; `None` to go on.
///
/// `made` connections in it, `dead` of the held ones ended by the server since the last look,
/// `stuck` the depth of an accept queue that nobody empties.
pub(super) fn after(
    ramp: &mut Ramp<'_>,
    step: Step,
    made: u64,
    dead: u64,
    stuck: Option<u64>,
    cpu: (Instant, Option<Duration>),
) -> Option<Stop> {
    if ramp.lab.is_interrupted() {
        return None;
    }
    let established = ramp.tally.established;
    if let Some(how) = ramp.server.ended() {
        let text = format!("after {established} connections {how}");
        return Some(Stop::new(StoppedBy::ServerLimit, Side::Server, text));
    }
    if dead > 0 && dead * 2 >= made {
        return Some(server_limit(
            ramp,
            format!("the server ended {dead} connections while {made} were made"),
        ));
    }
    if let Some(depth) = stuck {
        return Some(server_limit(
            ramp,
            format!(
                "the server leaves {depth} connections in its accept queue and accepts no more"
            ),
        ));
    }
    match step {
        Step::More => None,
        Step::NoPorts => Some(evidence::ports(
            established,
            &ramp.sources.describe(),
            ramp.sources.used(),
            ramp.server.address,
        )),
        Step::Met(Why::Files) => Some(Stop::new(
            StoppedBy::Descriptors,
            Side::Both,
            format!("ENFILE after {established} connections: fs.file-max is reached"),
        )),
        Step::Met(Why::Memory) => Some(Stop::new(
            StoppedBy::Memory,
            Side::Client,
            format!(
                "the kernel had no memory for a socket: {}{}",
                named(&ramp.tally.errors),
                evidence::nonpaged_pool()
            ),
        )),
        Step::Met(_) => Some(failing(ramp, cpu)),
    }
}

/// The server takes no more: its descriptors, or a limit of its own.
fn server_limit(ramp: &Ramp<'_>, seen: String) -> Stop {
    match ramp.server.descriptors() {
        Some(now) if now.exhausted() => Stop::new(
            StoppedBy::Descriptors,
            Side::Server,
            format!(
                "{seen}: its process has {} descriptors open of RLIMIT_NOFILE {}",
                now.used, now.limit
            ),
        ),
        Some(now) => Stop::new(
            StoppedBy::ServerLimit,
            Side::Server,
            format!(
                "{seen}, with {} of {} descriptors in use: a limit of its own",
                now.used, now.limit
            ),
        ),
        None => Stop::new(StoppedBy::ServerLimit, Side::Server, seen),
    }
}

/// Sixteen connects in a row have failed.
fn failing(ramp: &Ramp<'_>, cpu: (Instant, Option<Duration>)) -> Stop {
    let errors = named(&ramp.tally.errors);
    if ramp.tally.errors.contains_key(errno::REFUSED) {
        let mut text = format!("after {} connections it refuses: {errors}", ramp.tally.established);
        if cfg!(windows) {
            text.push_str("; on Windows a server whose accept queue is full refuses, too");
        }
        return Stop::new(StoppedBy::Refused, Side::Server, text);
    }
    let overflows = ramp.before.grown(ramp.netstat.as_ref(), "ListenOverflows");
    let queue = ramp.server.queue();
    if overflows.is_some_and(|count| count > 0) {
        let depth = match &queue {
            Some(queue) => format!("{} of {}", queue.depth, queue.limit),
            None => "unknown".to_owned(),
        };
        let busy = ramp.server.cpu().zip(cpu.1).map(|(now, before)| {
            now.saturating_sub(before).as_secs_f64() / cpu.0.elapsed().as_secs_f64().max(1e-3)
        });
        let counters =
            format!("ListenOverflows +{}, accept queue {depth}, {errors}", words(overflows));
        return match busy {
            Some(cores) if cores >= 0.9 => Stop::new(
                StoppedBy::Cpu,
                Side::Server,
                format!(
                    "the server used {cores:.2} cores and could not accept as fast: {counters}"
                ),
            ),
            _ => Stop::new(
                StoppedBy::QueueFull,
                Side::Server,
                format!("the server empties its queue more slowly than clients arrive: {counters}"),
            ),
        };
    }
    let mut stop = evidence::why_silent(&ramp.before, ramp.options.timeout.as_secs_f64());
    stop.add(format!("; {errors}"));
    stop
}

/// Says what the clients cannot see.
pub(super) fn mention(stop: &mut Stop, established: u64, alive: u64, queued: Option<u64>) {
    if let Some(queued) = queued.filter(|queued| *queued > 0) {
        stop.add(format!(
            "; of {established} connections that clients see established, {queued} still wait in \
             the server's accept queue"
        ));
    }
    if alive < established {
        stop.add(format!("; {alive} are alive"));
    }
}

/// Connections made for a counter-proof.
const PROOF: u64 = 64;

/// Raises the named limit, where that needs no change of the system, and sees whether the line moves.
pub(super) fn counter_proof(ramp: &mut Ramp<'_>, stop: &Stop) -> Result<Option<String>> {
    let target = ramp.server.address;
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
            target: ramp.server.address,
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

/// The first connection was not made.
pub(super) fn unreachable(address: SocketAddr, step: Step, tally: &Tally) -> Error {
    let errors = &tally.errors;
    if errors.contains_key(errno::REFUSED) {
        return Error::target(
            format!("nobody listens on {address} ({})", errno::REFUSED),
            "start the server, or check address and port: `ss -ltn` lists who listens",
        );
    }
    if errors.contains_key(errno::TIMED_OUT) {
        return Error::target(
            format!("{address} does not answer a connect ({})", errno::TIMED_OUT),
            "a firewall drops it, the host is down, or its accept queue is full: see `ss -ltn` there",
        );
    }
    if step == Step::NoPorts {
        return Error::machine(
            format!(
                "no source address has a port left towards {address} ({})",
                errno::NO_PORT.join(", ")
            ),
            "give source addresses that this machine has, or wait for TIME_WAIT (60 s) to pass",
        );
    }
    Error::target(
        format!("{address} cannot be reached: {}", named(errors)),
        "check the address, the route to it, and the source addresses",
    )
}

/// The first connection gave no reply, or a wrong one.
pub(super) fn speechless(address: SocketAddr, error: &str) -> Error {
    let (what, cure) = match error {
        "no_reply" => (
            "accepts a connection and never answers the probe",
            "see whether the server still accepts (`ss -ltn`), and whether it answers what is sent: \
             --send and --expect say what",
        ),
        "wrong_reply" => (
            "answers the probe, but not as expected",
            "a server that is no echo needs --send and --expect, such as --send 'PING\\r\\n' \
             --expect '+PONG'",
        ),
        "closed" | "ECONNRESET" | "EPIPE" => (
            "closes the connection instead of answering the probe",
            "a server that is no echo needs --send and --expect; see its log",
        ),
        _ => ("fails the probe", "see the server's log"),
    };
    Error::target(format!("{address} {what} ({error})"), cure)
}

/// Nothing at all was alive at the end.
pub(super) fn nobody_alive(
    address: SocketAddr,
    established: u64,
    errors: &BTreeMap<String, u64>,
) -> Error {
    Error::target(
        format!(
            "of {established} connections to {address} none was alive at the end: {}",
            named(errors)
        ),
        "see the server's log: it closes what it accepts, accepts nothing, or has ended",
    )
}

fn named(errors: &BTreeMap<String, u64>) -> String {
    if errors.is_empty() {
        return "no error".to_owned();
    }
    let all: Vec<String> = errors.iter().map(|(name, count)| format!("{name} × {count}")).collect();
    all.join(", ")
}
