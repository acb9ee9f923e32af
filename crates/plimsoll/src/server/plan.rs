//! How many shards there are, and whether the machine has what the limits ask for.

use super::{Error, SESSIONS_PER_SHARD};
use crate::budget::Limits;

/// What the kernel counts a connection as, and so what `RLIMIT_NOFILE` bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descriptors {
    /// An entry of its shard's table of direct descriptors: each table is bounded.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "io_uring is Linux' own"))]
    Tables,
    /// A descriptor of the process: all connections together are bounded.
    Process,
}

/// Descriptors of a shard's own: its ring, epoll or kqueue, and what wakes it.
const OF_A_SHARD: u64 = 2;

/// Descriptors left to the rest of the program: the listener, one to refuse connections with, a
/// name that is looked up, a log that is opened anew.
const SPARE: u64 = 16;

/// How many shards, and how many slots in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) shards: u32,
    pub(super) slots: u32,
    /// Of the slots of each shard, those for connections that its handler makes.
    pub(super) outgoing: u32,
}

/// What is asked for, and what there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Connections accepted, at most.
    pub(super) accepted: u32,
    /// Connections made, at most.
    pub(super) outgoing: u32,
    /// Shards asked for, 0 for as many as there are CPUs.
    pub(super) shards: u32,
    /// What connections are.
    pub(super) descriptors: Descriptors,
}

impl Demand {
    /// What the limits ask for.
    pub(super) fn of(limits: &Limits, listens: bool, shards: Option<u32>) -> Result<Self, Error> {
        if shards == Some(0) {
            return Err(Error::Limits("shards is 0: at least 1".into()));
        }
        Ok(Self {
            accepted: if listens { limits.max_connections } else { 0 },
            outgoing: limits.max_outgoing,
            shards: shards.unwrap_or(0),
            descriptors: Descriptors::Process,
        })
    }

    /// The same, of connections that are kept in this way.
    pub(super) fn with(self, descriptors: Descriptors) -> Self {
        Self { descriptors, ..self }
    }

    fn total(&self) -> u32 {
        self.accepted.saturating_add(self.outgoing).max(1)
    }
}

/// What the machine has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    /// Files that the system has left.
    pub(super) files: u64,
    /// `RLIMIT_NOFILE`, as it is now.
    pub(super) descriptors: u64,
    /// Descriptors that this process has open, and those that the monitor will have: five for each
    /// control group above it, among others.
    pub(super) open: u64,
    pub(super) cpus: u32,
}

impl Machine {
    /// This one.
    pub(super) fn here() -> Self {
        // Counted as the monitor opens them.
        let watch = plimsoll_kernel::watch::Watch::open();
        let open = descriptors_open();
        drop(watch);
        Self {
            files: files_available(),
            descriptors: descriptor_limit(),
            open,
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        }
    }
}

/// Refuses buffers that the machine, or this process' control group, has no memory for.
///
/// # Errors
///
/// Where they are more than there is, or fewer pinned than a block for each shard.
pub(super) fn check_buffers(limits: &Limits, shards: u32) -> Result<(), Error> {
    fit_buffers(limits, shards, &memory_available())
}

fn fit_buffers(limits: &Limits, shards: u32, memory: &Memory) -> Result<(), Error> {
    let shards = u64::from(shards);
    let block = limits.block_bytes.next_multiple_of(crate::buffer::page_bytes()) as u64;
    let asked = u64::from(limits.blocks()) * block;
    if asked.saturating_mul(shards) > memory.bytes {
        return Err(Error::Impossible {
            limit: "buffer_bytes",
            asked,
            fits: memory.bytes / shards,
            resource: memory.of,
            cure: format!("give it {} MiB, or fewer shards than {shards}", (asked * shards) >> 20),
        });
    }
    if let Some(pinned) = limits.pinned_bytes
        && (pinned as u64) < block * shards
    {
        return Err(Error::Limits(format!(
            "pinned_bytes is {pinned}: at least a block of {block} bytes for each of {shards} shards, {}",
            block * shards
        )));
    }
    Ok(())
}

/// Refuses a limit on operations in flight that cannot hold what is always in flight.
///
/// # Errors
///
/// With the least that would do.
pub(super) fn check_operations(limits: &Limits, plan: &Plan) -> Result<(), Error> {
    let least = limits.least_operations(plan.shards, plan.slots);
    match limits.max_operations {
        Some(most) if u64::from(most) < least => Err(Error::Limits(format!(
            "max_operations is {most}: at least {least}, one for each of {} connections, and the \
             accepts and sends of {} shards",
            u64::from(plan.shards) * u64::from(plan.slots),
            plan.shards
        ))),
        _ => Ok(()),
    }
}

