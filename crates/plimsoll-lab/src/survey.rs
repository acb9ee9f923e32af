//! `survey`: every experiment that there is, against the embedded engine or a running server, and
//! the summary: the load line, what a connection costs, what breaks first, and what raises it.
//!
//! By default each experiment has a budget, so that the whole takes less than 90 s; with
//! [`Options::full`] there is no bound on connections, and measurements are longer. An experiment
//! that cannot run here is named with its reason in [`Survey::skipped`]; the others still run.

mod knock;
mod summary;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::advice::doctor::{self, Facts};
use crate::advice::plan::{self, Costs};
use crate::embedded::{self, Embedded};
use crate::experiments::capacity::Target;
use crate::experiments::{accept, backlog, capacity, churn, load};
use crate::results::{Capacity, Load, Survey};
use crate::verdict::cost::LEAST_FOR_COST;
use crate::worker::exchange::Exchange;
use crate::worker::source::AddressRange;
use crate::{Error, Lab, Progress, Result, units};

pub use summary::render_text;

/// What to survey.
#[derive(Debug, Clone)]
pub struct Options {
    /// A running server; `None` for the embedded engine.
    pub target: Option<SocketAddr>,
    /// The target's process, for its memory and processor time.
    pub server_pid: Option<u32>,
    /// What is sent and must come back; `None` for an echo.
    pub exchange: Option<Exchange>,
    /// Hold at most so many connections; `None` for 15,000, or with `full` for no bound.
    pub connections: Option<u64>,
    /// Take as long as it takes.
    pub full: bool,
    /// How long one connect and one reply may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: None,
            server_pid: None,
            exchange: None,
            connections: None,
            full: false,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Connections held when nothing else is asked for: about two seconds.
const CONNECTIONS: u64 = 15_000;
/// Connections of the load curve.
const CURVE: [u32; 5] = [1, 10, 100, 1000, 10_000];
/// The measured time of each point of the load curve, and of churn, by default and with `full`.
const LOAD_TIME: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(10));
const CHURN_TIME: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// Connections by which [`measure_costs`] measures: fewer give no slope worth the name.
const COST_CONNECTIONS: u64 = 5000;
/// The plan is made for so many times the connections that were held.
const PLAN_FACTOR: u64 = 10;
/// Connections from one source address in a load: below the usual range of ports.
const LOAD_PER_SOURCE: u64 = 20_000;

/// Runs the experiments one after another. The flag is whether it was interrupted.
///
/// # Errors
///
/// [`Error::Target`] when a target is not there, closes at once or does not answer one request. What stands in the way of one
/// experiment is no error: see [`Survey::skipped`].
pub fn run(lab: &Lab, options: &Options) -> Result<(Survey, bool)> {
    if let Some(target) = options.target {
        knock::knock(target, options.exchange.as_ref(), options.timeout)?;
    }
    let mut run = Run { lab, options, survey: Survey::default(), partial: false };
    run.survey.target = options.target.map_or("embedded".to_owned(), |target| target.to_string());
    run.survey.doctor = Some(doctor::examine(&Facts::read().with_ring(), None));
    run.backlog();
    run.accept();
    run.capacity();
    run.load_and_churn();
    run.plan();
    summary::summarise(&mut run.survey);
    Ok((run.survey, run.partial))
}

/// Whether every byte that came back was right.
pub fn is_whole(survey: &Survey) -> bool {
    survey.load_curve.iter().chain(&survey.load).all(|load| load.corrupt == 0)
}

/// Measures what a connection to the embedded engine costs, and with `accepting` how fast
/// connections are accepted; some five seconds, and five more.
///
/// # Errors
///
/// Those of `capacity` and `accept`; [`Error::Machine`] where the kernel's figures cannot be read,
/// [`Error::Interrupted`].
pub fn measure_costs(lab: &Lab, accepting: bool) -> Result<Costs> {
    let target = Target::Embedded(embedded::Options::default());
    let asked =
        capacity::Options { connections: Some(COST_CONNECTIONS), ..capacity::Options::new(target) };
    let (held, _) = capacity::run(&named(lab, "capacity"), &asked)?;
    let accepted = if accepting {
        Some(accept::run(&named(lab, "accept"), &accept::Options::default())?.0)
    } else {
        None
    };
    if lab.is_interrupted() {
        return Err(Error::interrupted(
            "interrupted before the costs were measured",
            "let it run, or take them from a file with --from",
        ));
    }
    let mut costs = costs(&held)?;
    if let Some(accepted) = accepted {
        costs.accepts_per_second = Some(accepted.accepts_per_second);
        costs.longest_stall = accepted.longest_stall_us.map(|us| us * 1e-6);
    }
    Ok(costs)
}

