//! One peer that sends without end, and takes all that comes back.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use plimsoll_peers::sys;

use crate::good::{Good, Pairs};
use crate::server::Server;
use crate::{Options, Result, size};

/// All peers, the one that floods included.
const PEERS: usize = 100;
/// What it sends, at most, after each answer that another has got.
const PART: usize = 64 << 10;

pub(crate) fn run(options: &Options) -> Result<()> {
    let (pairs, length) =
        if options.full { (15, Duration::from_secs(1)) } else { (8, Duration::from_millis(500)) };
    let cpus = sys::allowed_cpus()?;
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    for profile in ["connections", "throughput"] {
        println!("flood: one of {PEERS} peers sends without end, profile {profile}");
        let limits = ["--max-connections", "200", "--shards", "1", "--profile", profile];
        let server = Server::start(options, &limits, Some(first))?;
        sys::pin(last)?;
        let mut good = Good::connect(&server, PEERS - 1)?;
        let mut results = Pairs::new(options.foreign);
        good.slice(length, || Ok(()))?;
        let (mut bytes, mut loaded) = (0, 0.0);
        while !results.are(pairs) {
            let without = good.slice(length, || Ok(()))?;
            let mut flood = Flood::connect(&server)?;
            // Full pipes first.
            good.slice(Duration::from_millis(100), || flood.pump())?;
            flood.back = 0;
            let with = good.slice(length, || flood.pump())?;
            bytes += flood.back;
            loaded += length.as_secs_f64();
            drop(flood);
            server.await_sessions(PEERS as u64 - 1, Duration::from_secs(20))?;
            results.push(without, with);
        }
        results.print(2.0);
        let rate = bytes as f64 / loaded;
        println!("  {} a second came back to the one that floods", size(rate as i64));
        drop(good);
        server.end()?;
    }
    Ok(())
}

struct Flood {
    socket: OwnedFd,
    part: Vec<u8>,
    away: Vec<u8>,
    /// Bytes that came back.
    back: usize,
}

impl Flood {
    fn connect(server: &Server) -> Result<Self> {
        let socket = sys::connect_from(Ipv4Addr::LOCALHOST, server.address)?;
        sys::set_reset_on_close(&socket)?;
        Ok(Self { socket, part: vec![3; PART], away: vec![0; 2 * PART], back: 0 })
    }

    /// Takes what has come back, and sends what the kernel takes.
    fn pump(&mut self) -> Result<()> {
        let socket = self.socket.as_raw_fd();
        match sys::recv(socket, &mut self.away) {
            Ok(0) => return Err("the server has closed the one that floods".into()),
            Ok(count) => self.back += count,
            Err(_) => {}
        }
        // Full, or not connected yet: the next time.
        let _ = sys::send(socket, &self.part);
        Ok(())
    }
}
