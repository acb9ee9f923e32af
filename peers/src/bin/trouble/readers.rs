//! Peers that send and never read.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use plimsoll_peers::sys;

use crate::good::Good;
use crate::reading::Reading;
use crate::server::Server;
use crate::{Options, Result, size};

/// `SO_SNDBUF` and `SO_RCVBUF` of the server's ends.
const KERNEL: i64 = 16 << 10;
/// What the kernel makes of it: it doubles what it is asked for, since it counts bytes with the
/// memory around them, and takes one piece more when it is nearly full.
const KERNEL_CAP: i64 = 2 * KERNEL + (32 << 10);
/// The high mark of an outbox, a block that passed it, and a block received and held beside.
const SESSION_CAP: i64 = (64 << 10) + 2 * (16 << 10);
/// All blocks of both shards.
const ARENAS: i64 = 2 * (64 << 20);
/// A socket with its inode, file and names; and what waits for it in the ring (Linux 6.18).
const SOCKET: i64 = 3_640 + 256;
/// Slots, tables and code that a server touches first when it has work.
const FIRST_USE: i64 = 4 << 20;
/// A slot of the engine, its driver and its ring.
const SLOT: i64 = 512;

pub(crate) fn run(options: &Options) -> Result<()> {
    println!(
        "readers: peers that send and never read; 16 KiB of kernel buffers asked for each way"
    );
    println!(
        "  {:>6}  {:>21}  {:>21}  {:>21}  {:>10}  {:>22}",
        "peers",
        "server (cap)",
        "send queues (cap)",
        "receive queues (cap)",
        "sockets",
        "all / sum of the caps"
    );
    let counts: &[usize] = if options.full { &[10, 1_000, 10_000] } else { &[10, 1_000] };
    counts.iter().try_for_each(|&count| one(options, count))
}

fn one(options: &Options, count: usize) -> Result<()> {
    let _narrow = Narrow::new()?;
    let limits = [
        "--max-connections",
        "12000",
        "--shards",
        "2",
        "--kernel-send",
        "16KiB",
        "--kernel-receive",
        "16KiB",
        "--drain-rate",
        "10000",
    ];
    let server = Server::start(options, &limits, None)?;
    Good::connect(&server, 2)?;
    server.await_sessions(0, Duration::from_secs(10))?;
    let before = Reading::take(&server)?;
    let peers = connect(server.address, count)?;
    let sent = push_all(&peers);
    let growth = Reading::take(&server)?.since(&before);
    let n = count as i64;
    let user_cap = (n * SESSION_CAP).min(ARENAS) + n * SLOT + FIRST_USE;
    let caps = user_cap + n * (2 * KERNEL_CAP + SOCKET);
    let all = growth.rss + growth.send + growth.receive + n * SOCKET;
    println!(
        "  {count:>6}  {:>21}  {:>21}  {:>21}  {:>10}  {:>22}",
        format!("{} ({})", size(growth.rss), size(user_cap)),
        format!("{} ({})", size(growth.send), size(n * KERNEL_CAP)),
        format!("{} ({})", size(growth.receive), size(n * KERNEL_CAP)),
        growth.sockets,
        format!("{} / {} = {:.2}", size(all), size(caps), all as f64 / caps as f64),
    );
    println!(
        "          sent {}; both ends: {} of buffers booked, {} of slabs",
        size(sent),
        size(growth.tcp_pages),
        size(growth.slab)
    );
    // They stay, and still do not read: the server is rid of them by its own rule.
    let took = server.await_sessions(0, Duration::from_secs(60))?;
    let figures = server.figures()?;
    let left = Reading::take(&server)?.since(&before);
    println!(
        "          all ended {took:.1?} later: {}; left: {} sockets, {} orphans, {} in queues, \
         {} blocks in use, server {}",
        figures.ended(),
        left.sockets,
        left.orphans,
        size(left.send + left.receive),
        figures.of("blocks"),
        size(left.rss)
    );
    drop(peers);
    Good::connect(&server, 10)?;
    server.end()?;
    Ok(())
}

/// Connects, and gives the server time to accept.
fn connect(server: SocketAddrV4, count: usize) -> Result<Vec<OwnedFd>> {
    let mut peers = Vec::new();
    for number in 0..count {
        peers.push(sys::connect_from(Ipv4Addr::LOCALHOST, server)?);
        if number % 256 == 255 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(peers)
}

/// Sends until the server has taken nothing from anybody for half a second. Returns the bytes.
fn push_all(peers: &[OwnedFd]) -> i64 {
    let part = [7; 16 << 10];
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 5 {
        let before = sent;
        for peer in peers {
            while let Ok(count) = sys::send(peer.as_raw_fd(), &part) {
                sent += count as i64;
            }
        }
        quiet = if sent == before { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(100));
    }
    sent
}

/// While it lives, our own ends keep little: it is the server's that are looked at, and thousands
/// of ours would fill the machine.
struct Narrow(Vec<(&'static str, String)>);

impl Narrow {
    /// Changes settings of our namespace. Elsewhere they are everybody's: an error.
    fn new() -> Result<Self> {
        if std::env::var_os(crate::INSIDE).is_none() {
            return Err(
                "readers: small buffers need a network namespace, and that needs root".into()
            );
        }
        let mut before = Vec::new();
        for (path, value) in [
            ("/proc/sys/net/ipv4/tcp_rmem", "4096 8192 8192"),
            ("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 16384"),
        ] {
            before.push((path, std::fs::read_to_string(path)?));
            std::fs::write(path, value)?;
        }
        Ok(Self(before))
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            // The namespace ends with us in any case.
            let _ = std::fs::write(path, value);
        }
    }
}
