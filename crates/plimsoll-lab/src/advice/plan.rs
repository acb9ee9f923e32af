//! `plan`: what so many connections will take, from what some were measured to cost.
//!
//! Everything is linear in the measured costs: memory of the kernel and of the server per
//! connection, one descriptor each, a source address for each port range full. The backlog follows
//! from the arrivals as in [`accept::backlog_needed`].

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::advice::doctor::{DESCRIPTORS_OTHER, Facts, nofile_fix, sysctl_fix};
use crate::checks::compare;
use crate::experiments::accept::{self, Arrivals};
use crate::results::{Plan, PlanLimit, Side};
use crate::{Error, Result, units};

/// What is planned for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Connections of one server.
    pub connections: u64,
    /// Arrivals per second.
    pub arrivals: Option<f64>,
    /// Arrivals at once.
    pub burst: Option<u64>,
    /// The clients are on this machine too: kernel memory and files count twice.
    pub both_ends: bool,
    /// The server holds its connections as direct descriptors in as many rings as it takes, which
    /// the limit on descriptors does not bound.
    pub direct_descriptors: bool,
}

/// Costs of a connection, measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// Kernel memory of the server's end, in bytes.
    pub kernel_bytes_per_connection: f64,
    /// The server's resident memory, in bytes.
    pub user_bytes_per_connection: f64,
    /// Accepts per second; needed for arrivals and bursts.
    pub accepts_per_second: Option<f64>,
    /// The acceptor's longest stall, in seconds; needed for arrivals.
    pub longest_stall: Option<f64>,
    /// Where they come from, for [`Plan::costs_from`].
    pub from: String,
}

/// Most connections that can be planned for: more have no meaning on one machine, and keep every
/// product within 64 bits.
const CONNECTIONS_MAX: u64 = 1_000_000_000;

impl Costs {
    /// Costs from a file that `capacity`, `accept` or `survey` wrote with `--output`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the file cannot be read, is not such a document, or lacks the cost of a
    /// connection, with the command that measures it.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_document(&compare::read(path)?, &path.display().to_string())
    }

    /// Costs from a parsed document; `from` is its name for people.
    ///
    /// # Errors
    ///
    /// As [`Costs::from_file`].
    pub fn from_document(document: &Value, from: &str) -> Result<Self> {
        let command = document.get("command").and_then(Value::as_str).unwrap_or("");
        let result = document.get("result").unwrap_or(&Value::Null);
        let experiment = |name: &str| match command {
            "survey" => result.get(name),
            own if own == name => Some(result),
            _ => None,
        };
        let cost = |name: &str, field: &str| {
            let value = experiment(name)?.get(field)?.as_f64()?;
            (value.is_finite() && value >= 0.0).then_some(value)
        };
        let needed = |field: &str, how: &str| {
            cost("capacity", field).ok_or_else(|| {
                Error::usage(
                    format!(
                        "{from} holds no {field} of `capacity` (it is a result of `{command}`)"
                    ),
                    format!("measure it: {how}"),
                )
            })
        };
        Ok(Self {
            kernel_bytes_per_connection: needed(
                "kernel_bytes_per_connection",
                "plimsoll capacity --connections 10000 --output FILE, as root, since /proc/slabinfo is root's",
            )?,
            user_bytes_per_connection: needed(
                "user_bytes_per_connection",
                "plimsoll capacity --connections 10000 --output FILE, with --server-pid PID for a target",
            )?,
            accepts_per_second: cost("accept", "accepts_per_second").filter(|rate| *rate > 0.0),
            longest_stall: cost("accept", "longest_stall_us").map(|us| us * 1e-6),
            from: from.to_owned(),
        })
    }
}

/// Plans. Reads nothing: `facts` are [`Facts::read`]'s, of the machine that shall hold them.
///
/// # Errors
///
/// [`Error::Usage`] for a number of connections or arrivals that cannot be, or when arrivals or a
/// burst are given and the costs say nothing of accepting.
pub fn plan(options: &Options, costs: &Costs, facts: &Facts) -> Result<Plan> {
    check(options)?;
    let connections = options.connections;
    let cost = |per_connection: f64| (per_connection * connections as f64).ceil() as u64;
    let kernel_bytes = cost(costs.kernel_bytes_per_connection);
    let user_bytes = cost(costs.user_bytes_per_connection);
    let descriptors = connections + DESCRIPTORS_OTHER;
    let ports = facts.limits.local_ports_usable().map_or(28_232, u64::from).max(1);
    let source_addresses = connections.div_ceil(ports);
    let backlog = backlog(options, costs)?;
    let need = Need { kernel_bytes, user_bytes, descriptors, source_addresses, backlog };
    let limits = limits(options, &need, facts);
    Ok(Plan {
        connections,
        arrivals: options.arrivals,
        burst: options.burst,
        kernel_bytes,
        user_bytes,
        descriptors,
        source_addresses,
        backlog,
        fits: limits.iter().all(|limit| limit.ok),
        limits,
        costs_from: costs.from.clone(),
    })
}

