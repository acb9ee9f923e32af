//! `accept`: how fast a dedicated acceptor empties its queue, and how deep the queue must be.
//!
//! Two parts.
//!
//! **The rate.** A queue of a few thousand connections is filled while nobody accepts, then one
//! thread drains it in a tight loop, timed: `accept4` alone, as an acceptor that hands connections
//! on does it; with a `close` of each; with a `close` of those whose client has reset; and while
//! further clients keep arriving from another thread. Each is repeated, the median is reported and
//! every repetition kept. Closing what was only accepted is outside the timed part.
//!
//! **The depth** (with a rate or a burst). An open-loop client connects at Poisson times, with
//! bursts on top, to a listener with one dedicated acceptor thread, which hands each connection on
//! to a third thread. The acceptor knows when each connection arrived, so it can tell how long the
//! queue was not empty and it was away: the longest such time is the stall. From rate, burst,
//! service rate and stall follows the backlog that is needed ([`backlog_needed`]), and the same
//! arrivals are run again with exactly that backlog.
//!
//! Everything is on loopback and in this process; the client spins between arrivals. The depth is
//! measured on Linux only: Windows does not tell how deep a queue is, nor that it overflowed.

mod drain;
#[cfg(target_os = "linux")]
mod paced;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use plimsoll_kernel::limits::Limits;
use socket2::{Domain, Protocol, Socket, Type};

use crate::results::{Accept, AcceptRate};
use crate::statistics::median;
use crate::units::wrap;
use crate::{Error, Lab, Result, units};

use drain::Way;

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Arrivals per second of the paced part; `None` for bursts only, or no paced part.
    pub rate: Option<f64>,
    /// Arrivals at once, three times in the paced part, on top of the rate.
    pub burst: Option<u64>,
    /// How long the paced part lasts, each time.
    pub duration: Duration,
    /// The backlog of the paced part; `None` for as deep as `net.core.somaxconn` allows.
    pub backlog: Option<u32>,
    /// How long a connect may take while the queue is filled.
    pub timeout: Duration,
    /// How often each way of accepting is timed.
    pub repetitions: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: None,
            burst: None,
            duration: Duration::from_secs(2),
            backlog: None,
            timeout: Duration::from_secs(5),
            repetitions: 5,
        }
    }
}

/// Largest rate and burst that are accepted: beyond them the client, not the queue, is measured.
const RATE_MAX: f64 = 1e6;
const BURST_MAX: u64 = 1_000_000;
/// Longest paced part.
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Most connections queued for one timing: enough for milliseconds of draining.
const QUEUE_MAX: u64 = 4000;
/// Fewer than this give no rate worth printing.
const QUEUE_MIN: u64 = 32;
/// Descriptors left to the rest of the process.
const DESCRIPTORS_SPARE: u64 = 128;

/// Runs the experiment: some three seconds, and twice the duration for the paced part. The flag is
/// whether it was interrupted.
///
/// Raises this process' soft limit on descriptors to its hard one.
///
/// # Errors
///
/// [`Error::Usage`] for rates and times that cannot be, [`Error::Machine`] when there are too few
/// descriptors, `somaxconn` is too small to time anything, or sockets cannot be had.
pub fn run(lab: &Lab, options: &Options) -> Result<(Accept, bool)> {
    check(options)?;
    if cfg!(not(target_os = "linux")) && (options.rate.is_some() || options.burst.is_some()) {
        // Before anything is timed.
        depth(lab, options, &Limits::default(), &mut empty(options))?;
    }
    crate::sys::raise_descriptor_limit();
    let limits = Limits::read();
    let fill = queue_length(&limits)?;
    let mut result = empty(options);
    let mut connect_rates = Vec::new();
    let mut cpu = Vec::new();
    let mut repetitions = vec![Vec::new(); Way::ALL.len()];
    let total = u64::from(options.repetitions.max(1)) * Way::ALL.len() as u64;
    let mut done = 0;
    // The ways take turns, so that a slow phase of the machine meets all of them.
    for _ in 0..options.repetitions.max(1) {
        for (way, rates) in Way::ALL.iter().zip(&mut repetitions) {
            if lab.is_interrupted() {
                break;
            }
            let drained = drain::run(*way, fill, options.timeout)?;
            rates.push(drained.accepted as f64 / drained.seconds);
            connect_rates.push(drained.connects_per_second);
            // Windows counts in ticks of the clock: none passed is not known, rather than 0.
            if *way == Way::Accept && drained.cpu_seconds > 0.0 {
                cpu.push(drained.cpu_seconds * 1e6 / drained.accepted as f64);
            }
            done += 1;
            lab.progress.step(done, Some(total), &format!("accept: timing {}", way.name()));
        }
    }
    for (way, rates) in Way::ALL.iter().zip(repetitions) {
        let accepts_per_second = median(&rates).unwrap_or(0.0);
        let way = way.name().to_owned();
        result.rates.push(AcceptRate { way, accepts_per_second, repetitions: rates });
    }
    result.accepts_per_second = result.rates[0].accepts_per_second;
    result.connects_per_second = median(&connect_rates);
    result.cpu_us_per_accept = median(&cpu);
    if (options.rate.is_some() || options.burst.is_some()) && !lab.is_interrupted() {
        depth(lab, options, &limits, &mut result)?;
    }
    Ok((result, lab.is_interrupted()))
}

