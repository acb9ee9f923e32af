//! The behavioural suite: what every driver does, a test per behaviour.
//!
//! A driver's test module makes a [`World`] (the driver, its arena, and a network
//! with peers in it) and says `crate::driver::suite::suite!(MyWorld);`: that makes
//! a `#[test]` of every behaviour. The same tests run in real time against a real
//! kernel and in virtual time against the simulation, so nothing here sleeps or
//! blocks: a [`harness::Harness`] turns the driver until a predicate holds or a
//! generous deadline *of the driver's clock* has passed.
//!
//! Behaviours live in the files of `suite/`, by subject.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Driver, Fault};
use crate::buffer::Arena;

pub(in crate::driver) mod accepting;
pub(in crate::driver) mod closing;
pub(in crate::driver) mod connecting;
pub(in crate::driver) mod crowds;
pub(in crate::driver) mod harness;
pub(in crate::driver) mod receiving;
pub(in crate::driver) mod sending;
pub(in crate::driver) mod waiting;

/// What a test wants of its world.
#[derive(Debug, Clone, Copy)]
pub(in crate::driver) struct Plan {
    /// Slots `0..slots` exist in the driver.
    pub(in crate::driver) slots: u32,
    /// Blocks of the arena.
    pub(in crate::driver) blocks: u32,
    /// Bytes in a block, a whole number of pages.
    pub(in crate::driver) block_bytes: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { slots: 8, blocks: 16, block_bytes: 16 << 10 }
    }
}

/// The family of a loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver) enum Family {
    /// 127.0.0.1.
    V4,
    /// `::1`.
    V6,
}

/// A driver, its arena, and a network with peers.
///
/// Small submission and completion queues in the driver are welcome (some behaviours are
/// about their being full), e.g. 64 entries.
pub(in crate::driver) trait World: Sized {
    /// The driver under test.
    type D: Driver;
    /// The other end of a connection.
    type Peer: Peer;
    /// Where the driver's connects arrive.
    type PeerListener: PeerListener<Peer = Self::Peer>;

    /// A driver that does not listen yet, and its arena (all blocks free).
    fn new(plan: Plan) -> Self;

    /// Another driver with its own arena, in the same network: for sockets that one driver
    /// accepts and another adopts.
    fn beside(&mut self, plan: Plan) -> Self;

    /// The driver.
    fn driver(&mut self) -> &mut Self::D;

    /// The driver's arena.
    fn arena(&mut self) -> &mut Arena;

    /// Whether this machine has loopback addresses of the family.
    fn has(&mut self, family: Family) -> bool;

    /// Something for [`Driver::listen`] that listens already (bound to loopback, port chosen by
    /// the system), and its address. `backlog` as in `listen(2)`.
    fn listener(
        &mut self,
        family: Family,
        backlog: u32,
    ) -> (<Self::D as Driver>::Listener, SocketAddr);

    /// Begins to connect a peer; does not wait for the outcome.
    fn peer(&mut self, to: SocketAddr) -> Self::Peer;

    /// A listening peer on loopback.
    fn peer_listener(&mut self, family: Family) -> Self::PeerListener;

    /// A loopback address where nobody listens.
    fn nobody(&mut self, family: Family) -> SocketAddr;

    /// Wakes the driver after a while of the driver's clock, from outside: in the real world from
    /// another thread, started before this returns.
    fn wake_later(&mut self, after: Duration);

    /// Called when a test is over: all of the driver's connections are closed, all completions
    /// taken, provided blocks reclaimed. May assert what it knows about leaks.
    fn check_empty(&mut self) {}
}

/// The other end of a connection. Nothing blocks. Dropping it closes it, orderly.
pub(in crate::driver) trait Peer {
    /// `None` while connecting; then whether it is connected, or why it is not.
    fn connected(&mut self) -> Option<Result<(), Fault>>;

    /// Its own address.
    fn address(&self) -> SocketAddr;

    /// Writes as much as the kernel takes now; 0 when it takes nothing.
    ///
    /// # Errors
    ///
    /// [`Fault::Reset`] when the connection has been reset.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault>;

    /// Reads what is there now.
    fn read(&mut self, into: &mut [u8]) -> Heard;

    /// Ends its direction of the stream.
    fn shutdown_write(&mut self);

    /// Closes with a reset (linger 0).
    fn reset(self);
}

/// What a peer heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver) enum Heard {
    /// Nothing yet.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The end of the stream.
    End,
    /// A reset.
    Reset,
}

/// Where a driver's connects arrive. Dropping it closes it.
pub(in crate::driver) trait PeerListener {
    /// What it accepts.
    type Peer: Peer;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// The next connection and where it comes from; `None` when there is none now.
    fn accept(&mut self) -> Option<(Self::Peer, SocketAddr)>;
}

