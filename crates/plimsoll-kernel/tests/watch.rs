//! What a reading of the watch costs: no allocation, and some microseconds.
//!
//! A program of its own, since it counts what all of the process allocates.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll_kernel::watch::Watch;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: each call is handed on to the system's allocator as it is, which upholds the contract; the
// counter beside it touches no memory of the caller's. `realloc` and `alloc_zeroed` are the trait's
// own, and come through here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds what `alloc` asks of a layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller had the pointer from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const READINGS: u32 = 200;

/// The only test of this program: the harness' other threads allocate while tests begin and end.
#[test]
fn a_reading_allocates_nothing() {
    let mut watch = Watch::open();
    let mut fewest = u64::MAX;
    let mut least = Duration::MAX;
    // The harness may allocate on its own thread meanwhile: one clean round proves it.
    for _ in 0..10 {
        let (before, start) = (ALLOCATIONS.load(Ordering::Relaxed), Instant::now());
        for _ in 0..READINGS {
            std::hint::black_box(watch.read());
        }
        least = least.min(start.elapsed() / READINGS);
        fewest = fewest.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    println!("{} µs a reading: {}", least.as_nanos() as f64 / 1e3, watch.sources());
    assert_eq!(fewest, 0);
}
