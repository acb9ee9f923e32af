//! Completions of sessions that have gone, at every point of the life of the one that has their
//! slot: none reaches a handler, each is counted, and its block comes home.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::plan::Plan;
use super::ship::Ship;
use crate::acceptor::ledger::Ledger;
use crate::budget::Limits;
use crate::buffer::Arena;
use crate::deadline::Deadline;
use crate::driver::sim::{SimDriver, SimKernel, SimOptions, SimPeer, SimRead, SimSystem};
use crate::driver::{Completion, Driver, Failure, Fault, Kind, Nanos, Token};
use crate::handler::{Context, Handler};
use crate::mailbox::{HandOver, Mailbox};
use crate::reason::Reason;
use crate::session::life::{Life, Reading, Writing};
use crate::shard::{Link, Parts, Profile, Shard};

/// What the handler was called with.
pub(super) type Calls = Rc<RefCell<Vec<&'static str>>>;

/// Sends a lot for each byte, so that its outbox is blocked when the peer does not read; closes at
/// an `x`, aborts at a `y`, holds what it has at a `z`.
pub(super) struct Told(Calls);

/// Several blocks, and more than all buffers on the way to a peer hold.
static MUCH: [u8; 30_000] = [1; 30_000];

impl Handler for Told {
    type State = u32;

    fn on_connect(&mut self, _: &mut Context<'_, u32>) -> bool {
        self.0.borrow_mut().push("connect");
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, u32>, bytes: &[u8]) -> usize {
        self.0.borrow_mut().push("receive");
        match bytes[0] {
            b'x' => {
                cx.send(&MUCH);
                cx.close();
            }
            b'y' => cx.abort(),
            b'z' => cx.pause(),
            b's' => _ = cx.send(&MUCH),
            _ => _ = cx.send(bytes),
        }
        bytes.len()
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, u32>, _: Reason) {
        self.0.borrow_mut().push("disconnect");
    }
}

pub(super) struct Stage {
    pub(super) kernel: SimKernel,
    pub(super) shard: Shard<SimDriver, Told>,
    calls: Calls,
    pub(super) until: Option<Nanos>,
}

impl Stage {
    pub(super) fn new(profile: Profile, system: SimSystem, streams: bool) -> Self {
        let options = SimOptions {
            held_clock: true,
            streams,
            send_buffer_bytes: 4096,
            receive_buffer_bytes: 4096,
            system,
            ..SimOptions::calm(3)
        };
        let kernel = SimKernel::new(options);
        let arena = Arena::new(32, 4096).expect("memory");
        let mut driver = SimDriver::new(&kernel, 2, arena.memory().clone());
        driver.listen(kernel.listen(super::ship::here(), 8));
        let waker = driver.waker();
        let link =
            Link { mailbox: Arc::new(Mailbox::new(waker.clone())), handed: HandOver::new(2) };
        let calls = Calls::default();
        let parts = Parts {
            number: 0,
            profile,
            limits: Limits { max_connections: 2, ..Limits::default() },
            slots: 2,
            outgoing: 0,
            links: Arc::new([link]),
            ledger: Arc::new(Ledger::new(2, 1, waker)),
            deadline: Arc::new(Deadline::new()),
            counters: Arc::default(),
            accepts: true,
            peers: None,
            service: None,
            gauge: Arc::default(),
        };
        let mut shard = Shard::new(driver, arena, Told(calls.clone()), parts);
        shard.start(kernel.now()).expect("its handler begins with nothing");
        Self { kernel, shard, calls, until: Some(Nanos(0)) }
    }

    fn turn(&mut self) {
        let now = self.shard.wait(self.until).expect("a simulation goes on");
        self.until = self.shard.turn(now);
    }

    /// Turns until something holds.
    fn until(&mut self, what: &str, holds: impl Fn(&mut Shard<SimDriver, Told>) -> bool) {
        for _ in 0..1000 {
            if holds(&mut self.shard) {
                return;
            }
            self.turn();
            if !holds(&mut self.shard) {
                self.kernel.advance();
            }
        }
        panic!("it never comes to this: {what}");
    }

    /// The slot of the first session in a life.
    fn slot_in(&mut self, life: Life) -> Option<u32> {
        let table = &mut self.shard.core.table;
        (0..table.touched()).find(|slot| table.get(*slot).life == life)
    }

