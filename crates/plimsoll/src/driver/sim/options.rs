//! What a simulation is like.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::random::Random;
use super::system::SimSystem;

/// What a simulation is like: its seed, its network, and how far its kernel goes to be awkward.
///
/// Start from [`calm`](Self::calm), [`rough`](Self::rough) or [`stormy`](Self::stormy), and change
/// what the test is about.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct SimOptions {
    /// Where all chance comes from: two runs with equal options and equal calls are equal.
    pub seed: u64,
    /// How long anything takes from one end of a connection to the other, drawn for each segment.
    pub latency: RangeInclusive<Duration>,
    /// How many bytes arrive at once, drawn for each segment. At least 1.
    pub segment_bytes: RangeInclusive<u32>,
    /// Bytes that an end holds which are sent and have not arrived.
    pub send_buffer_bytes: u32,
    /// Bytes that an end holds which have arrived and were not read.
    pub receive_buffer_bytes: u32,
    /// The machine's limits: Linux' by default.
    pub system: SimSystem,
    /// Sends and receives that take or bring fewer bytes than they could, per million.
    pub short_per_million: u32,
    /// Completions that are told late, and so in another order, per million.
    pub late_per_million: u32,
    /// How late at most.
    pub lateness: Duration,
    /// Whether the drivers have [streams](crate::driver::Driver::stream).
    pub streams: bool,
    /// Streams that end with a completion for no reason, per million completions.
    pub stream_end_per_million: u32,
    /// Operations that fail, per million, each with one of the failures that
    /// [`POSSIBLE`](super::POSSIBLE) lists for it.
    pub fault_per_million: u32,
    /// Completions that come a second time, once their slot stands for another session or for
    /// none, per million: what no driver should do, and every engine must bear (rule 3). Those of
    /// hand-overs may bring a connection from the backlog, which is to be discarded. For engines
    /// only: whoever drives the driver by hand should not ask for it.
    pub stale_per_million: u32,
    /// What the clock advances by in each wait, at least: no loop is free.
    pub wait_cost: Duration,
    /// Whether the clock is moved by [`SimKernel::advance`](super::SimKernel::advance) only,
    /// beside the [cost of waits](Self::wait_cost): for several drivers on one kernel. Otherwise a
    /// wait with nothing to give moves it to what comes next.
    pub held_clock: bool,
    /// Whether bytes being sent are compared with what they were when the send was posted.
    pub watch_sends: bool,
    /// Whether [`SimKernel::trace`](super::SimKernel::trace) keeps each completion.
    pub record: bool,
}

impl SimOptions {
    /// An even network and a kernel that does what it can at once: nothing fails, nothing is late.
    /// Buffers as Linux gives them to a new connection (16 KiB to send, 128 KiB to receive).
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            latency: Duration::from_micros(20)..=Duration::from_micros(20),
            segment_bytes: 65_483..=65_483,
            send_buffer_bytes: 16 << 10,
            receive_buffer_bytes: 128 << 10,
            system: SimSystem::linux(),
            short_per_million: 0,
            late_per_million: 0,
            lateness: Duration::ZERO,
            streams: true,
            stream_end_per_million: 0,
            fault_per_million: 0,
            stale_per_million: 0,
            wait_cost: Duration::from_micros(1),
            held_clock: false,
            watch_sends: true,
            record: false,
        }
    }

    /// Everything that may differ without a failure does, as the seed has it: latencies, segments,
    /// buffers, short sends and receives, completions late and in any order, streams that end.
    pub fn rough(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_0f0f);
        let mut micros = |most: u64| Duration::from_micros(random.within(1, most));
        let latency = Duration::ZERO..=micros(2_000);
        let lateness = micros(500);
        let mut per_million = |most: u64| random.within(0, most) as u32;
        let (short, late, ends) =
            (per_million(500_000), per_million(500_000), per_million(200_000));
        Self {
            latency,
            lateness,
            short_per_million: short,
            late_per_million: late,
            stream_end_per_million: ends,
            segment_bytes: 1..=1 << random.within(8, 16),
            send_buffer_bytes: 1 << random.within(12, 17),
            receive_buffer_bytes: 1 << random.within(12, 17),
            streams: random.chance(750_000),
            ..Self::calm(seed)
        }
    }

    /// As [`rough`](Self::rough), and operations fail: between none and 5 % of them.
    pub fn stormy(seed: u64) -> Self {
        let fault_per_million = Random::new(seed ^ 0x0057_0243).within(0, 50_000) as u32;
        Self { fault_per_million, ..Self::rough(seed) }
    }
}