/// What is known of arrivals and of who serves them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// Connections per second, at Poisson times.
    pub rate: f64,
    /// Connections at once, on top.
    pub burst: u64,
    /// How fast a burst comes in; `None` if all at one instant, as from many machines.
    pub burst_rate: Option<f64>,
    /// Accepts per second while the acceptor is at it.
    pub service_rate: f64,
    /// The longest the acceptor is away, in seconds.
    pub stall: f64,
}

/// The smallest backlog with which nothing is dropped; `None` if none is large enough, because
/// connections arrive at least as fast as they are accepted.
///
/// The worst that the figures allow is a burst that begins just when the acceptor stalls. Let the
/// rate be λ, the burst B at rate c, the service rate μ, the stall S, and T = B/c the time the burst
/// takes. At the end of the stall λS + min(B, cS) wait and nobody was served. If the burst goes on
/// (T > S), then at its end B + λT − μ(T − S) wait. The deeper of the two is the queue, plus
/// 4√(λ·max(S, T)) because Poisson arrivals bunch: fewer than one in 30,000 such intervals brings
/// more than four standard deviations above its mean. Linux admits one more than the backlog
/// (`sk_acceptq_is_full` is `>`, not `>=`), which is kept as the place of a handshake in progress;
/// and a backlog is at least 1.
pub fn backlog_needed(arrivals: &Arrivals) -> Option<u64> {
    let Arrivals { rate, burst, burst_rate, service_rate, stall } = *arrivals;
    if service_rate.is_nan() || service_rate <= rate {
        return None;
    }
    let burst = burst as f64;
    let in_stall = burst_rate.map_or(burst, |c| burst.min(c * stall));
    let burst_time = burst_rate.map_or(0.0, |c| burst / c);
    let at_stall_end = rate * stall + in_stall;
    let at_burst_end = if burst_time > stall {
        burst + rate * burst_time - service_rate * (burst_time - stall)
    } else {
        0.0
    };
    let bunching = 4.0 * (rate * stall.max(burst_time)).sqrt();
    Some((at_stall_end.max(at_burst_end) + bunching).ceil().max(1.0) as u64)
}

/// The result as a plain table for a person, at most 100 columns wide.
pub fn render_text(result: &Accept) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{:<34} {:>14} {:>14} {:>14}", "way", "accepts/s", "lowest", "highest");
    for row in &result.rates {
        let low = row.repetitions.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.repetitions.iter().copied().fold(0.0, f64::max);
        let [median, low, high] = [row.accepts_per_second, low, high].map(units::number);
        let _ = writeln!(out, "{:<34} {median:>14} {low:>14} {high:>14}", row.way);
    }
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "{name:<34} {value:>14}");
        }
    };
    line("clients could connect at", result.connects_per_second.map(units::rate));
    line("CPU of the acceptor per accept", result.cpu_us_per_accept.map(units::micros));
    if result.rate.is_some() || result.burst.is_some() {
        line("arrivals", Some(units::count(result.arrivals)));
        line("backlog", result.backlog.map(units::count));
        line("deepest queue", result.queued_max.map(units::count));
        line("overflows", result.overflows.map(units::count));
        line("longest stall", result.longest_stall_us.map(units::micros));
        let needed = result.backlog_needed.map_or("none suffices".to_owned(), units::count);
        line("backlog needed", Some(needed));
        let verified = result.verified.map(|held| if held { "held" } else { "overflowed" });
        line("… and tried", verified.map(str::to_owned));
    }
    for sentence in &result.reasoning {
        for part in wrap(sentence, 100) {
            let _ = writeln!(out, "{part}");
        }
    }
    out
}