/// The result as a plain table for a person, at most 100 columns wide.
pub fn render_text(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<26} {value:>14}");
    };
    line("connections", units::count(plan.connections));
    line("kernel memory", units::bytes(plan.kernel_bytes as f64));
    line("server's memory", units::bytes(plan.user_bytes as f64));
    line("descriptors", units::count(plan.descriptors));
    line("source addresses", units::count(plan.source_addresses));
    if let Some(backlog) = plan.backlog {
        line("backlog", units::count(backlog));
    }
    let _ = writeln!(out, "\n{:<4} {:<45} {:>15} {:>15}", "", "limit", "needed", "available");
    for limit in &plan.limits {
        let mark = if limit.ok { "ok" } else { "LOW" };
        let (needed, available, unit) = amounts(limit);
        let row = format!("{mark:<4} {:<45} {needed:>15} {available:>15} {unit}", limit.name);
        let _ = writeln!(out, "{}", row.trim_end());
        let fix = limit.fix.iter().map(|fix| format!("→ {fix}"));
        let note = limit.note.iter().map(|note| format!("({note})"));
        for part in fix.chain(note).flat_map(|text| units::wrap(&text, 92)) {
            let _ = writeln!(out, "        {part}");
        }
    }
    let verdict = if plan.fits { "It fits" } else { "It does not fit" };
    for part in units::wrap(&format!("{verdict} (costs: {}).", plan.costs_from), 100) {
        let _ = writeln!(out, "{part}");
    }
    out
}

/// What is needed and what there is, and the unit of both; bytes carry theirs themselves.
pub(crate) fn amounts(limit: &PlanLimit) -> (String, String, &str) {
    let (write, unit): (fn(u64) -> String, _) = match limit.unit.as_str() {
        "bytes" => (|bytes| units::bytes(bytes as f64), ""),
        unit => (units::count, unit),
    };
    (write(limit.needed), limit.available.map_or("no bound".to_owned(), write), unit)
}

fn check(options: &Options) -> Result<()> {
    if options.connections == 0 || options.connections > CONNECTIONS_MAX {
        return Err(Error::usage(
            format!("{} connections cannot be planned", options.connections),
            format!("ask for 1 to {CONNECTIONS_MAX}"),
        ));
    }
    if let Some(rate) = options.arrivals
        && !(rate > 0.0 && rate <= 1e9)
    {
        return Err(Error::usage(
            format!("{rate} is no rate of arrivals"),
            "ask for more than 0 per second",
        ));
    }
    if options.burst == Some(0) || options.burst > Some(CONNECTIONS_MAX) {
        return Err(Error::usage("that is no burst", format!("ask for 1 to {CONNECTIONS_MAX}")));
    }
    Ok(())
}

fn backlog(options: &Options, costs: &Costs) -> Result<Option<u64>> {
    if options.arrivals.is_none() && options.burst.is_none() {
        return Ok(None);
    }
    let missing = |what: &str| {
        Error::usage(
            format!("a backlog was asked for, and {} holds no {what}", costs.from),
            "measure it: plimsoll survey, or plimsoll accept --rate 3000 --burst 200",
        )
    };
    let service_rate = costs.accepts_per_second.ok_or_else(|| missing("accept rate"))?;
    let stall = costs
        .longest_stall
        .ok_or_else(|| missing("stall of the acceptor (accept ran without arrivals)"))?;
    let arrivals = Arrivals {
        rate: options.arrivals.unwrap_or(0.0),
        burst: options.burst.unwrap_or(0),
        // Planned for many machines: at one instant.
        burst_rate: None,
        service_rate,
        stall,
    };
    accept::backlog_needed(&arrivals).map(Some).ok_or_else(|| {
        Error::usage(
            format!(
                "no backlog suffices: {} would arrive and {} can be accepted",
                units::rate(arrivals.rate),
                units::rate(service_rate)
            ),
            "plan for fewer arrivals, or for more servers",
        )
    })
}

/// What the plan needs of the machine.
struct Need {
    kernel_bytes: u64,
    user_bytes: u64,
    descriptors: u64,
    source_addresses: u64,
    backlog: Option<u64>,
}

