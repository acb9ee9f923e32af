//! `churn`: connect, echo, disconnect, over and over, in several ways side by side.
//!
//! | client's pool | closes | what the client does |
//! |---|---|---|
//! | off | `client` | a new socket each time; `close`, which sends FIN: `TIME_WAIT` at the client's end |
//! | off | `client-reset` | a new socket each time; `SO_LINGER` 0 and `close`, which sends RST: no `TIME_WAIT` |
//! | on | `client` | shuts down its half, reads the server's FIN, then `connect(AF_UNSPEC)` and the socket is used again |
//! | on | `client-reset` | `connect(AF_UNSPEC)` at once, which sends RST (`tcp_disconnect`), and the socket is used again |
//! | off | `server` | reads the server's FIN, then `close`: `TIME_WAIT` at the server's end |
//! | on | `server` | reads the server's FIN, then `connect(AF_UNSPEC)`, whose RST ends the server's `FIN_WAIT_2` |
//!
//! The embedded server is run with its pools and without (`serve --pool`): recycled buffers, and
//! entries of a descriptor table made ahead, against buffers whose pages go back to the system and
//! a new descriptor for each connection. (A server's accepted socket itself cannot be used again on
//! Linux, which has no `DisconnectEx`.) So a variant's `pool` is one of three, each of which differs
//! from the next in one thing:
//!
//! | `pool` | client's sockets | server |
//! |---|---|---|
//! | `off` | new | `--pool off` |
//! | `server` | new | `--pool on` |
//! | `on` | used again | `--pool on` |
//!
//! On Windows a client's socket cannot be connected again without `DisconnectEx` and `ConnectEx`: the
//! pool there is the server's alone, `off` or `on`, which is what the sources ask of it.
//!
//! A target's own pool is as it was set, and does not say what it took from it: there `pool` is the
//! client's alone, `off` or `on`.
//!
//! # How it is measured
//!
//! One client thread keeps a ring of connections: when it comes round to one, the reply is usually
//! there, so neither end pays for waking the other. Every system call it makes is timed into one of
//! four parts, so the parts' means add up to the cycle: `socket` (socket, and on loopback `bind` to
//! a source address), `connect`, `echo` (send, receive, waiting included), `disconnect`.
//!
//! The variants take turns of about 0.15 s in shuffled order, since a machine's fast and slow
//! phases would rank them otherwise; ratios are taken within a sweep. Each variant and turn has
//! source addresses of its own out of 127.0.0.0/8, so that one variant's `TIME_WAIT`s do not eat
//! another's ports, and so that they can be told apart. Other targets have one source address,
//! and `EADDRNOTAVAIL` is counted when its ports are gone.
//!
//! The servers are processes of their own, one of each kind, up at the same time; each has one shard,
//! as the client has one thread. Targets that close first are rare among echo servers: those
//! variants run against the embedded servers, unless
//! [`target_closes_first`](Options::target_closes_first) says otherwise. Processor time of
//! interrupts is not charged to a server reliably.

mod client;
mod explain;
mod servers;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::results::{Churn, ChurnVariant};
use crate::statistics::median;
use crate::units::wrap;
use crate::{Error, Lab, Result, units};

use client::{Client, Turn};
use servers::{Place, Servers};
use watch::Watch;

/// Which pools to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pool {
    /// Client and server recycle.
    On,
    /// Neither does.
    Off,
    /// Both, side by side, and the server alone between them.
    #[default]
    Both,
}

/// Who closes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Closes {
    /// The client, orderly and by reset.
    Client,
    /// The server.
    Server,
    /// Both, side by side.
    #[default]
    Both,
}

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// An echo server; `None` for embedded ones, with and without their pools.
    pub target: Option<SocketAddr>,
    /// The target's process, for its CPU time; its children's is counted with it.
    pub server_pid: Option<u32>,
    /// The target closes each connection after it has echoed `size` bytes. Then the variants in
    /// which the server closes first run against it, and the others do not run.
    pub target_closes_first: bool,
    /// Which pools.
    pub pool: Pool,
    /// Who closes first.
    pub closes: Closes,
    /// Time of all turns together.
    pub duration: Duration,
    /// Connections in the ring.
    pub concurrency: usize,
    /// How long a connect and a reply may take.
    pub timeout: Duration,
    /// Bytes of each message.
    pub size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: None,
            server_pid: None,
            target_closes_first: false,
            pool: Pool::Both,
            closes: Closes::Both,
            duration: Duration::from_secs(5),
            concurrency: 16,
            timeout: Duration::from_secs(5),
            size: 64,
        }
    }
}