    /// A peer whose session is open and reads, with its slot.
    fn open(&mut self) -> (SimPeer, u32) {
        let peer = self.kernel.connect(super::ship::here());
        let mut slot = None;
        for _ in 0..1000 {
            slot = slot.or_else(|| self.slot_in(Life::Open));
            if slot.is_some() && peer.connected().is_some() {
                break;
            }
            self.turn();
            self.kernel.advance();
        }
        (peer, slot.expect("it is accepted"))
    }

    /// Brings stale completions of every kind, earlier and later generations of the slot, with
    /// every outcome, with and without a block, each in a turn of its own where `alone`. The point
    /// of the session's life must stay what it is: so they are dispatched, and no turn is made.
    fn haunt(&mut self, slot: u32) {
        let generation = self.shard.core.table.get(slot).generation;
        let reset = Failure { fault: Fault::Reset, code: 104 };
        let life = self.shard.core.table.get(slot).life;
        let in_flight = self.shard.core.table.get(slot).in_flight;
        for kind in Kind::ALL {
            for other in [generation.wrapping_sub(1), generation + 1, generation ^ 0x80_0000] {
                for (at, result) in [Ok(0), Ok(7), Err(reset)].into_iter().enumerate() {
                    let token = Token::new(kind, other, slot);
                    let lease = (kind == Kind::Receive && at < 2).then(|| self.lend());
                    let completion =
                        Completion { token, result, lease: lease.flatten(), more: at == 1 };
                    self.bring(completion);
                }
            }
        }
        // Of a slot that there is not.
        self.bring(Completion {
            token: Token::new(Kind::Send, 1, 77),
            result: Ok(1),
            lease: None,
            more: false,
        });
        let session = self.shard.core.table.get(slot);
        assert_eq!((session.life, session.in_flight), (life, in_flight), "at {life:?}");
    }

    /// A block that the kernel has for a receive.
    fn lend(&mut self) -> Option<crate::buffer::Lease> {
        let lease = self.shard.core.arena.lease()?;
        let shard = &mut self.shard;
        *(if shard.provide > 0 { &mut shard.provided } else { &mut shard.pinned }) += 1;
        Some(lease)
    }

    fn bring(&mut self, completion: Completion) {
        let what = format!("{completion:?}");
        let calls = self.calls.borrow().len();
        let blocks = self.shard.core.arena.outstanding();
        let (provided, pinned) = (self.shard.provided, self.shard.pinned);
        let brings = usize::from(completion.lease.is_some());
        let stale = self.stale();
        self.shard.dispatch(completion);
        assert_eq!(self.calls.borrow().len(), calls, "{what} reached a handler");
        assert_eq!(self.stale(), stale + 1, "{what} was not counted");
        assert_eq!(self.shard.core.arena.outstanding(), blocks - brings, "{what}: its block");
        let lent = (self.shard.provided + self.shard.pinned) as usize;
        assert_eq!(lent, (provided + pinned) as usize - brings, "{what}: blocks lent");
    }

    pub(super) fn stale(&self) -> u64 {
        let counters = crate::metrics::AllCounters(Arc::new([self.shard.core.counters.clone()]));
        counters.sum().stale
    }

    /// Ends all, and reckons.
    pub(super) fn end(mut self) {
        self.shard.drain(self.kernel.now().after(Duration::from_millis(10)));
        self.until("drained", |shard| shard.is_drained());
        assert_eq!(self.shard.settle_accounts(), 0);
        assert_eq!((self.shard.provided, self.shard.pinned), (0, 0));
    }
}

fn stages() -> impl Iterator<Item = Stage> {
    let systems = [SimSystem::linux(), SimSystem::windows_workstation(1 << 30)];
    let profiles =
        [(Profile::Connections, false), (Profile::Throughput, true), (Profile::Throughput, false)];
    systems.into_iter().flat_map(move |system| {
        profiles.map(|(profile, streams)| Stage::new(profile, system.clone(), streams))
    })
}

#[test]
fn stale_completions_reach_nobody_in_waiting() {
    for mut stage in stages() {
        stage.turn();
        let slot = stage.slot_in(Life::Waiting).expect("accepts are posted");
        stage.haunt(slot);
        stage.end();
    }
}