fn limits(options: &Options, need: &Need, facts: &Facts) -> Vec<PlanLimit> {
    let mut rows = memory_limits(options, need, facts);
    rows.extend(descriptor_limits(options, need, facts));
    let limits = &facts.limits;
    let tracked = limits.nf_conntrack_count.unwrap_or(0);
    rows.push(limit(
        "net.ipv4.tcp_mem (pages, if each holds one)",
        ("pages", Side::Server),
        options.connections,
        limits.tcp_mem.map(|mem| mem.max),
        || {
            let most = options.connections;
            sysctl_fix("net.ipv4.tcp_mem", &format!("{} {} {most}", most / 2, most - most / 4))
        },
    ));
    rows.push(limit(
        "net.netfilter.nf_conntrack_max (less tracked)",
        ("entries", Side::Server),
        options.connections,
        limits.nf_conntrack_max.map(|max| max.saturating_sub(tracked)),
        || {
            let name = "net.netfilter.nf_conntrack_max";
            sysctl_fix(name, &(tracked + options.connections).to_string())
        },
    ));
    // Loopback has 2^24 − 2 of them; elsewhere they are the clients' affair.
    rows.push(limit(
        "source addresses",
        ("addresses", Side::Client),
        need.source_addresses,
        options.both_ends.then_some((1 << 24) - 2),
        String::new,
    ));
    if let Some(backlog) = need.backlog {
        let kind = ("connections", Side::Server);
        rows.push(limit("net.core.somaxconn", kind, backlog, limits.somaxconn, || {
            sysctl_fix("net.core.somaxconn", &backlog.to_string())
        }));
    }
    rows
}

/// On which side a limit that both ends can reach stands.
fn ends(options: &Options) -> (u64, Side) {
    if options.both_ends { (2, Side::Both) } else { (1, Side::Server) }
}

fn memory_limits(options: &Options, need: &Need, facts: &Facts) -> Vec<PlanLimit> {
    let (ends, side) = ends(options);
    let memory = need.kernel_bytes.saturating_mul(ends).saturating_add(need.user_bytes);
    let group = facts.cgroup.as_ref().and_then(|group| group.memory.as_ref());
    let available = facts.memory.as_ref().map(|memory| memory.available);
    let room = group.and_then(plimsoll_kernel::cgroup::Bound::room);
    vec![
        limit("memory", ("bytes", side), memory, available, || {
            format!("free or add memory: {} are needed", units::bytes(memory as f64))
        }),
        limit("cgroup memory", ("bytes", side), memory, room, || match group {
            Some(group) => {
                let set = group.current.saturating_add(memory);
                format!("echo {set} > {}", group.group.join("memory.max").display())
            }
            None => String::new(),
        }),
    ]
}

fn descriptor_limits(options: &Options, need: &Need, facts: &Facts) -> Vec<PlanLimit> {
    let (ends, side) = ends(options);
    let limits = &facts.limits;
    let kind = ("descriptors", Side::Server);
    let bounded = !options.direct_descriptors;
    let hard = limits.nofile.map(|limit| limit.hard);
    let mut nofile =
        limit("nofile (hard)", kind, need.descriptors, hard.filter(|_| bounded), || {
            nofile_fix(need.descriptors)
        });
    nofile.note = descriptor_note(bounded, nofile.ok, hard);
    let files = need.descriptors.saturating_mul(ends);
    let file_room = limits.files.map(|files| files.max.saturating_sub(files.allocated));
    let file_set = limits.files.map_or(0, |now| now.allocated.saturating_add(files));
    vec![
        nofile,
        limit("fs.nr_open", kind, need.descriptors, limits.nr_open.filter(|_| bounded), || {
            sysctl_fix("fs.nr_open", &need.descriptors.to_string())
        }),
        limit("fs.file-max (less those open)", ("files", side), files, file_room, || {
            sysctl_fix("fs.file-max", &file_set.to_string())
        }),
    ]
}

/// Why a limit on the descriptors of one process does not bind every server, nor the lab.
fn descriptor_note(plain: bool, suffices: bool, hard: Option<u64>) -> Option<String> {
    match (plain, suffices) {
        (true, true) => None,
        (true, false) => Some(
            "the server's process needs them, one for each connection. The plimsoll engine on \
             io_uring does not: its connections are direct descriptors, in tables of its rings, and \
             the limit bounds each table, not their sum (--direct-descriptors plans for such a \
             server). The clients of `plimsoll capacity` do not either: they are spread over worker \
             processes. So `capacity` can hold what is too much here"
                .to_owned(),
        ),
        (false, _) => hard.map(|hard| {
            format!(
                "the server's connections are direct descriptors: the limit bounds the table of each \
                 of its rings ({}), not their sum",
                units::count(hard)
            )
        }),
    }
}

/// One row. `kind` is what is counted, and the side whose limit it is.
fn limit(
    name: &str,
    kind: (&str, Side),
    needed: u64,
    available: Option<u64>,
    fix: impl FnOnce() -> String,
) -> PlanLimit {
    let ok = available.is_none_or(|available| available >= needed);
    let fix = (!ok).then(fix).filter(|fix| !fix.is_empty());
    let (unit, side) = (kind.0.to_owned(), Some(kind.1));
    PlanLimit { name: name.to_owned(), unit, side, needed, available, ok, fix, note: None }
}
