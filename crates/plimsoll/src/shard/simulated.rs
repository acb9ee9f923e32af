//! Whole shards on the simulated kernel: from a seed, with every failure that an operation can have.
//!
//! A [`ship::Ship`] is several shards, as a server has them, with one ledger and one listener, on
//! one simulated machine; the [`client`]s come and go, send, end, reset, vanish, flood, never read;
//! the handlers ([`crew`]) echo, send to others, connect, refuse, close, panic. A seed decides the
//! machine (Linux or a workstation with Windows, and what it is short of), the limits, who behaves
//! how, the order of shards, mailboxes, completions and peers, and the clock ([`plan`]). Nothing
//! reads the real world: a seed that failed once fails again.
//!
//! After each voyage the shards drain, and every account must be at zero: sessions, slots, permits,
//! blocks, operations in flight, descriptors, kernel memory. On the way no limit may be passed, and
//! each byte that a peer gets back must be the right one.
//!
//! The long tests are ignored by `cargo test`, and run in a profile of their own:
//!
//! ```text
//! cargo test --profile simulation -p plimsoll --lib -- --ignored     # all of them
//! PLIMSOLL_SEEDS=10000 PLIMSOLL_STEPS=10000 \
//!   cargo test --profile simulation -p plimsoll --lib simulated_seeds -- --ignored
//! PLIMSOLL_SEED=17 PLIMSOLL_STEPS=2000 \
//!   cargo test -p plimsoll --lib simulated_seeds -- --ignored        # one seed again
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::plan::Plan;
use self::ship::Ship;

mod adopting;
mod client;
mod crew;
mod keys;
mod plan;
mod ship;
mod stale;
mod sweep;

/// What is run unless the environment says otherwise.
const SEEDS: u64 = 400;
const STEPS: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// What happened on a voyage, or on all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Log {
    /// Of all completions: equal in voyages that are equal.
    hash: u64,
    sessions: u64,
    events: u64,
    completions: u64,
    stale: u64,
    faults: u64,
}

fn voyage(seed: u64, steps: u64) -> Log {
    let mut ship = Ship::launch(Plan::of(seed));
    ship.sail(steps);
    let (report, metrics) = (ship.kernel.report(), ship.metrics());
    let log = Log {
        hash: ship.kernel.trace_hash(),
        sessions: metrics.accepted + metrics.connected,
        events: report.events,
        completions: report.completions,
        stale: report.stale_completions,
        faults: report.faults,
    };
    assert_eq!(metrics.stale, log.stale, "stale completions that were not recognised");
    ship.land();
    log
}

/// What happened on them all, or the first seed that failed; seeds are shared out among all
/// processors.
fn voyages(seeds: std::ops::Range<u64>, steps: u64) -> Result<Log, u64> {
    let total = Mutex::new(Log::default());
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().is_ok_and(|failed| failed.is_some()) {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| voyage(seed, steps))) {
                        Ok(log) => total.lock().expect("nothing panics with it").add(log),
                        Err(_) => {
                            let mut failed = failed.lock().expect("nothing panics with it");
                            *failed = Some(failed.map_or(seed, |other: u64| other.min(seed)));
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("nothing panics with it") {
        Some(seed) => Err(seed),
        None => Ok(total.into_inner().expect("nothing panics with it")),
    }
}

impl Log {
    fn add(&mut self, other: Self) {
        self.hash ^= other.hash;
        self.sessions += other.sessions;
        self.events += other.events;
        self.completions += other.completions;
        self.stale += other.stale;
        self.faults += other.faults;
    }
}

/// In every `cargo test`: the first seeds, for less than a second.
#[test]
fn simulated_first_seeds() {
    if let Err(seed) = voyages(0..16, 1000) {
        panic!("seed {seed}\n{:#?}", Plan::of(seed));
    }
}

/// Streams that run out of blocks again and again, on a machine that is short of nothing: they wait for
/// blocks, and no shard brakes for a shortage of the kernel's ([`Ship::land`] looks).
#[test]
fn simulated_streams_without_blocks_brake_nobody() {
    let mut starved = 0;
    for seed in 0..32 {
        let mut ship = Ship::launch(Plan::of_few_blocks(seed));
        ship.sail(1000);
        starved += ship.metrics().starved;
        ship.land();
    }
    assert!(starved >= 32, "{starved} streams have found no block");
}

#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn simulated_seeds() {
    let steps = number("PLIMSOLL_STEPS").unwrap_or(STEPS);
    let most = number("PLIMSOLL_SEEDS").unwrap_or(SEEDS);
    let seeds = number("PLIMSOLL_SEED").map_or(0..most, |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let start = Instant::now();
    let log = voyages(seeds, steps);
    let seconds = start.elapsed().as_secs_f64();
    let rate = (count * steps) as f64 / seconds;
    eprintln!("{count} seeds of {steps} steps in {seconds:.1} s, {rate:.0} steps/s: {log:?}");
    if let Err(seed) = log {
        panic!(
            "replay: PLIMSOLL_SEED={seed} PLIMSOLL_STEPS={steps} cargo test --profile simulation \
             -p plimsoll --lib simulated_seeds -- --ignored\n{:#?}",
            Plan::of(seed)
        );
    }
}

#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn simulated_equal_seeds_make_equal_voyages() {
    for seed in 0..24 {
        assert_eq!(voyage(seed, 1000), voyage(seed, 1000), "seed {seed}");
    }
}
