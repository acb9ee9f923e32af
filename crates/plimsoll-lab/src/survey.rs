//! `survey`: every experiment that there is, against the embedded engine or a running server, and
//! the summary: the load line, what a connection costs, what breaks first, and what raises it.
//!
//! By default each experiment has a budget, so that the whole takes less than 90 s; with
//! [`Options::full`] there is no bound on connections, and measurements are longer. An experiment
//! that cannot run here is named with its reason in [`Survey::skipped`]; the others still run.
//!
//! Of a target only what was measured on it is told: experiments with servers of the lab's own
//! (`backlog`, `accept`) are left out, and so are limits of this machine that nothing has met.

mod fix;
mod headline;
mod knock;
mod progress;
mod summary;
mod target;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::advice::doctor::{self, Facts};
use crate::advice::plan::{self, Costs};
use crate::embedded::{self, Embedded};
use crate::experiments::capacity::Target;
use crate::experiments::{accept, backlog, capacity, churn, load};
use crate::results::{Capacity, Doctor, Load, Survey, TargetServer};
use crate::verdict::cost::LEAST_FOR_COST;
use crate::worker::exchange::Exchange;
use crate::worker::source::AddressRange;
use crate::{Error, Lab, Result, units};
use progress::{Named, Planned, Whole};

pub use summary::render_text;
pub(crate) use summary::{server_lines, stopped};

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
    /// How often each load is measured, at least once: only several tell how much it varies.
    pub repeats: u32,
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
            repeats: 1,
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
/// [`Error::Target`] when a target is not there, closes at once or does not answer one request;
/// [`Error::Usage`] when its process was named and cannot be looked at. What stands in the way of one
/// experiment is no error: see [`Survey::skipped`].
pub fn run(lab: &Lab, options: &Options) -> Result<(Survey, bool)> {
    let mut survey = Survey {
        target: options.target.map_or("embedded".to_owned(), |target| target.to_string()),
        compared: Some(target::compared(options.exchange.as_ref())),
        ..Survey::default()
    };
    let mut repeats = true;
    if let Some(address) = options.target {
        let wait = units::duration(options.timeout);
        lab.progress.step(0, None, &format!("{address}: waits for a first reply, {wait} at most"));
        let greeting = knock::knock(address, options.exchange.as_ref(), options.timeout)?;
        survey.server = Some(target::look(address, options.server_pid, greeting.says)?);
        repeats = greeting.repeats;
    }
    let mut run = Run { repeats, ..Run::new(lab, options, survey) };
    run.doctor();
    run.backlog();
    run.accept();
    run.capacity();
    run.load_and_churn();
    run.plan();
    summary::summarise(&mut run.survey, &run.doctor);
    Ok((run.survey, run.partial))
}