/// Memory that is to be had, and from whom.
struct Memory {
    bytes: u64,
    of: &'static str,
}

/// What this process may still take: of the machine, or of its control group where that is less.
fn memory_available() -> Memory {
    let readings = plimsoll_kernel::watch::Watch::open().read();
    let machine = readings.system_memory.map(|usage| usage.room());
    let group = readings.group_memory.map(|usage| usage.room());
    let least = |bytes: Option<u64>, of| Memory { bytes: bytes.unwrap_or(u64::MAX), of };
    let machine = least(machine, "the machine's available memory");
    let group = least(group, "the control group's memory limit");
    if group.bytes < machine.bytes { group } else { machine }
}

impl Plan {
    /// A plan for as much as is demanded.
    ///
    /// # Errors
    ///
    /// Where the machine does not have it: with what limits it, and the number that would fit.
    pub(super) fn new(demand: &Demand, machine: &Machine) -> Result<Self, Error> {
        let total = demand.total();
        if u64::from(total) > machine.files {
            return Err(Error::Impossible {
                limit: "max_connections",
                asked: u64::from(total),
                fits: machine.files,
                resource: "fs.file-max (each connection is a file)",
                cure: format!(
                    "sysctl -w fs.file-max={}",
                    u64::from(total) * 2 + machine.files / 10
                ),
            });
        }
        let table = match demand.descriptors {
            Descriptors::Tables => u64::from(SESSIONS_PER_SHARD).min(machine.descriptors) as u32,
            Descriptors::Process => SESSIONS_PER_SHARD,
        };
        let asked = if demand.shards == 0 { machine.cpus } else { demand.shards };
        let least = asked.min(total).max(total.div_ceil(table.max(1)));
        // Both kinds of connections are rounded up on each shard: together they may need one more.
        let plan = (least..=total)
            .map(|shards| Self::of(demand, shards))
            .find(|plan| plan.slots <= table)
            .ok_or(Error::Impossible {
                limit: "max_connections",
                asked: u64::from(total),
                fits: u64::from(table),
                resource: NOFILE,
                cure: "ulimit -n 1024".into(),
            })?;
        match demand.descriptors {
            Descriptors::Tables => Ok(plan),
            Descriptors::Process => plan.within_process(demand, machine),
        }
    }

    fn of(demand: &Demand, shards: u32) -> Self {
        let outgoing = demand.outgoing.div_ceil(shards);
        Self { shards, slots: (demand.accepted.div_ceil(shards) + outgoing).max(1), outgoing }
    }

    /// Refuses a plan for which this process may not open enough descriptors.
    fn within_process(self, demand: &Demand, machine: &Machine) -> Result<Self, Error> {
        let total = u64::from(demand.total());
        let own = machine.open + u64::from(self.shards) * OF_A_SHARD + SPARE;
        if total + own <= machine.descriptors {
            return Ok(self);
        }
        Err(Error::Impossible {
            limit: "max_connections",
            asked: total,
            fits: machine.descriptors.saturating_sub(own),
            resource: NOFILE,
            cure: if cfg!(unix) {
                format!("ulimit -n {}", total + own)
            } else {
                "spread the connections over several processes".into()
            },
        })
    }
}

#[cfg(unix)]
const NOFILE: &str = "RLIMIT_NOFILE";
#[cfg(windows)]
const NOFILE: &str = "the handle table of a process";

/// How many descriptors this process may have: it bounds each table of direct descriptors too.
fn descriptor_limit() -> u64 {
    #[cfg(unix)]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current.unwrap_or(u64::MAX)
    }
    #[cfg(windows)]
    {
        // A handle is an index of 24 bits, of which a 256th part is the table's own
        // (16,711,680: Russinovich, "Pushing the Limits of Windows: Handles").
        (1 << 24) - (1 << 16)
    }
}

/// How many descriptors this process has open. O(open).
fn descriptors_open() -> u64 {
    let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    // Where it cannot be told: the standard streams. One is the folder's own.
    std::fs::read_dir(folder).map_or(3, |open| (open.count() as u64).saturating_sub(1))
}