/// What a connection cost in a measured capacity.
fn costs(held: &Capacity) -> Result<Costs> {
    let missing = |what: &str, cure: &str| {
        Error::machine(format!("{what} per connection could not be measured"), cure)
    };
    if held.established <= LEAST_FOR_COST {
        let few = format!("the memory of {} connections", units::count(held.established));
        let cure = format!("hold more than {}", units::count(LEAST_FOR_COST));
        return Err(Error::machine(format!("{few} is lost among that of others"), cure));
    }
    Ok(Costs {
        kernel_bytes_per_connection: held.kernel_bytes_per_connection.ok_or_else(|| {
            missing(
                "kernel memory",
                "run it as root (/proc/slabinfo is root's), on the server's machine",
            )
        })?,
        user_bytes_per_connection: held.user_bytes_per_connection.ok_or_else(|| {
            missing("the server's memory", "name its process with --server-pid PID")
        })?,
        accepts_per_second: None,
        longest_stall: None,
        from: "measured now".to_owned(),
    })
}

/// The addresses that a load connects from: what was asked for; towards IPv4 loopback as many as
/// the connections have need of; else none, and the route decides.
///
/// # Errors
///
/// [`Error::Usage`] when the addresses are of another family than the target.
pub fn load_sources(
    target: SocketAddr,
    asked: Option<AddressRange>,
    connections: u64,
) -> Result<Vec<IpAddr>> {
    let needed = connections.div_ceil(LOAD_PER_SOURCE).max(1);
    let range = match asked {
        Some(range) => range,
        None if target.is_ipv4() && target.ip().is_loopback() && needed > 1 => {
            AddressRange::LOOPBACK
        }
        None => return Ok(Vec::new()),
    };
    let addresses: Vec<IpAddr> =
        (0..range.count().min(needed)).filter_map(|n| range.nth(n)).collect();
    match addresses.iter().find(|address| address.is_ipv4() != target.is_ipv4()) {
        Some(address) => Err(Error::usage(
            format!("the source address {address} and the target {target} differ in family"),
            "give sources of the target's family, or none",
        )),
        None => Ok(addresses),
    }
}

/// A survey under way.
struct Run<'a> {
    lab: &'a Lab,
    options: &'a Options,
    survey: Survey,
    partial: bool,
}

impl Run<'_> {
    /// Runs one experiment. Its error becomes the reason for which it is missing.
    fn attempt<T>(
        &mut self,
        name: &str,
        experiment: impl FnOnce(&Lab) -> Result<(T, bool)>,
    ) -> Option<T> {
        if self.partial || self.lab.is_interrupted() {
            self.partial = true;
            self.survey.skipped.insert(name.to_owned(), "the survey was interrupted".to_owned());
            return None;
        }
        self.lab.progress.step(0, None, name);
        match experiment(&named(self.lab, name)) {
            Ok((result, partial)) => {
                self.partial |= partial;
                Some(result)
            }
            Err(error) => {
                self.lab.progress.warn(&format!("{name} was not done: {error}"));
                self.survey.skipped.insert(name.to_owned(), error.to_string());
                None
            }
        }
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.survey.skipped.insert(name.to_owned(), why.to_owned());
    }

    fn backlog(&mut self) {
        let options = backlog::Options { timeout: self.options.timeout, ..Default::default() };
        self.survey.backlog = self.attempt("backlog", |lab| backlog::run(lab, &options));
    }

    fn accept(&mut self) {
        let options = accept::Options { timeout: self.options.timeout, ..Default::default() };
        self.survey.accept = self.attempt("accept", |lab| accept::run(lab, &options));
    }

    fn capacity(&mut self) {
        let asked = self.options;
        let target = match asked.target {
            Some(address) => Target::Address { address, pid: asked.server_pid },
            None => Target::Embedded(embedded::Options::default()),
        };
        let echo = Exchange::echo(asked.timeout);
        let options = capacity::Options {
            connections: match (asked.connections, asked.full) {
                (Some(connections), _) => Some(connections),
                (None, true) => None,
                (None, false) => Some(CONNECTIONS),
            },
            probe: true,
            exchange: asked.exchange.clone().unwrap_or(echo),
            timeout: asked.timeout,
            ..capacity::Options::new(target)
        };
        self.survey.capacity = self.attempt("capacity", |lab| capacity::run(lab, &options));
    }

    /// Both against the target; without one, `churn` against servers of its own.
    fn load_and_churn(&mut self) {
        let curve = self.curve();
        let most = u64::from(curve.last().copied().unwrap_or(1));
        let server = match self.options.target {
            Some(_) => None,
            None => {
                let how =
                    embedded::Options { max_connections: Some(most + 64), ..Default::default() };
                match self.attempt("load", |lab| Ok((Embedded::start(lab, &how)?, false))) {
                    Some(server) => Some(server),
                    None => return self.skip("churn", "the server of `load` did not start"),
                }
            }
        };
        let (target, pid) = match (&server, self.options.target) {
            (Some(server), _) => (server.address(), Some(server.pid())),
            (None, Some(target)) => (target, self.options.server_pid),
            (None, None) => unreachable!("without a target the embedded server was started"),
        };
        self.load(&curve, target, pid);
        if let Some(server) = server {
            server.stop();
        }
        self.churn();
    }

    /// The numbers of connections of the load curve: no more than were held.
    fn curve(&self) -> Vec<u32> {
        let held = self.survey.capacity.as_ref().map_or(1000, |capacity| capacity.alive);
        let asked = self.options.connections.unwrap_or(u64::MAX);
        CURVE.into_iter().filter(|count| u64::from(*count) <= held.min(asked).max(1)).collect()
    }

    fn load(&mut self, curve: &[u32], target: SocketAddr, pid: Option<u32>) {
        for &connections in curve {
            let options = load::Options {
                server_pid: pid,
                connections,
                duration: self.time(LOAD_TIME),
                timeout: self.options.timeout,
                exchange: self.options.exchange.clone(),
                ..load::Options::new(target)
            };
            let name = format!("load, {} connections", units::count(connections.into()));
            match self.attempt(&name, |lab| load::run(lab, &options)) {
                Some(load) => self.survey.load_curve.push(load),
                // What fails with some connections will not go better with more.
                None => break,
            }
        }
        let rate = |load: &&Load| load.messages_per_second;
        let best = self.survey.load_curve.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
        self.survey.load = best.cloned();
    }

    fn churn(&mut self) {
        if self.options.exchange.is_some() {
            return self.skip("churn", "it needs an echo server, and this target speaks otherwise");
        }
        let options = churn::Options {
            target: self.options.target,
            server_pid: self.options.server_pid,
            duration: self.time(CHURN_TIME),
            timeout: self.options.timeout,
            ..Default::default()
        };
        self.survey.churn = self.attempt("churn", |lab| churn::run(lab, &options));
    }

    fn plan(&mut self) {
        let Some(held) = &self.survey.capacity else {
            return self.skip("plan", "it needs the costs that `capacity` measures");
        };
        let planned = plan::Options {
            connections: held.alive.max(1).saturating_mul(PLAN_FACTOR),
            // What the engine holds as direct descriptors is bounded per ring, not per process.
            direct_descriptors: self.options.target.is_none(),
            ..Default::default()
        };
        let costs = costs(held);
        self.survey.plan =
            self.attempt("plan", |_| Ok((plan::plan(&planned, &costs?, &Facts::read())?, false)));
    }

    fn time(&self, (usual, full): (Duration, Duration)) -> Duration {
        if self.options.full { full } else { usual }
    }
}

