//! Every failure of every operation, at every point of short voyages.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::plan::Plan;
use super::ship::Ship;
use crate::budget::Limits;
use crate::driver::sim::{Operation, POSSIBLE, SimOptions, SimSystem, SystemErrors};
use crate::shard::Profile;

/// A short voyage: a system, and a way to receive.
#[derive(Debug, Clone, Copy)]
struct Course {
    system: SystemErrors,
    profile: Profile,
    streams: bool,
}

const STEPS: u64 = 500;

const COURSES: [Course; 6] = {
    const fn course(system: SystemErrors, profile: Profile, streams: bool) -> Course {
        Course { system, profile, streams }
    }
    [
        course(SystemErrors::Linux, Profile::Connections, false),
        course(SystemErrors::Linux, Profile::Throughput, true),
        course(SystemErrors::Linux, Profile::Throughput, false),
        course(SystemErrors::Windows, Profile::Connections, false),
        course(SystemErrors::Windows, Profile::Throughput, true),
        course(SystemErrors::Windows, Profile::Throughput, false),
    ]
};

impl Course {
    /// Whether an operation is ever begun on it.
    fn does(self, operation: Operation) -> bool {
        let streams = self.streams && self.profile == Profile::Throughput;
        match operation {
            Operation::Stream => streams,
            Operation::Receive => !streams,
            Operation::Park => self.profile == Profile::Connections,
            _ => true,
        }
    }

    /// The first seed with which everything is done that can be.
    fn seed(self) -> u64 {
        let all = |uses: [u64; Operation::ALL.len()]| {
            Operation::ALL.into_iter().all(|it| !self.does(it) || uses[it as usize] > 0)
        };
        (0..500).find(|seed| all(self.uses(*seed))).expect("one of so many does everything")
    }

    fn plan(self, seed: u64) -> Plan {
        let system = match self.system {
            SystemErrors::Linux => SimSystem::linux(),
            SystemErrors::Windows => SimSystem::windows_workstation(1 << 30),
        };
        let options = SimOptions {
            system,
            streams: self.streams,
            held_clock: true,
            send_buffer_bytes: 4096,
            receive_buffer_bytes: 4096,
            short_per_million: 300_000,
            stream_end_per_million: 50_000,
            ..SimOptions::calm(seed)
        };
        let limits = Limits {
            max_connections: 6,
            outbox_low: 1000,
            outbox_high: 8000,
            outbox_hard: 64 << 10,
            idle_timeout: Some(Duration::from_secs(2)),
            max_per_peer: Some(4),
            backlog: 4,
            ..Limits::default()
        };
        Plan {
            seed,
            calm: false,
            chatty: true,
            options,
            profile: self.profile,
            limits,
            shards: 2,
            slots: 4,
            outgoing: 1,
            blocks: 16,
            clients: 8,
            drain: Duration::from_millis(100),
            drain_early: None,
        }
    }

    /// How often each operation is begun when nothing fails, drain and all.
    fn uses(self, seed: u64) -> [u64; Operation::ALL.len()] {
        let mut ship = Ship::launch(self.plan(seed));
        ship.sail(STEPS);
        let kernel = ship.kernel.clone();
        ship.land();
        Operation::ALL.map(|operation| kernel.begun(operation))
    }

    /// The same, but that the `nth` operation of a line's kind fails as the line has it.
    fn sail_with(self, seed: u64, line: usize, nth: u32) -> bool {
        let mut ship = Ship::launch(self.plan(seed));
        let kernel = ship.kernel.clone();
        kernel.fail_nth_as(line, nth);
        ship.sail(STEPS);
        ship.land_unhealed();
        kernel.report().faults > 0
    }
}

/// Every line of [`POSSIBLE`], at the first, second, … last use of its operation.
#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn simulated_every_failure_at_every_point() {
    let mut work = Vec::new();
    for course in COURSES {
        let seed = course.seed();
        let uses = course.uses(seed);
        for (number, line) in POSSIBLE.iter().enumerate() {
            if line.system == course.system {
                let points = uses[line.operation as usize] as u32;
                work.extend((1..=points).map(|nth| (course, seed, number, nth)));
            }
        }
    }
    let (next, struck) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let sail = || {
        let mut lines = BTreeSet::new();
        while let Some(&(course, seed, line, nth)) = work.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let sailed = std::panic::catch_unwind(|| course.sail_with(seed, line, nth));
            let what = &POSSIBLE[line];
            let Ok(hit) = sailed else { panic!("{course:?}, seed {seed}: use {nth} of {what:?}") };
            struck.fetch_add(usize::from(hit), Ordering::Relaxed);
            if hit {
                lines.insert(line);
            }
        }
        lines
    };
    let lines: BTreeSet<usize> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(sail)).collect();
        running.into_iter().flat_map(|one| one.join().expect("each failure is survived")).collect()
    });
    let struck = struck.into_inner();
    eprintln!(
        "{} voyages, {struck} failures, {} of {} lines",
        work.len(),
        lines.len(),
        POSSIBLE.len()
    );
    let missed: Vec<_> =
        (0..POSSIBLE.len()).filter(|line| !lines.contains(line)).map(|at| POSSIBLE[at]).collect();
    assert!(missed.is_empty(), "the courses never come to these: {missed:#?}");
    assert!(struck * 10 >= work.len() * 9, "{struck} of {} points", work.len());
}