/// How many files the system has left, as `fs.file-nr` tells; unbounded where it does not.
fn files_available() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/sys/fs/file-nr") else { return u64::MAX };
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(used)), Some(Ok(_)), Some(Ok(most))) => most.saturating_sub(used),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Machine = Machine { files: 1 << 30, descriptors: 1 << 20, open: 10, cpus: 2 };

    fn demand(accepted: u32, outgoing: u32, descriptors: Descriptors) -> Demand {
        Demand { accepted, outgoing, shards: 0, descriptors }
    }

    #[test]
    fn no_table_is_larger_than_it_may_be() {
        // Each kind of connection is rounded up by itself.
        for descriptors in [3, 7, 100, 1000, 20_000] {
            let machine = Machine { descriptors, ..ROOMY };
            for accepted in [1, 2, 99, 100, 101, 999, 1001, 40_001] {
                for outgoing in [0, 1, 33, 101, 1000, 16_385] {
                    let demand = demand(accepted, outgoing, Descriptors::Tables);
                    let plan = Plan::new(&demand, &machine).unwrap();
                    assert!(
                        u64::from(plan.slots) <= descriptors.min(16_384),
                        "{demand:?} {plan:?}"
                    );
                    let room = u64::from(plan.slots) * u64::from(plan.shards);
                    assert!(room >= u64::from(accepted + outgoing), "{demand:?} {plan:?}");
                    assert!(plan.outgoing * plan.shards >= outgoing, "{demand:?} {plan:?}");
                }
            }
        }
    }

    #[test]
    fn tables_are_bounded_each_and_the_process_as_a_whole() {
        let machine = Machine { descriptors: 20_000, ..ROOMY };
        let tables = demand(100_000, 0, Descriptors::Tables);
        assert_eq!(Plan::new(&tables, &machine).unwrap().shards, 7);
        let error = Plan::new(&tables.with(Descriptors::Process), &machine).unwrap_err();
        let text = error.to_string();
        let Error::Impossible { fits, resource, .. } = error else { panic!("{text}") };
        assert_eq!(resource, NOFILE);
        assert!(text.contains(if cfg!(unix) { "ulimit -n" } else { "processes" }), "{text}");
        // What it says fits does, and one more does not.
        let fits = demand(fits as u32, 0, Descriptors::Process);
        assert!(Plan::new(&fits, &machine).is_ok());
        let shards = Plan::new(&fits, &machine).unwrap().shards;
        let most = 20_000 - 10 - 16 - shards * 2;
        assert!(Plan::new(&demand(most, 0, Descriptors::Process), &machine).is_ok());
        assert!(Plan::new(&demand(most + 1, 0, Descriptors::Process), &machine).is_err());
    }

    #[test]
    fn buffers_have_memory_behind_them() {
        let limits = Limits { buffer_bytes: 64 << 20, ..Limits::default() };
        let memory = |mib: u64| Memory { bytes: mib << 20, of: "memory" };
        assert!(fit_buffers(&limits, 2, &memory(128)).is_ok());
        let error = fit_buffers(&limits, 2, &memory(127)).unwrap_err();
        assert!(matches!(error, Error::Impossible { fits, .. } if fits == 127 << 19), "{error}");
        let pinned = Limits { pinned_bytes: Some(20_000), ..limits };
        let error = fit_buffers(&pinned, 2, &memory(128)).unwrap_err();
        assert!(error.to_string().contains("32768"), "{error}");
        assert!(check_buffers(&Limits { buffer_bytes: 1 << 50, ..Limits::default() }, 2).is_err());
        assert!(check_buffers(&Limits::default(), 2).is_ok());
    }

    #[test]
    fn operations_are_refused_with_the_least_that_would_do() {
        let plan = Plan { shards: 2, slots: 50, outgoing: 0 };
        let limits = |most| Limits { max_operations: most, ..Limits::default() };
        let error = check_operations(&limits(Some(167)), &plan).unwrap_err();
        assert!(error.to_string().contains("at least 168"), "{error}");
        assert!(check_operations(&limits(Some(168)), &plan).is_ok());
        assert!(check_operations(&limits(None), &plan).is_ok());
    }

    #[test]
    fn there_are_no_more_shards_than_connections() {
        let plan = Plan::new(&demand(1, 0, Descriptors::Process), &ROOMY).unwrap();
        assert_eq!(plan, Plan { shards: 1, slots: 1, outgoing: 0 });
        let many = Demand { shards: 8, ..demand(100, 0, Descriptors::Process) };
        assert_eq!(Plan::new(&many, &ROOMY).unwrap().shards, 8);
    }

    #[test]
    fn this_process_has_descriptors_open() {
        let before = descriptors_open();
        assert!(before >= 1 && descriptors_open() >= 1);
        assert!(Machine::here().descriptors > before);
    }
}