/// Length of a turn, as near as the duration allows.
const TURN: Duration = Duration::from_millis(150);
/// Fewest sweeps: quartiles of less say nothing.
const SWEEPS_MIN: u32 = 4;
/// Bounds of what may be asked.
const CONCURRENCY_MAX: usize = 10_000;
const SIZE_MAX: usize = 1 << 20;
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// After a turn: the server works off what the client has closed.
const SETTLE: Duration = Duration::from_millis(5);

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    ClientReset,
    Server,
}

/// Whether the client can use a socket again: by `connect(AF_UNSPEC)`.
const CLIENT_REUSES: bool = cfg!(unix);

/// Who recycles what it has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recycles {
    Nobody,
    Server,
    Both,
}

/// One way to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) recycles: Recycles,
    pub(crate) end: End,
}

impl Variant {
    fn all(pool: Pool, closes: Closes) -> Vec<Self> {
        let pools: &[Recycles] = match pool {
            Pool::Both if CLIENT_REUSES => &[Recycles::Nobody, Recycles::Server, Recycles::Both],
            Pool::Both => &[Recycles::Nobody, Recycles::Server],
            Pool::On if CLIENT_REUSES => &[Recycles::Both],
            Pool::On => &[Recycles::Server],
            Pool::Off => &[Recycles::Nobody],
        };
        let ends: &[End] = match closes {
            Closes::Both => &[End::Client, End::ClientReset, End::Server],
            Closes::Client => &[End::Client, End::ClientReset],
            Closes::Server => &[End::Server],
        };
        let of = |end: &End| pools.iter().map(|recycles| (*recycles, *end)).collect::<Vec<_>>();
        ends.iter().flat_map(of).map(|(recycles, end)| Self { recycles, end }).collect()
    }

    /// Whether the client uses its sockets again.
    pub(crate) fn client_recycles(self) -> bool {
        self.recycles == Recycles::Both
    }

    /// Whether the embedded server uses its pools.
    pub(crate) fn server_recycles(self) -> bool {
        self.recycles != Recycles::Nobody
    }

    fn pool(self) -> &'static str {
        match self.recycles {
            Recycles::Nobody => "off",
            Recycles::Server if CLIENT_REUSES => "server",
            Recycles::Server | Recycles::Both => "on",
        }
    }

    fn closes(self) -> &'static str {
        match self.end {
            End::Client => "client",
            End::ClientReset => "client-reset",
            End::Server => "server",
        }
    }
}

/// A variant as it runs.
struct Runner {
    variant: Variant,
    address: SocketAddr,
    /// The embedded server it runs against; `None`: the target.
    server: Option<Place>,
    watch: Watch,
    turns: Vec<Turn>,
}

/// Runs the variants in turns: the duration, and some 10 ms more for each turn. The flag is whether
/// it was interrupted.
///
/// # Errors
///
/// [`Error::Usage`] for options that cannot be; [`Error::Target`] if the target refuses, closes
/// before it has echoed, echoes something else, or does not answer in time; [`Error::Machine`] if
/// sockets cannot be had.
pub fn run(lab: &Lab, options: &Options) -> Result<(Churn, bool)> {
    check(options)?;
    crate::sys::raise_descriptor_limit();
    let mut servers = Servers::default();
    let mut runners = runners(lab, options, &mut servers)?;
    let sweeps = sweeps(options.duration, runners.len());
    let turn = options.duration / (sweeps * runners.len() as u32);
    let mut order: Vec<usize> = (0..runners.len()).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let start = Instant::now();
    let mut partial = false;
    'sweeps: for sweep in 0..sweeps {
        shuffle(&mut order, &mut random);
        for &index in &order {
            if lab.is_interrupted() {
                partial = true;
                break 'sweeps;
            }
            let runner = &mut runners[index];
            take_turn(runner, options, &servers, turn, sweep)?;
            runner.watch.sample(start.elapsed(), false)?;
        }
        let line = format!("churn: {} variants side by side", runners.len());
        lab.progress.step(u64::from(sweep) + 1, Some(u64::from(sweeps)), &line);
    }
    // Afterwards: what stays.
    for runner in &mut runners {
        runner.watch.sample(start.elapsed(), true)?;
    }
    let variants: Vec<_> = runners.iter().map(|runner| summarise(runner, options)).collect();
    let explanation = explain::explain(&variants);
    Ok((Churn { variants, explanation }, partial))
}

