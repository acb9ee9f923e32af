//! Peers that do not read, or hardly.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plimsoll::{DRAIN_WINDOW, Profile, Reason};

use super::test_server::{PATIENCE, TestServer, all_ways, answers, push_all, reset, small};
use crate::common::{Way, each_way};

/// What so many sessions may hold in blocks: up to their outboxes' high marks and the blocks that
/// passed them; a stream of `io_uring` brings in one turn what it finds there, up to all the blocks
/// that are lent to it, and so the arena bounds it.
fn most_held(way: Way, sessions: u64) -> u64 {
    let limits = small();
    match way.1 {
        Profile::Connections => {
            sessions * (u64::from(limits.outbox_high) + 2 * limits.block_bytes as u64)
        }
        Profile::Throughput => limits.buffer_bytes as u64,
    }
}

/// Kernel memory of the server's ends, in bytes: send queues and receive queues, with what their
/// buffers cost around the bytes; and how many sockets there are, orphans included.
#[cfg(target_os = "linux")]
fn kernel_memory(server: &TestServer) -> (u64, u64, u32) {
    use plimsoll_kernel::diag::{Filter, State, connections};

    let (mut sent, mut received, mut sockets) = (0, 0, 0);
    let filter = Filter::local(server.address.port()).with_memory();
    connections(&filter, |one| {
        if one.state != State::Listen && one.state != State::TimeWait {
            sockets += 1;
            let memory = one.memory.as_ref().expect("asked for");
            sent += u64::from(memory.wmem_queued);
            received += u64::from(memory.rmem);
        }
    })
    .unwrap();
    (sent, received, sockets)
}

/// The kernel doubles what it is asked for, since it counts bytes with the memory around them, and
/// takes one piece more when it is nearly full (seen: 32 KiB of 16).
#[cfg(target_os = "linux")]
fn assert_kernel_is_bounded(server: &TestServer, sessions: u64) {
    const MOST: u64 = 2 * (16 << 10) + (32 << 10);
    let (sent, received, sockets) = kernel_memory(server);
    println!("{sent} bytes of send buffers, {received} of receive buffers, {sockets} sockets");
    assert!(sent > 0 && sent <= sessions * MOST, "{sent}");
    assert!(received <= sessions * MOST, "{received}");
}

#[cfg(not(target_os = "linux"))]
fn assert_kernel_is_bounded(_: &TestServer, _: u64) {}

/// After an abort nothing is left in the kernel, whatever the peer never read.
#[cfg(target_os = "linux")]
fn assert_kernel_let_go(server: &TestServer, sockets: u32) {
    super::test_server::eventually("the kernel has let go", || kernel_memory(server).2 == sockets);
}

#[cfg(not(target_os = "linux"))]
fn assert_kernel_let_go(_: &TestServer, _: u32) {}

#[test]
fn who_does_not_read_is_stopped_and_then_aborted_for_its_rate() {
    all_ways(|way| {
        let mut limits = small();
        limits.drain_rate = Some(20_000);
        let server = TestServer::echo(way, limits);
        let mut good = server.connect();
        assert!(answers(&mut good));
        let mut never = server.connect_narrow();
        let mut slow = server.connect_narrow();
        let begun = Instant::now();
        assert!(push_all(&mut never) > 0 && push_all(&mut slow) > 0);
        let metrics = server.metrics();
        let held = metrics.received_bytes - metrics.sent_bytes;
        println!("{held} bytes held for two");
        assert!(held > 0 && held <= most_held(way, 2), "{held}");
        assert!(metrics.over_high >= 2);
        assert_kernel_is_bounded(&server, 2);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reading = std::thread::spawn(move || {
            // What had reached its kernel before the end stays there to be read.
            while !stopped.load(Ordering::Relaxed) {
                let _ = slow.read(&mut [0]);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        assert_eq!(server.ends(), Reason::SlowReader);
        assert!(begun.elapsed() >= DRAIN_WINDOW);
        assert_eq!(server.ends(), Reason::SlowReader);
        println!("both aborted after {:?}", begun.elapsed());
        assert!(answers(&mut good), "who reads is served");
        assert_kernel_let_go(&server, 1);
        drop(never);
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
        server.finish();
    });
}

#[test]
fn who_reads_hardly_is_not_idle() {
    all_ways(|way| {
        let mut limits = small();
        limits.idle_timeout = Some(Duration::from_secs(3));
        let server = TestServer::echo(way, limits);
        let mut never = server.connect_narrow();
        let mut slow = server.connect_narrow();
        assert!(push_all(&mut never) > 0);
        let taken = push_all(&mut slow);
        let stop = Instant::now() + Duration::from_secs(5);
        // Some 80 KB/s: a send of 64 KiB, of which Windows tells nothing until it is over, takes a
        // third of the idle time.
        let mut read = 0;
        while Instant::now() < stop {
            read += slow.read(&mut [0; 2048]).unwrap();
            std::thread::sleep(Duration::from_millis(25));
            if read + (16 << 10) > taken {
                break;
            }
        }
        assert_eq!(server.ends(), Reason::IdleTimeout, "nothing moved for who never reads");
        assert_eq!(server.has_ended(), None, "and something did for who hardly does");
        reset(never);
        assert_eq!(slow.shutdown(Shutdown::Write).ok(), Some(()));
        let rest = super::test_server::read_away(&mut slow).expect("an end");
        assert_eq!(read + rest.len(), taken);
        assert_eq!(server.ends(), Reason::PeerEnded);
        server.finish();
    });
}

#[test]
fn who_does_not_read_what_is_pushed_to_it_meets_the_hard_mark() {
    each_way(|way| {
        const PART: usize = 4096;
        let mut limits = small();
        (limits.outbox_low, limits.outbox_high, limits.outbox_hard) =
            (16 << 10, 32 << 10, 64 << 10);
        let server = TestServer::echo(way, limits);
        let (mut reader, mut never) = (server.connect(), server.connect_narrow());
        assert!(answers(&mut reader) && answers(&mut never));
        let remote = server.running.remote();
        let part: Arc<[u8]> = vec![9; PART].into();
        let begun = Instant::now();
        let mut pushed = 0;
        let reason = loop {
            remote.broadcast(part.clone()).unwrap();
            pushed += PART;
            let mut back = [0; PART];
            reader.read_exact(&mut back).unwrap();
            assert!(back.iter().all(|&byte| byte == 9));
            if let Some(reason) = server.has_ended() {
                break reason;
            }
            assert!(begun.elapsed() < PATIENCE && pushed < 16 << 20, "{pushed} bytes pushed");
        };
        println!("aborted when {pushed} bytes had been pushed to it");
        assert_eq!(reason, Reason::OutboxHard);
        assert!(pushed > 64 << 10);
        assert_kernel_let_go(&server, 1);
        assert!(answers(&mut reader), "who reads gets everything, and is served");
        drop_after_reading(never);
        server.finish();
    });
}

/// What had reached the peer's kernel before the reset is its own.
fn drop_after_reading(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
    assert!(stream.write_all(b"x").is_err() || stream.read(&mut bytes).is_err());
}