/// Every behaviour, handed to another macro: `each_behaviour!([then], World)` says
/// `then!(World; module::behaviour, …)`.
macro_rules! each_behaviour {
    ([$($then:tt)+], $world:ty) => {
        $($then)+! {
            $world;
            accepting::accept_into_a_slot_brings_the_peers_address,
            accepting::accept_works_on_ipv6,
            accepting::accepts_without_a_connection_wait,
            accepting::connections_beyond_the_backlog_wait,
            accepting::bytes_sent_before_the_accept_are_received,
            accepting::a_connection_reset_in_the_queue_is_not_brought,
            accepting::close_listener_cancels_accepts,
            accepting::close_listener_resets_the_queued,
            accepting::an_accept_without_a_listener_is_cancelled,
            accepting::an_adopted_socket_works,
            accepting::a_socket_is_adopted_by_another_driver,
            accepting::a_socket_that_nobody_adopts_is_closed,
            connecting::a_connected_slot_sends_and_receives,
            connecting::connect_works_on_ipv6,
            connecting::connect_refused,
            connecting::connect_from_a_chosen_source,
            connecting::a_connect_that_is_closed_completes_once,
            receiving::a_parked_slot_wakes_on_data,
            receiving::a_parked_slot_wakes_on_end_of_stream,
            receiving::a_parked_slot_wakes_on_reset,
            receiving::a_park_with_bytes_there_completes,
            receiving::receive_fills_from_start_offset,
            receiving::receive_takes_no_more_than_the_room,
            receiving::a_receive_at_once_is_there_after_the_next_wait,
            receiving::a_receive_of_the_end_is_zero,
            receiving::a_receive_in_flight_fails_on_reset,
            receiving::stop_ends_a_receive,
            receiving::stop_ends_a_park,
            receiving::a_stop_that_comes_too_late_is_nothing,
            receiving::stream_keeps_order_and_ends_when_blocks_run_out,
            receiving::a_stream_ends_with_the_connection,
            receiving::stop_ends_a_stream,
            receiving::streams_share_the_provided_blocks,
            receiving::unused_blocks_are_reclaimed,
            sending::a_send_is_delivered,
            sending::send_at_once_is_there_after_the_next_wait,
            sending::send_at_once_to_a_full_peer_would_block,
            sending::a_send_to_a_full_peer_waits_until_it_reads,
            sending::send_gathers_spans_in_order,
            sending::a_send_after_a_reset_fails,
            sending::half_close_lets_the_other_direction_live,
            sending::half_close_leaves_a_receive_in_flight,
            sending::a_peer_that_half_closed_still_hears,
            sending::a_large_exchange_keeps_every_byte,
            closing::close_delivers_what_was_sent,
            closing::close_delivers_to_a_slow_reader,
            closing::abort_resets_the_peer,
            closing::abort_resets_a_peer_that_does_not_read,
            closing::close_after_the_peers_reset_completes,
            closing::close_with_unread_bytes_completes,
            closing::close_with_a_park_in_flight_completes_each_once,
            closing::close_with_a_receive_in_flight_completes_each_once,
            closing::close_with_a_stream_in_flight_completes_each_once,
            closing::close_with_a_send_in_flight_completes_each_once,
            closing::close_with_everything_in_flight_completes_each_once,
            closing::posted_and_closed_in_one_breath_completes_each_once,
            waiting::wait_until_a_deadline_returns,
            waiting::wait_in_the_past_does_not_block,
            waiting::the_clock_goes_forward,
            waiting::a_wake_ends_a_wait,
            waiting::a_wake_ends_a_wait_for_ever,
            waiting::a_wake_before_the_wait_ends_it,
            waiting::many_wakes_are_one,
            waiting::a_waker_outlives_its_driver,
            crowds::every_intent_on_hundreds_of_slots_at_once,
            crowds::more_completions_than_capacity,
            crowds::slots_are_reusable_after_close_completes,
            crowds::leases_all_come_back,
            crowds::more_sockets_than_slots_are_handed_over,
        }
    };
}
pub(in crate::driver) use each_behaviour;

/// A `#[test]` of every behaviour, for the [`World`] named.
macro_rules! suite {
    ($world:ty) => {
        $crate::driver::suite::each_behaviour!([$crate::driver::suite::tests_of], $world);
    };
}
pub(in crate::driver) use suite;

/// What [`suite`] makes of the list.
macro_rules! tests_of {
    ($world:ty; $($module:ident :: $behaviour:ident,)*) => {
        $(
            #[test]
            fn $behaviour() {
                $crate::driver::suite::$module::$behaviour::<$world>();
            }
        )*
    };
}
pub(in crate::driver) use tests_of;

/// Every behaviour by name, for a world that wants to run them in its own way (many seeds).
pub(in crate::driver) fn all<W: World>() -> Vec<(&'static str, fn())> {
    macro_rules! named {
        ($w:ty; $($module:ident :: $behaviour:ident,)*) => {
            vec![$((stringify!($behaviour), $module::$behaviour::<$w> as fn()),)*]
        };
    }
    each_behaviour!([named], W)
}