/// The result as a plain table for a person, at most 100 columns wide.
pub fn render_text(result: &Churn) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:<6} {:<13} {:>9} {:>9} {:>7} {:>8} {:>8} {:>7} {:>11} {:>11}",
        "pool",
        "closes first",
        "cycles/s",
        "server µs",
        "socket",
        "connect",
        "echo",
        "discon.",
        "TIME_WAIT s",
        "TIME_WAIT c"
    );
    for row in &result.variants {
        let number = |value: Option<f64>| value.map_or("–".to_owned(), units::number);
        let part = |name: &str| number(row.parts_us.get(name).copied());
        let whole = |value: Option<u64>| value.map_or("–".to_owned(), units::count);
        let _ = writeln!(
            out,
            "{:<6} {:<13} {:>9} {:>9} {:>7} {:>8} {:>8} {:>7} {:>11} {:>11}",
            row.pool,
            row.closes,
            units::number(row.cycles_per_second),
            number(row.server_cpu_us_per_cycle),
            part("socket"),
            part("connect"),
            part("echo"),
            part("disconnect"),
            whole(row.time_wait_server),
            whole(row.time_wait_client)
        );
    }
    out.push_str("(parts: median µs of the client; s, c: server's and client's end)\n");
    for row in result.variants.iter().filter(|row| !row.errors.is_empty()) {
        let errors: Vec<_> =
            row.errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let _ = writeln!(out, "errors, pool {}, {}: {}", row.pool, row.closes, errors.join(", "));
    }
    for sentence in &result.explanation {
        for line in wrap(sentence, 100) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn check(options: &Options) -> Result<()> {
    let refuse = |cause: String, cure: &str| Err(Error::usage(cause, cure));
    if options.concurrency == 0 || options.concurrency > CONCURRENCY_MAX {
        return refuse(
            format!("a ring of {} connections", options.concurrency),
            "ask for 1 to 10000",
        );
    }
    if options.size == 0 || options.size > SIZE_MAX {
        return refuse(format!("messages of {} bytes", options.size), "ask for 1 byte to 1MiB");
    }
    if options.duration.is_zero() || options.duration > DURATION_MAX {
        return refuse("the duration is 0 or over an hour".to_owned(), "ask for a few seconds");
    }
    if options.timeout.is_zero() {
        return refuse("the timeout is 0".to_owned(), "ask for 1s or more");
    }
    Ok(())
}

/// The variants that can be, each tried once, with their servers running.
fn runners(lab: &Lab, options: &Options, servers: &mut Servers) -> Result<Vec<Runner>> {
    let mut runners = Vec::new();
    // The target first: where nothing answers there, no server need be started.
    let mut all = Variant::all(options.pool, options.closes);
    all.sort_by_key(|variant| !of_target(*variant, options));
    for variant in all {
        let (address, server) = match options.target {
            Some(target) if of_target(variant, options) => {
                // Of a target nothing but the client's pool is ours to choose.
                if variant.recycles == Recycles::Server {
                    continue;
                }
                (target, None)
            }
            Some(_) if options.target_closes_first => continue,
            _ => {
                let place = servers.of(lab, variant, options)?;
                (servers.address(place), Some(place))
            }
        };
        client::try_once(address, variant, options)?;
        // Far from 127.0.0.1, where other experiments take their sources from.
        let network = client::is_loopback(address).then_some(100 + runners.len() as u8);
        let watch = Watch::new(address.port(), network);
        runners.push(Runner { variant, address, server, watch, turns: Vec::new() });
    }
    if runners.is_empty() {
        return Err(Error::usage(
            "no variant that was asked for can run against this target: who closes first, or the pool, \
             is the target's own choice",
            "ask for another --closes, for --pool off, or for another target",
        ));
    }
    Ok(runners)
}

/// Whether a variant runs against the target.
fn of_target(variant: Variant, options: &Options) -> bool {
    options.target.is_some() && options.target_closes_first == (variant.end == End::Server)
}

fn sweeps(duration: Duration, variants: usize) -> u32 {
    let turns = duration.as_secs_f64() / TURN.as_secs_f64() / variants as f64;
    (turns.round() as u32).max(SWEEPS_MIN)
}

fn take_turn(
    runner: &mut Runner,
    options: &Options,
    servers: &Servers,
    length: Duration,
    sweep: u32,
) -> Result<()> {
    let cpu = || match (runner.server, options.server_pid) {
        (Some(place), _) => servers.cpu_time(place),
        (None, Some(pid)) => crate::observe::family::cpu_time(pid),
        (None, None) => None,
    };
    let pools = || servers.pools(runner.server?);
    runner.watch.begin()?;
    let pools_before = pools();
    let before = cpu();
    let mut client =
        Client::new(runner.address, runner.variant, options, runner.watch.network(), sweep);
    let mut turn = client.run(length)?;
    drop(client);
    std::thread::sleep(SETTLE);
    turn.server_cpu = before.zip(cpu()).map(|(before, after)| after.saturating_sub(before));
    turn.server_pools = servers::growth(pools_before, pools());
    runner.turns.push(turn);
    Ok(())
}

fn summarise(runner: &Runner, options: &Options) -> ChurnVariant {
    let turns = &runner.turns;
    let rates: Vec<f64> = turns.iter().map(Turn::rate).collect();
    let cycles: u64 = turns.iter().map(|turn| turn.cycles).sum();
    let per_cycle = |times: Option<Duration>| {
        times.filter(|_| cycles > 0).map(|time| time.as_secs_f64() * 1e6 / cycles as f64)
    };
    let mut errors = BTreeMap::new();
    for (name, count) in turns.iter().flat_map(|turn| &turn.errors) {
        *errors.entry(name.clone()).or_insert(0) += count;
    }
    let (mut parts_us, mut parts_mean_us) = (BTreeMap::new(), BTreeMap::new());
    for (part, name) in client::PARTS.iter().enumerate() {
        // The median of the turns' medians.
        let medians: Vec<f64> =
            turns.iter().filter_map(|turn| turn.parts[part].median_us()).collect();
        parts_us.extend(median(&medians).map(|value| ((*name).to_owned(), value)));
        let means: Vec<f64> = turns.iter().filter_map(|turn| turn.parts[part].mean_us()).collect();
        parts_mean_us.extend(median(&means).map(|value| ((*name).to_owned(), value)));
    }
    let server_pools = server_pools(turns);
    let of_pools = |ending| server_pools.as_ref().map(|pools| servers::sum(pools, ending));
    ChurnVariant {
        pool: runner.variant.pool().to_owned(),
        closes: runner.variant.closes().to_owned(),
        cycles_per_second: median(&rates).unwrap_or(0.0),
        turns: rates,
        server_cpu_us_per_cycle: per_cycle(turns.iter().map(|turn| turn.server_cpu).sum()),
        client_cpu_us_per_cycle: per_cycle(Some(turns.iter().map(|turn| turn.client_cpu).sum())),
        cycles,
        errors,
        time_wait_server: runner.watch.server_max,
        time_wait_client: runner.watch.client_max,
        pool_hits: turns.iter().map(|turn| turn.hits).sum(),
        pool_misses: turns.iter().map(|turn| turn.misses).sum(),
        parts_us,
        time_wait_samples: runner.watch.samples.clone(),
        parts_mean_us,
        server: match runner.server {
            Some(_) => explain::EMBEDDED.to_owned(),
            None => runner.address.to_string(),
        },
        size: options.size as u64,
        server_pool_hits: of_pools("_hits"),
        server_pool_misses: of_pools("_misses"),
        server_pools,
    }
}

/// The sum over turns, of each figure; `None` where a turn has none.
fn server_pools(turns: &[Turn]) -> Option<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for turn in turns {
        servers::add(&mut sum, turn.server_pools.as_ref()?);
    }
    (!turns.is_empty()).then_some(sum)
}

