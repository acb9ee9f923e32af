//! Well-behaved clients, and how long they wait.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use plimsoll_peers::sys;

use crate::Result;
use crate::server::Server;

/// Bytes of a message.
const MESSAGE: usize = 64;
/// A reply that takes longer is an error, not a figure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clients that ask in turn, each when the one before has its answer. They spin: nobody has to be
/// woken to take the time.
pub(crate) struct Good {
    sockets: Vec<OwnedFd>,
    next: usize,
    server: u32,
}

/// What one slice found.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
    pub(crate) count: usize,
    /// How long the server and we had to wait for a processor, as a share of the slice.
    foreign: f64,
}

impl Good {
    pub(crate) fn connect(server: &Server, count: usize) -> Result<Self> {
        let mut sockets = Vec::new();
        for _ in 0..count {
            sockets.push(sys::connect_from(Ipv4Addr::LOCALHOST, server.address)?);
        }
        let mut good = Self { sockets, next: 0, server: server.pid() };
        for _ in 0..count {
            good.ask()?;
        }
        Ok(good)
    }

    /// One message there and back, of the next client.
    pub(crate) fn ask(&mut self) -> Result<Duration> {
        let socket = self.sockets[self.next].as_raw_fd();
        self.next = (self.next + 1) % self.sockets.len();
        let begun = Instant::now();
        let mut sent = 0;
        let mut back = 0;
        let mut buffer = [0; MESSAGE];
        while back < MESSAGE {
            if sent < MESSAGE {
                sent += none_yet(sys::send(socket, &[b'g'; MESSAGE][sent..]))?;
            }
            let count = sys::recv(socket, &mut buffer[back..]);
            if matches!(count, Ok(0)) {
                return Err("the server has closed a client that behaves".into());
            }
            back += none_yet(count)?;
            if begun.elapsed() > PATIENCE {
                return Err(format!("no answer within {PATIENCE:?}").into());
            }
        }
        Ok(begun.elapsed())
    }

    /// Asks for as long as a slice is, and does something else after each answer.
    pub(crate) fn slice(
        &mut self,
        length: Duration,
        mut beside: impl FnMut() -> Result<()>,
    ) -> Result<Slice> {
        let mut times = Vec::with_capacity(1 << 16);
        let waited = waited(self.server)?;
        let begun = Instant::now();
        while begun.elapsed() < length {
            times.push(self.ask()?);
            beside()?;
        }
        let waited = self::waited(self.server)?.saturating_sub(waited);
        let foreign = waited.as_secs_f64() / begun.elapsed().as_secs_f64();
        times.sort_unstable();
        Ok(Slice { median: at(&times, 0.5), p99: at(&times, 0.99), count: times.len(), foreign })
    }
}

/// How long our thread and the server's shards were ready to run and did not
/// (Documentation/scheduler/sched-stats.rst). What else the server has waits for the shards.
fn waited(server: u32) -> Result<Duration> {
    let of = |path: PathBuf| -> Result<Duration> {
        let text = std::fs::read_to_string(path.join("schedstat"))?;
        let nanos = text.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
        Ok(Duration::from_nanos(nanos.ok_or("schedstat is not as it is documented")?))
    };
    let mut sum = of("/proc/thread-self".into())?;
    for thread in std::fs::read_dir(format!("/proc/{server}/task"))? {
        let thread = thread?.path();
        if std::fs::read_to_string(thread.join("comm"))?.starts_with("shard") {
            sum += of(thread)?;
        }
    }
    Ok(sum)
}

/// The place in sorted figures below which this share of them lies.
pub(crate) fn at<T: Copy>(sorted: &[T], share: f64) -> T {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Nothing is there yet: no bytes, and no error.
fn none_yet(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        // Not connected yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(0),
        other => other,
    }
}

/// Slices without and with the trouble, and the ratios between them. Pairs are dropped in which the
/// server or we had to wait for a processor for more than a share of a slice: others ran there.
pub(crate) struct Pairs {
    most_foreign: f64,
    kept: Vec<(Slice, Slice)>,
    dropped: Vec<(Slice, Slice)>,
}

impl Pairs {
    /// None yet; `foreign` is the share in percent.
    pub(crate) fn new(foreign: f64) -> Self {
        Self { most_foreign: foreign / 100.0, kept: Vec::new(), dropped: Vec::new() }
    }

    /// Whether there are so many, or as many again were dropped.
    pub(crate) fn are(&self, count: usize) -> bool {
        self.kept.len() >= count || self.dropped.len() >= count
    }

    pub(crate) fn push(&mut self, without: Slice, with: Slice) {
        let quiet = without.foreign.max(with.foreign) <= self.most_foreign;
        if quiet { &mut self.kept } else { &mut self.dropped }.push((without, with));
    }

    /// The table's lines: medians over the slices, and the quartiles of the ratios.
    pub(crate) fn print(&self, target: f64) {
        let few = self.kept.len() < 3;
        let pairs = if few { &self.dropped } else { &self.kept };
        if pairs.is_empty() {
            return println!("  no pairs of slices");
        }
        for (name, of) in [
            ("median", (|slice| slice.median) as fn(Slice) -> Duration),
            ("99 %", |slice| slice.p99),
        ] {
            let mut ratios: Vec<f64> = pairs
                .iter()
                .map(|&(without, with)| of(with).as_secs_f64() / of(without).as_secs_f64())
                .collect();
            ratios.sort_by(f64::total_cmp);
            let middle = |with: bool| {
                let mut all: Vec<_> = pairs
                    .iter()
                    .map(|&(quiet, loud)| of(if with { loud } else { quiet }))
                    .collect();
                all.sort();
                at(&all, 0.5)
            };
            let bound =
                if name == "99 %" { format!("  (at most {target})") } else { String::new() };
            println!(
                "  {name:<7} {:>9.1?} without, {:>9.1?} with: ratio {:.2}, quartiles {:.2} to {:.2}{bound}",
                middle(false),
                middle(true),
                at(&ratios, 0.5),
                at(&ratios, 0.25),
                at(&ratios, 0.75),
            );
        }
        let asked: usize = pairs.iter().map(|(without, with)| without.count + with.count).sum();
        let mut foreign: Vec<f64> =
            pairs.iter().map(|(without, with)| without.foreign.max(with.foreign)).collect();
        foreign.sort_by(f64::total_cmp);
        let (kept, dropped) = (self.kept.len(), self.dropped.len());
        println!(
            "  {kept} pairs of slices kept, {dropped} dropped since others ran{}; {asked} messages; \
             others had {:.1} % of our time",
            if few { " (shown all the same)" } else { "" },
            at(&foreign, 0.5) * 100.0
        );
    }
}
