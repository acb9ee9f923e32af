//! The monitor in a memory control group of its own: the whole way from the kernel to the gauge.
//!
//! The test runs itself again as a child that enters the group, so that nothing else is bounded.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use plimsoll_kernel::watch::{Readings, Usage, Watch};

use super::cause::{Cause, Figure};
use super::{Gauge, Monitor, Pressure};

const ROLE: &str = "PLIMSOLL_TEST_GROUP";
const DEADLINE: Duration = Duration::from_secs(30);
const MEMORY: u64 = 96 << 20;
const TCP: u64 = 8 << 20;

/// A control group, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// A group with a limit in one of its files; the reason where that cannot be.
    fn new(name: &str, parent: &str, limits: &[(&str, u64)]) -> Result<Self, String> {
        let folder = Path::new(parent).join(format!("plimsoll-{name}-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Self(folder);
        for (file, limit) in limits {
            let path = group.0.join(file);
            // Never creates one: in a plain folder there would be none.
            if !path.exists() {
                return Err(format!("{} does not exist", path.display()));
            }
            fs::write(&path, limit.to_string()).map_err(|error| format!("{file}: {error}"))?;
        }
        Ok(group)
    }

    /// Runs one test of this file within the group.
    fn run(&self, name: &str) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("{}::{name}", own_path()), "--nocapture"]);
        let output = child.env(ROLE, &self.0).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", output.status);
        assert!(text.contains("1 passed"), "no such test: {text}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Busy for a moment after its last process has ended.
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Ok(()) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// The path of this module without the crate's name, as the test harness spells it.
fn own_path() -> &'static str {
    module_path!().split_once("::").map_or("", |(_, path)| path)
}

/// Enters the group that the parent has made; `None` in the parent's own run of the test.
fn enter() -> Option<PathBuf> {
    let group = PathBuf::from(std::env::var_os(ROLE)?);
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    Some(group)
}

/// A running monitor, and what it tells.
struct Watched {
    gauge: Arc<Gauge>,
    told: mpsc::Receiver<Pressure>,
    _monitor: Monitor,
}

impl Watched {
    fn start() -> Self {
        let gauge = Arc::new(Gauge::default());
        let (sender, told) = mpsc::channel();
        let changed = move |pressure| {
            let _ = sender.send(pressure);
        };
        let monitor = Monitor::start(&gauge, changed).unwrap();
        Self { gauge, told, _monitor: monitor }
    }

    /// Waits for a change to `pressure`, which this figure must have caused.
    fn expect(&self, pressure: Pressure, figure: Option<Figure>) {
        assert_eq!(self.told.recv_timeout(DEADLINE), Ok(pressure), "{:?}", self.gauge.cause());
        self.check(pressure, figure);
    }

    /// Takes more and more, until the monitor tells of `pressure`; never past 97 % of the limit,
    /// where the kernel would do something about it.
    fn fill(&self, pressure: Pressure, figure: Figure, source: &mut Source) -> Usage {
        let start = Instant::now();
        let mut usage = (source.of)(&source.watch.read());
        let mut most = usage;
        while start.elapsed() < DEADLINE {
            if let Ok(told) = self.told.recv_timeout(Duration::from_millis(1)) {
                assert_eq!(told, pressure, "{:?}", self.gauge.cause());
                self.check(pressure, Some(figure));
                return most;
            }
            // What sockets hold shrinks by itself when the kernel packs it.
            let percent = if pressure == Pressure::Braking { 88 } else { 97 };
            usage = (source.of)(&source.watch.read());
            if usage.held() * 100 < usage.limit * percent {
                (source.take)();
            }
            most = if usage.used > most.used { usage } else { most };
        }
        panic!("{} was never told of: {usage:?}", pressure.name());
    }

    fn check(&self, pressure: Pressure, figure: Option<Figure>) {
        let cause = self.gauge.cause();
        let caused_by = cause.map(|cause| match cause {
            Cause::Past { figure, .. } => Some(figure),
            Cause::Shortage { .. } => None,
        });
        assert_eq!(caused_by, figure.map(Some), "{cause:?}");
        let why = cause.map_or_else(String::new, |cause| cause.to_string());
        println!("{}: {why}", pressure.name());
    }
}

/// A figure, and what makes it grow.
struct Source<'a> {
    watch: Watch,
    of: fn(&Readings) -> Usage,
    take: &'a mut dyn FnMut(),
}

#[test]
fn memory_of_a_group_brakes_sheds_and_calms() {
    let one =
        || Group::new("memory", "/sys/fs/cgroup/memory", &[("memory.limit_in_bytes", MEMORY)]);
    let two = |_| Group::new("memory", "/sys/fs/cgroup", &[("memory.max", MEMORY)]);
    match one().or_else(two) {
        Ok(group) => group.run("memory_within_the_group"),
        Err(why) => println!("skipped: no memory control group can be made here: {why}"),
    }
}

#[test]
fn memory_within_the_group() {
    let Some(group) = enter() else { return };
    let mut watch = Watch::open();
    let first = watch.read().group_memory.expect("the group has a limit");
    assert_eq!(first.limit, MEMORY, "{}", group.display());
    assert!(first.used > 0 && first.used < MEMORY / 2, "{first:?}");
    let watched = Watched::start();
    let mut taken = Vec::new();
    // 256 KiB each: memory of its own for each, that is given back when it is freed.
    let mut take = || taken.push(vec![1_u8; 256 << 10]);
    let of = |readings: &Readings| readings.group_memory.unwrap();
    let mut source = Source { watch, of, take: &mut take };
    watched.fill(Pressure::Braking, Figure::GroupMemory, &mut source);
    let most = watched.fill(Pressure::Shedding, Figure::GroupMemory, &mut source);
    assert!(most.used > first.used + MEMORY / 2, "{first:?} {most:?}");
    drop(taken);
    watched.expect(Pressure::Braking, Some(Figure::GroupMemory));
    watched.expect(Pressure::Calm, None);
}

#[test]
fn tcp_memory_of_a_group_brakes_sheds_and_calms() {
    let limits = [("memory.kmem.tcp.limit_in_bytes", TCP)];
    match Group::new("tcp", "/sys/fs/cgroup/memory", &limits) {
        Ok(group) => group.run("tcp_memory_within_the_group"),
        Err(why) => println!("skipped: no group with a limit for TCP can be made here: {why}"),
    }
}

#[test]
fn tcp_memory_within_the_group() {
    let Some(group) = enter() else { return };
    let mut watch = Watch::open();
    let first = watch.read().group_tcp.expect("the group has a limit");
    assert_eq!(first, Usage { used: 0, limit: TCP, reclaimable: 0 }, "{}", group.display());
    let watched = Watched::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut pairs = Vec::new();
    // Each holds what it was sent, and reads nothing.
    let mut take = || {
        let mut client = TcpStream::connect(address).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_nonblocking(true).unwrap();
        // Past the limit the kernel takes less, or nothing.
        let _ = client.write(&[1; 8 << 10]);
        pairs.push((client, server));
    };
    let of = |readings: &Readings| readings.group_tcp.unwrap();
    let mut source = Source { watch, of, take: &mut take };
    watched.fill(Pressure::Braking, Figure::GroupTcp, &mut source);
    watched.fill(Pressure::Shedding, Figure::GroupTcp, &mut source);
    drop(pairs);
    watched.expect(Pressure::Braking, Some(Figure::GroupTcp));
    watched.expect(Pressure::Calm, None);
}