/// A listener on a free port of 127.0.0.1 that does not block, with this backlog.
fn listen(backlog: u32) -> Result<(TcpListener, SocketAddr)> {
    let made = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.listen(backlog.min(i32::MAX as u32) as i32)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    made().map_err(|error| machine("open a listener on 127.0.0.1", &error))
}

fn machine(doing: &str, error: &std::io::Error) -> Error {
    Error::machine(
        format!("cannot {doing}: {error}"),
        "see `plimsoll doctor` for the limits of this machine, descriptors and ports first",
    )
}

fn check(options: &Options) -> Result<()> {
    if let Some(rate) = options.rate
        && !(rate > 0.0 && rate <= RATE_MAX)
    {
        return Err(Error::usage(
            format!("{rate} is no rate of arrivals"),
            format!("ask for more than 0 and at most {RATE_MAX} connections per second"),
        ));
    }
    if let Some(burst) = options.burst
        && (burst == 0 || burst > BURST_MAX)
    {
        return Err(Error::usage(
            format!("{burst} is no burst"),
            format!("ask for 1 to {BURST_MAX} connections at once"),
        ));
    }
    if options.duration.is_zero() || options.duration > DURATION_MAX {
        return Err(Error::usage("the duration is 0 or over an hour", "ask for a few seconds"));
    }
    Ok(())
}

/// How many connections to queue for a timing: within somaxconn, and both ends within the limit on
/// descriptors.
fn queue_length(limits: &Limits) -> Result<u64> {
    // Not known: what every system takes (Windows: 200).
    let somaxconn = limits.somaxconn.unwrap_or(128);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let descriptors = limits.nofile.map_or(1024, |limit| limit.soft);
    let room = descriptors.saturating_sub(open + DESCRIPTORS_SPARE) / 2;
    let fill = QUEUE_MAX.min(somaxconn).min(room);
    if fill >= QUEUE_MIN {
        return Ok(fill);
    }
    let (cause, cure) = if room < QUEUE_MIN {
        (
            format!("a limit of {descriptors} descriptors leaves room for {room} connections"),
            "ulimit -n 10000",
        )
    } else {
        (
            format!("net.core.somaxconn is {somaxconn}, too few to time"),
            "sysctl -w net.core.somaxconn=4096",
        )
    };
    Err(Error::machine(cause, cure))
}

/// Without the queue's depth and its overflows there is nothing to find.
#[cfg(not(target_os = "linux"))]
fn depth(_: &Lab, _: &Options, _: &Limits, _: &mut Accept) -> Result<()> {
    Err(Error::machine(
        "arrivals against a queue need its depth and its overflows, and this system tells neither",
        "leave out --rate and --burst, or run it on Linux",
    ))
}