#[test]
fn stale_completions_reach_nobody_while_open() {
    for mut stage in stages() {
        let (mut peer, slot) = stage.open();
        // Reading in whichever way the profile has.
        stage.until("reading", |shard| shard.core.table.get(slot).reading != Reading::Paused);
        stage.haunt(slot);
        // Sending: the peer does not read.
        assert_eq!(peer.write(b"s").map_err(drop), Ok(1));
        stage.until("blocked", |shard| {
            let session = shard.core.table.get(slot);
            session.writing == Writing::Sending && session.marks.blocked
        });
        stage.haunt(slot);
        // What was sent arrives whole all the same.
        let mut heard = 0;
        for _ in 0..1000 {
            let mut bytes = [0; 4096];
            if let SimRead::Bytes(count) = peer.read(&mut bytes) {
                assert!(bytes[..count].iter().all(|byte| *byte == 1));
                heard += count;
            }
            stage.turn();
            stage.kernel.advance();
        }
        assert_eq!(heard, 30_000);
        // Paused by its handler, with whatever was posted still in flight.
        assert_eq!(peer.write(b"z").map_err(drop), Ok(1));
        stage.until("paused", |shard| shard.core.table.get(slot).marks.held_by_handler);
        stage.haunt(slot);
        // Ended by the peer, and the end read.
        drop(peer);
        stage.haunt(slot);
        stage.end();
    }
}

#[test]
fn stale_completions_reach_nobody_while_draining_closing_and_recycling() {
    for mut stage in stages() {
        let (mut peer, slot) = stage.open();
        assert_eq!(peer.write(b"x").map_err(drop), Ok(1));
        stage.until("draining", |shard| shard.core.table.get(slot).life == Life::Draining);
        stage.haunt(slot);
        // Nobody reads it: cut, by an abort. Its completions are late, so that each life is seen.
        stage.shard.core.abort(slot);
        stage.shard.settle();
        assert_eq!(stage.shard.core.table.get(slot).life, Life::Closing);
        stage.haunt(slot);
        let generation = stage.shard.core.table.get(slot).generation;
        // The close completes before the others.
        let others = stage.shard.core.table.get(slot).in_flight;
        stage.shard.dispatch(Completion {
            token: Token::new(Kind::Close, generation, slot),
            result: Ok(0),
            lease: None,
            more: false,
        });
        if others.has(Kind::Send) || others.has(Kind::Receive) || others.has(Kind::Park) {
            assert_eq!(stage.shard.core.table.get(slot).life, Life::Recycling);
            stage.haunt(slot);
        }
        // Now the kernel tells its own: that close is a stale one, in a slot that is being
        // recycled, is free, or is waiting again.
        let life = |shard: &mut Shard<SimDriver, Told>| shard.core.table.get(slot).life;
        for _ in 0..1000 {
            if life(&mut stage.shard) == Life::Free
                || stage.shard.core.table.get(slot).generation != generation
            {
                break;
            }
            wait_but_for_the_close(&mut stage, slot, generation);
        }
        stage.haunt(slot);
        assert_eq!(*stage.calls.borrow(), ["connect", "receive", "disconnect"]);
    }
}

/// Takes completions from the driver, and leaves out the close that was told before.
fn wait_but_for_the_close(stage: &mut Stage, slot: u32, generation: u64) {
    let now = stage.shard.wait(Some(Nanos(0))).expect("a simulation goes on");
    let close = Token::new(Kind::Close, generation, slot);
    stage.shard.completions.retain(|completion| completion.token != close);
    stage.shard.core.now = now;
    stage.shard.dispatch_all();
    stage.kernel.advance_anyway();
}

#[test]
fn stale_completions_reach_nobody_in_a_slot_that_is_free_or_used_again() {
    for mut stage in stages() {
        let (mut peer, slot) = stage.open();
        let first = stage.shard.core.table.get(slot).generation;
        assert_eq!(peer.write(b"y").map_err(drop), Ok(1));
        let calls = stage.calls.clone();
        stage.until("over", |_| calls.borrow().last() == Some(&"disconnect"));
        stage.until("free or used again", |shard| {
            let session = shard.core.table.get(slot);
            session.life == Life::Free || session.generation != first
        });
        stage.haunt(slot);
        let (mut again, slot) = stage.open();
        stage.haunt(slot);
        assert_eq!(again.write(b"hello").map_err(drop), Ok(5));
        let mut bytes = [0; 8];
        for _ in 0..1000 {
            if again.read(&mut bytes) == SimRead::Bytes(5) {
                break;
            }
            stage.turn();
            stage.kernel.advance();
        }
        assert_eq!(&bytes[..5], b"hello");
        stage.end();
    }
}