/// The target of a survey as its document names it; `None` for the embedded engine.
pub fn target_server(survey: &Survey) -> Option<TargetServer> {
    let server = survey.server.as_ref()?;
    Some(TargetServer {
        address: server.address.clone(),
        pid: server.pid,
        name: target::name(server),
    })
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
    let whole = Whole::new(
        Arc::clone(&lab.progress),
        vec![Planned::new("capacity", seconds::CAPACITY), Planned::new("accept", seconds::ACCEPT)],
    );
    let whole = Arc::new(whole);
    whole.begin("capacity");
    let (held, _) = capacity::run(&named(lab, &whole, "capacity"), &asked)?;
    let accepted = if accepting {
        whole.begin("accept");
        Some(accept::run(&named(lab, &whole, "accept"), &accept::Options::default())?.0)
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
        let few = format!("the memory of {}", units::connections(held.established));
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

/// About how long each experiment takes by default on a machine of two processors, for the progress
/// line only: nothing is judged by it.
mod seconds {
    pub(super) const BACKLOG: f64 = 2.0;
    pub(super) const ACCEPT: f64 = 2.0;
    pub(super) const CAPACITY: f64 = 2.0;
    /// What a load takes besides its measured time.
    pub(super) const LOAD_BEGINS: f64 = 0.5;
    /// What churn takes besides its measured time.
    pub(super) const CHURN_BEGINS: f64 = 1.0;
}

/// The experiments that a survey will run, in their order.
fn planned(options: &Options) -> Vec<Planned> {
    let time = |both: (Duration, Duration)| time(options, both).as_secs_f64();
    let mut plan = Vec::new();
    if options.target.is_none() {
        plan.push(Planned::new("backlog", seconds::BACKLOG));
        plan.push(Planned::new("accept", seconds::ACCEPT));
    }
    plan.push(Planned::new("capacity", seconds::CAPACITY));
    let repeats = f64::from(options.repeats.max(1));
    let load = (seconds::LOAD_BEGINS + time(LOAD_TIME)) * repeats;
    let most = options.connections.unwrap_or(u64::MAX);
    plan.extend(curve_up_to(most).map(|connections| Planned::new(load_name(connections), load)));
    if options.exchange.is_none() {
        plan.push(Planned::new("churn", seconds::CHURN_BEGINS + time(CHURN_TIME)));
    }
    plan
}

/// The numbers of connections of the load curve, up to `most`, and at least one of them.
fn curve_up_to(most: u64) -> impl Iterator<Item = u32> {
    CURVE.into_iter().filter(move |count| u64::from(*count) <= most.max(1))
}

fn load_name(connections: u32) -> String {
    format!("load, {}", units::connections(connections.into()))
}

/// The time of a measurement, of the usual and the one with `full`.
fn time(options: &Options, (usual, full): (Duration, Duration)) -> Duration {
    if options.full { full } else { usual }
}

/// A survey under way.
struct Run<'a> {
    lab: &'a Lab,
    options: &'a Options,
    progress: Arc<Whole>,
    /// This machine's limits; a part of the result without a target only.
    doctor: Doctor,
    survey: Survey,
    partial: bool,
    /// Whether the request can be sent on a connection again and again.
    repeats: bool,
}

impl<'a> Run<'a> {
    fn new(lab: &'a Lab, options: &'a Options, survey: Survey) -> Self {
        let progress = Arc::new(Whole::new(Arc::clone(&lab.progress), planned(options)));
        let doctor = Doctor::default();
        Self { lab, options, progress, doctor, survey, partial: false, repeats: true }
    }

    /// Runs one experiment. Its error becomes the reason for which it is missing.
    fn attempt<T>(
        &mut self,
        name: &str,
        experiment: impl FnOnce(&Lab) -> Result<(T, bool)>,
    ) -> Option<T> {
        if self.partial || self.lab.is_interrupted() {
            self.partial = true;
            self.survey.interrupted.get_or_insert_with(|| name.to_owned());
            self.skip(name, "the survey was interrupted");
            return None;
        }
        self.progress.begin(name);
        match experiment(&named(self.lab, &self.progress, name)) {
            Ok((result, partial)) => {
                if partial {
                    self.partial = true;
                    self.survey.interrupted = Some(name.to_owned());
                }
                Some(result)
            }
            Err(error) => {
                self.lab.progress.warn(&format!("{name} was not done: {error}"));
                self.skip(name, &error.to_string());
                None
            }
        }
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.survey.skipped.insert(name.to_owned(), why.to_owned());
    }

    fn doctor(&mut self) {
        if self.survey.server.is_none() {
            self.doctor = doctor::examine(&Facts::read().with_ring(), None);
            self.survey.doctor = Some(self.doctor.clone());
            return;
        }
        self.doctor = doctor::examine(&Facts::read(), None);
        self.skip(
            "doctor",
            "it lists the limits of this machine, whether or not they are in the target's way: run \
             `plimsoll doctor`",
        );
    }

    fn backlog(&mut self) {
        if let Some(server) = &self.survey.server {
            let granted = target::granted(server).map_or_else(String::new, |granted| {
                format!("; the target's listener was {granted}")
            });
            let why = format!(
                "it fills the accept queue of a listener of its own, which tells nothing of the \
                 target's{granted}"
            );
            return self.skip("backlog", &why);
        }
        let options = backlog::Options { timeout: self.options.timeout, ..Default::default() };
        self.survey.backlog = self.attempt("backlog", |lab| backlog::run(lab, &options));
    }

    fn accept(&mut self) {
        if self.survey.server.is_some() {
            let why = "it measures an acceptor of its own, which tells nothing of the target's";
            return self.skip("accept", why);
        }
        let options = accept::Options { timeout: self.options.timeout, ..Default::default() };
        self.survey.accept = self.attempt("accept", |lab| accept::run(lab, &options));
    }

    /// The target's process, as it was named or found.
    fn pid(&self) -> Option<u32> {
        self.survey.server.as_ref().and_then(|server| server.pid)
    }

    fn capacity(&mut self) {
        let asked = self.options;
        let target = match asked.target {
            Some(address) => Target::Address { address, pid: self.pid() },
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
            (None, Some(target)) => (target, self.pid()),
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
        curve_up_to(held.min(asked)).collect()
    }

    fn load(&mut self, curve: &[u32], target: SocketAddr, pid: Option<u32>) {
        if !self.repeats {
            let why = "on one connection the target does not answer this request a second time as it \
                       did the first, and `load` repeats it: name a request that can be repeated";
            return self.skip("load", why);
        }
        let repeats = self.options.repeats.max(1);
        for &connections in curve {
            let options = load::Options {
                server_pid: pid,
                connections,
                duration: time(self.options, LOAD_TIME) * repeats,
                timeout: self.options.timeout,
                exchange: self.options.exchange.clone(),
                ..load::Options::new(target)
            };
            let name = load_name(connections);
            match self.attempt(&name, |lab| load::repeat::run(lab, &[options], repeats)) {
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
            server_pid: self.pid(),
            duration: time(self.options, CHURN_TIME),
            timeout: self.options.timeout,
            ..Default::default()
        };
        self.survey.churn = self.attempt("churn", |lab| churn::run(lab, &options));
    }

    /// From the costs that `capacity` has measured, the target's or the embedded engine's.
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
        let pid = self.pid();
        let target = self.options.target.is_some();
        self.survey.plan = self.attempt("plan", |_| {
            let mut plan = plan::plan(&planned, &costs?, &plan_facts(target, pid))?;
            if target {
                // Nothing has met them: what raises them is for `plimsoll plan`.
                plan.limits.iter_mut().for_each(|limit| limit.fix = None);
            }
            Ok((plan, false))
        });
    }
}

/// This machine, with the limits on descriptors and the control group of the target's process, where
/// that is known; a target's whose process is not known are left out.
fn plan_facts(target: bool, pid: Option<u32>) -> Facts {
    let mut facts = Facts::read();
    if target {
        let limits = pid.and_then(|pid| plimsoll_kernel::limits::Limits::of(pid).ok());
        facts.limits.nofile = limits.and_then(|limits| limits.nofile);
        facts.cgroup = pid.and_then(|pid| plimsoll_kernel::cgroup::Cgroup::of(pid).ok());
    }
    facts
}

/// The same lab, whose progress is a part of the whole and begins with a name.
fn named(lab: &Lab, whole: &Arc<Whole>, name: &str) -> Lab {
    let whole: Arc<dyn crate::Progress> = Arc::<Whole>::clone(whole);
    Lab { progress: Arc::new(Named::new(name, whole)), ..lab.clone() }
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
        let mut run = Run::new(&lab, &options, Survey::default());
        let failed: Option<()> = run.attempt("first", |_| Err(Error::machine("cause", "cure")));
        assert!(failed.is_none() && run.survey.skipped["first"].contains("cause"));
        assert_eq!(run.attempt("second", |_| Ok((2, true))), Some(2), "a partial result is kept");
        assert!(run.attempt("third", |_| Ok(((), false))).is_none());
        assert!(run.partial && run.survey.skipped["third"].contains("interrupted"));
        assert_eq!(run.survey.interrupted.as_deref(), Some("second"));
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
        let run = Run::new(&lab, &options, Survey::default());
        assert_eq!(run.curve(), [1, 10, 100]);
        let names: Vec<String> = planned(&options).into_iter().map(|one| one.name).collect();
        for connections in run.curve() {
            assert!(names.contains(&load_name(connections)), "{names:?}");
        }
        assert!(names.contains(&"churn".to_owned()) && names.contains(&"backlog".to_owned()));
    }
}