/// The paced part: once with the backlog asked for, once with the one found to be needed.
#[cfg(target_os = "linux")]
fn depth(lab: &Lab, options: &Options, limits: &Limits, result: &mut Accept) -> Result<()> {
    let somaxconn = limits.somaxconn.unwrap_or(128);
    let backlog = options.backlog.map_or(somaxconn, u64::from).min(somaxconn);
    lab.progress.step(0, None, &format!("accept: arrivals against a backlog of {backlog}"));
    let first = paced::run(lab, options, backlog as u32)?;
    result.arrivals = first.arrivals;
    result.unanswered = first.unanswered;
    result.queued_max = first.queued_max;
    result.overflows = first.overflows;
    result.longest_stall_us = Some(first.longest_stall * 1e6);
    result.backlog = first.granted;
    result.samples = first.samples;
    let arrivals = Arrivals {
        rate: options.rate.unwrap_or(0.0),
        burst: options.burst.unwrap_or(0),
        burst_rate: first.burst_rate,
        service_rate: result.accepts_per_second,
        stall: first.longest_stall,
    };
    result.backlog_needed = backlog_needed(&arrivals);
    result.reasoning = reasoning(&arrivals, result);
    if first.late {
        lab.progress.warn("the client could not keep up with the arrivals that were asked for");
        result.reasoning.push(format!(
            "The client fell behind: {} arrivals were made, fewer than were due. The queue at the full rate is not known from this run.",
            units::count(first.arrivals)
        ));
    }
    if result.backlog_needed < result.queued_max && result.backlog_needed.is_some() {
        result.reasoning.push(
            "The queue was deeper than that: the client was itself delayed, and what it made up for came \
             together."
                .to_owned(),
        );
    }
    match result.backlog_needed {
        Some(needed) if needed <= somaxconn && !lab.is_interrupted() => {
            lab.progress.step(0, None, &format!("accept: again, with a backlog of {needed}"));
            let again = paced::run(lab, options, needed as u32)?;
            if lab.is_interrupted() {
                return Ok(());
            }
            result.verified = again.overflows.map(|overflows| overflows == 0);
            result.reasoning.push(format!(
                "Again, with a backlog of {needed}: deepest queue {}, overflows {}, longest stall {}.",
                again.queued_max.map_or("unknown".into(), units::count),
                again.overflows.map_or("unknown".into(), units::count),
                units::micros(again.longest_stall * 1e6),
            ));
        }
        Some(needed) if needed > somaxconn => result.reasoning.push(format!(
            "Not tried: net.core.somaxconn is {somaxconn}; sysctl -w net.core.somaxconn={needed} allows it."
        )),
        _ => {}
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn reasoning(arrivals: &Arrivals, result: &Accept) -> Vec<String> {
    let mut sentences = vec![format!(
        "Arrivals: {} at Poisson times{}.",
        units::rate(arrivals.rate),
        match (arrivals.burst, arrivals.burst_rate) {
            (0, _) => String::new(),
            (burst, Some(rate)) => format!(
                ", and three bursts of {}, which came in at {}",
                units::count(burst),
                units::rate(rate)
            ),
            (burst, None) => format!(", and bursts of {} at one instant", units::count(burst)),
        }
    )];
    let service = units::rate(arrivals.service_rate);
    sentences.push(match result.backlog_needed {
        Some(needed) => format!(
            "Backlog: the queue is deepest when a burst begins as the acceptor stalls ({}), is then served at {service}, and Poisson arrivals bunch by four standard deviations: {}.",
            units::micros(arrivals.stall * 1e6),
            units::count(needed),
        ),
        None => format!(
            "Backlog: none suffices, since {} arrive and {service} are accepted.",
            units::rate(arrivals.rate)
        ),
    });
    sentences
}

fn empty(options: &Options) -> Accept {
    Accept {
        accepts_per_second: 0.0,
        backlog_needed: None,
        longest_stall_us: None,
        connects_per_second: None,
        rate: options.rate,
        burst: options.burst,
        arrivals: 0,
        queued_max: None,
        overflows: None,
        cpu_us_per_accept: None,
        rates: Vec::new(),
        samples: Vec::new(),
        backlog: None,
        verified: None,
        unanswered: 0,
        reasoning: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(
        rate: f64,
        burst: u64,
        burst_rate: Option<f64>,
        service_rate: f64,
        stall: f64,
    ) -> Option<u64> {
        backlog_needed(&Arrivals { rate, burst, burst_rate, service_rate, stall })
    }

    #[test]
    fn the_backlog_follows_the_formula() {
        // Nothing arrives together and nobody stalls: the least there is.
        assert_eq!(needed(0.0, 0, None, 1e5, 0.0), Some(1));
        // A burst at one instant is the whole queue.
        assert_eq!(needed(0.0, 200, None, 1e5, 0.0), Some(200));
        // 3,000/s for 10 ms are 30, and 4 × √30 = 21.9 more.
        assert_eq!(needed(3000.0, 0, None, 1e5, 0.01), Some(52));
        // A burst over 10 ms, half of it in a stall of 5 ms, then served faster than it comes.
        assert_eq!(needed(0.0, 100, Some(1e4), 1e5, 0.005), Some(50));
        // Served slower than it comes: 100 − 2,000 × 5 ms.
        assert_eq!(needed(0.0, 100, Some(1e4), 2e3, 0.005), Some(90));
        // No backlog helps a server that is too slow.
        assert_eq!(needed(1e5, 0, None, 1e5, 0.0), None);
        assert_eq!(needed(1.0, 0, None, f64::NAN, 0.0), None);
    }

    #[test]
    fn impossible_options_are_refused() {
        for options in [
            Options { rate: Some(0.0), ..Options::default() },
            Options { rate: Some(f64::NAN), ..Options::default() },
            Options { rate: Some(1e9), ..Options::default() },
            Options { burst: Some(0), ..Options::default() },
            Options { duration: Duration::ZERO, ..Options::default() },
        ] {
            assert_eq!(check(&options).unwrap_err().exit_code(), 2, "{options:?}");
        }
    }
}
