//! Nothing is allocated on the path of messages and of accept and close, once a server is warm:
//! counted by the allocator, on the shards' threads.
#![allow(unsafe_code, reason = "an allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll::{Context, Handler, Limits, Running, Server, ShardContext};

thread_local! {
    /// Whether this thread is a shard's.
    static SHARD: Cell<bool> = const { Cell::new(false) };
}
static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    if COUNTING.load(Ordering::Relaxed) && SHARD.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `System` as it came, which keeps the contract; counting touches an
// atomic and a thread-local without a destructor, and so neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Echo;

impl Handler for Echo {
    type State = u64;

    fn on_start(&mut self, _: &mut ShardContext<'_, u64>) {
        SHARD.set(true);
    }

    fn on_receive(&mut self, cx: &mut Context<'_, u64>, bytes: &[u8]) -> usize {
        *cx.state() += 1;
        // Half from where they are, half copied.
        let half = bytes.len() / 2;
        cx.send(&bytes[..half]);
        let copy: [u8; 64] = std::array::from_fn(|at| *bytes.get(half + at).unwrap_or(&0));
        cx.send(&copy[..(bytes.len() - half).min(64)]);
        cx.set_timer(Duration::from_secs(10));
        bytes.len()
    }
}

fn exchange(stream: &mut TcpStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    stream.write_all(bytes).unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Connections that stay and talk, and others that come, say something and leave.
fn drive(running: &Running, address: SocketAddr) {
    let mut stay: Vec<_> = (0..20).map(|_| connect(address)).collect();
    for round in 0..20 {
        for stream in &mut stay {
            exchange(stream, &[round; 100]);
        }
        for _ in 0..5 {
            exchange(&mut connect(address), b"hello");
        }
    }
    drop(stay);
    let deadline = Instant::now() + Duration::from_secs(20);
    while running.metrics().sessions > 0 {
        assert!(Instant::now() < deadline, "sessions are left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One test, since the count is the whole program's.
#[test]
fn a_warm_server_allocates_nothing() {
    common::each_way(|(driver, profile)| {
        let mut limits = Limits::default();
        limits.max_connections = 64;
        limits.buffer_bytes = 4 << 20;
        limits.max_per_peer = Some(64);
        limits.service_set = Some(18);
        limits.service_time = Duration::from_millis(2);
        limits.idle_timeout = Some(Duration::from_secs(60));
        limits.drain_rate = Some(1);
        let server =
            Server::builder().listen("127.0.0.1:0").shards(2).driver(driver).profile(profile);
        let running = server.limits(limits).start(|_| Echo).unwrap();
        let address = running.local_addr().unwrap();
        drive(&running, address);
        COUNTING.store(true, Ordering::SeqCst);
        drive(&running, address);
        COUNTING.store(false, Ordering::SeqCst);
        let allocated = ALLOCATIONS.load(Ordering::SeqCst);
        assert_eq!(
            allocated, 0,
            "{profile:?}: on the shards' threads, in 600 messages and 120 connections"
        );
        running.audit(Duration::from_secs(10)).unwrap();
        running.drain(Duration::from_secs(10)).unwrap();
    });
}