/// A ship of two shards on a calm sea, whose acceptor has accepts in flight for the other shard.
fn handing_ship() -> Ship {
    let options = SimOptions { held_clock: true, ..SimOptions::calm(3) };
    let mut ship = Ship::launch(Plan {
        seed: 3,
        calm: true,
        chatty: false,
        options,
        profile: Profile::Connections,
        limits: Limits { max_connections: 8, backlog: 8, ..Limits::default() },
        shards: 2,
        slots: 4,
        outgoing: 0,
        blocks: 16,
        clients: 8,
        drain: Duration::from_millis(100),
        drain_early: None,
    });
    ship.turn(0);
    assert!(!tokens(&ship).is_empty(), "none is in flight for the other shard");
    ship
}

fn tokens(ship: &Ship) -> Vec<Token> {
    ship.shards[0].0.acceptor.as_ref().expect("the first shard accepts").tokens()
}

/// Has a shard be brought a hand-over's completion that is stale: it changes nothing.
fn bring_stale(ship: &mut Ship, shard: usize, token: Token, result: Result<u32, Failure>) {
    let before = (ship.ledger.taken(), ship.ledger.loads(), tokens(ship));
    let (stale, failed) = (ship.metrics().stale, ship.metrics().accept_errors);
    ship.shards[shard].0.dispatch(Completion { token, result, lease: None, more: false });
    assert_eq!((ship.ledger.taken(), ship.ledger.loads(), tokens(ship)), before, "{token:?}");
    assert_eq!((ship.metrics().stale, ship.metrics().accept_errors), (stale + 1, failed));
}

/// Whether a peer hears the end of its stream, or a reset.
fn closes(ship: &mut Ship, peer: &mut SimPeer) -> bool {
    (0..1000).any(|_| {
        ship.turn(0);
        ship.kernel.advance();
        matches!(peer.read(&mut [0; 8]), SimRead::End | SimRead::Failed(_))
    })
}

#[test]
fn stale_hand_overs_change_nothing_and_bring_nobody() {
    let mut ship = handing_ship();
    let gone = Failure { fault: Fault::ProcessDescriptors, code: 24 };
    // While others are in flight under the same numbers, on either shard, and of no number at all.
    for token in tokens(&ship) {
        let generation = u64::from(token.generation());
        for other in [generation.wrapping_sub(1), generation + 1, generation ^ 0x80_0000] {
            let stale = Token::new(Kind::HandOver, other, token.slot());
            for result in [Ok(0), Ok(7), Err(gone)] {
                bring_stale(&mut ship, 0, stale, result);
            }
        }
        bring_stale(&mut ship, 1, token, Ok(0));
        bring_stale(&mut ship, 0, Token::new(Kind::HandOver, 1, 1 << 20), Ok(0));
    }
    // A second time, once the first has been taken.
    let first = tokens(&ship);
    let peers: Vec<SimPeer> = (0..8).map(|_| ship.kernel.connect(super::ship::here())).collect();
    assert!(ship.rest(|ship| ship.metrics().accepted == 8));
    for token in first {
        bring_stale(&mut ship, 0, token, Ok(0));
        bring_stale(&mut ship, 0, token, Err(gone));
    }
    // With a connection: that is closed.
    let mut ninth = ship.kernel.connect(super::ship::here());
    ship.kernel.advance_by(Duration::from_millis(1));
    let stale = Token::new(Kind::HandOver, 0x12_3456, 5);
    ship.shards[0].0.driver().bring_stray_under(stale);
    bring_stale(&mut ship, 0, stale, Ok(0));
    assert!(closes(&mut ship, &mut ninth), "it is left open");
    assert_eq!(ship.census.borrow().aboard, 8, "no handler has heard of it");
    drop((peers, ninth));
    ship.land();
}