/// Fisher–Yates with xorshift64; the order need only not repeat.
fn shuffle(order: &mut [usize], random: &mut u64) {
    for last in (1..order.len()).rev() {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        order.swap(last, (*random % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variants_are_those_asked_for() {
        let pools = if CLIENT_REUSES { 3 } else { 2 };
        assert_eq!(Variant::all(Pool::Both, Closes::Both).len(), 3 * pools);
        let one = Variant::all(Pool::On, Closes::Server);
        assert_eq!(one.len(), 1);
        assert_eq!(
            (one[0].end, one[0].pool(), one[0].server_recycles()),
            (End::Server, "on", true)
        );
        assert_eq!(Variant::all(Pool::Off, Closes::Client).len(), 2);
    }

    #[test]
    fn a_shuffle_keeps_all() {
        let (mut order, mut random) = (vec![0, 1, 2, 3], 7);
        shuffle(&mut order, &mut random);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[test]
    fn impossible_options_are_refused() {
        for options in [
            Options { concurrency: 0, ..Options::default() },
            Options { concurrency: 1 << 20, ..Options::default() },
            Options { size: 0, ..Options::default() },
            Options { size: usize::MAX, ..Options::default() },
            Options { duration: Duration::ZERO, ..Options::default() },
            Options { timeout: Duration::ZERO, ..Options::default() },
        ] {
            assert_eq!(check(&options).unwrap_err().exit_code(), 2, "{options:?}");
        }
    }
}