/// Puts an experiment's name before its progress.
struct Named {
    name: String,
    inner: Arc<dyn Progress>,
}

impl Named {
    /// The line with the name before it, unless it says it itself.
    fn line(&self, line: &str) -> String {
        let named = line.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with(':'));
        if named { line.to_owned() } else { format!("{}: {line}", self.name) }
    }
}

impl Progress for Named {
    fn step(&self, done: u64, total: Option<u64>, line: &str) {
        self.inner.step(done, total, &self.line(line));
    }

    fn warn(&self, line: &str) {
        self.inner.warn(&self.line(line));
    }
}

/// The same lab, whose progress begins with a name.
fn named(lab: &Lab, name: &str) -> Lab {
    let progress = Arc::new(Named { name: name.to_owned(), inner: Arc::clone(&lab.progress) });
    Lab { progress, ..lab.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::Quiet;

    fn lab() -> Lab {
        Lab {
            progress: Arc::new(Quiet),
            interrupted: Arc::new(AtomicBool::new(false)),
            executable: PathBuf::from("/no/such/plimsoll"),
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_an_error_of_the_target() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let options = Options { target: Some(target), ..Options::default() };
        let error = run(&lab(), &options).expect_err("nobody listens");
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn what_fails_is_skipped_with_its_reason_and_an_interruption_ends_the_rest() {
        let lab = lab();
        let options = Options::default();
        let mut run =
            Run { lab: &lab, options: &options, survey: Survey::default(), partial: false };
        let failed: Option<()> = run.attempt("first", |_| Err(Error::machine("cause", "cure")));
        assert!(failed.is_none() && run.survey.skipped["first"].contains("cause"));
        assert_eq!(run.attempt("second", |_| Ok((2, true))), Some(2), "a partial result is kept");
        assert!(run.attempt("third", |_| Ok(((), false))).is_none());
        assert!(run.partial && run.survey.skipped["third"].contains("interrupted"));
    }

    #[test]
    fn sources_of_a_load() {
        let loopback: SocketAddr = "127.0.0.1:7000".parse().unwrap();
        assert_eq!(load_sources(loopback, None, 1000).unwrap(), Vec::<IpAddr>::new());
        assert_eq!(load_sources(loopback, None, 50_000).unwrap().len(), 3);
        let other: SocketAddr = "[::1]:7000".parse().unwrap();
        assert!(load_sources(other, None, 50_000).unwrap().is_empty());
        assert!(load_sources(other, Some(AddressRange::LOOPBACK), 1).is_err());
    }

    #[test]
    fn the_curve_stays_below_what_was_held() {
        let lab = lab();
        let options = Options { connections: Some(500), ..Options::default() };
        let run = Run { lab: &lab, options: &options, survey: Survey::default(), partial: false };
        assert_eq!(run.curve(), [1, 10, 100]);
    }
}
