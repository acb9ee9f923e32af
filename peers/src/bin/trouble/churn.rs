//! Connections that come and go as fast as they can.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll_kernel::process::descriptors;
use plimsoll_peers::sys;

use crate::reading::Reading;
use crate::server::Server;
use crate::{Options, Result, size};

/// Who opens: more than there are processors, so that none of them sleeps.
const OPENERS: usize = 8;
/// One in so many closes in order, and leaves a TIME_WAIT; the others reset, which leaves the port
/// free. All of them in order would use up the ports within a second.
const ORDERLY: u64 = 256;

pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds = options.seconds.unwrap_or(if options.full { 120 } else { 10 });
    println!("churn: connect, one message there and back, close; for {seconds} s");
    let server = Server::start(options, &["--max-connections", "1000"], None)?;
    let stop = AtomicBool::new(false);
    let cycles = AtomicU64::new(0);
    let at = server.address;
    std::thread::scope(|scope| {
        let openers: Vec<_> =
            (0..OPENERS).map(|_| scope.spawn(|| open_and_close(at, &cycles, &stop))).collect();
        let watched = watch(&server, &cycles, seconds);
        stop.store(true, Ordering::Relaxed);
        for opener in openers {
            opener.join().expect("an opener does not panic")?;
        }
        watched
    })?;
    server.await_sessions(0, Duration::from_secs(20))?;
    let figures = server.figures()?;
    let end = Reading::take(&server)?;
    println!(
        "  after it: server {}, {} descriptors, {} sockets, {} sessions, {} blocks in use, {} accept errors; ended: {}",
        size(end.rss),
        descriptors(server.pid())?,
        end.sockets,
        figures.of("sessions"),
        figures.of("blocks"),
        figures.of("accept_errors"),
        figures.ended()
    );
    println!("  asked to end: {}", server.end()?);
    Ok(())
}

/// Ten lines over the time. The first tenth warms up.
fn watch(server: &Server, cycles: &AtomicU64, seconds: u64) -> Result<()> {
    println!(
        "  {:>6}  {:>10}  {:>9}  {:>10}  {:>11}  {:>7}",
        "s", "cycles", "a second", "server", "descriptors", "orphans"
    );
    let begun = Instant::now();
    let mut last = 0;
    for tenth in 1..=10_u32 {
        let due = Duration::from_secs(seconds) * tenth / 10;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let now = cycles.load(Ordering::Relaxed);
        let reading = Reading::take(server)?;
        println!(
            "  {:>6.1}  {now:>10}  {:>9.0}  {:>10}  {:>11}  {:>7}",
            begun.elapsed().as_secs_f64(),
            (now - last) as f64 * 10.0 / seconds as f64,
            size(reading.rss),
            descriptors(server.pid())?,
            reading.orphans
        );
        last = now;
    }
    Ok(())
}

fn open_and_close(
    server: SocketAddrV4,
    cycles: &AtomicU64,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let message = [b'c'; 64];
    let mut back = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(server)?;
        stream.write_all(&message)?;
        stream.read_exact(&mut back)?;
        if !cycles.fetch_add(1, Ordering::Relaxed).is_multiple_of(ORDERLY) {
            sys::set_reset_on_close(&stream)?;
        }
    }
    Ok(())
}
