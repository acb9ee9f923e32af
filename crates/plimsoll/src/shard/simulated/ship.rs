//! A ship: several shards with one ledger and one listener on a simulated machine, passengers that
//! come and go, and the reckoning at the end.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::client::{CHATTER, Client, Did};
use super::crew::{Census, Moody};
use super::plan::Plan;
use crate::acceptor::ledger::Ledger;
use crate::acceptor::peers::Peers;
use crate::acceptor::service::ServiceSet;
use crate::budget::Dry;
use crate::buffer::Arena;
use crate::deadline::Deadline;
use crate::driver::sim::random::Random;
use crate::driver::sim::{
    SimDriver, SimHoldings, SimKernel, SimListener, SimPeerListener, SimSocket,
};
use crate::driver::{Driver, Nanos};
use crate::mailbox::{HandOver, Mailbox, Remote};
use crate::metrics::{AllCounters, Counters, Metrics};
use crate::monitor::{Gauge, Pressure};
use crate::shard::operations::Operations;
use crate::shard::{Link, Parts, Profile, Shard};

const BLOCK: usize = 4096;

/// In this time everything must come to rest: twice the longest drain.
const REST: Duration = Duration::from_secs(7200);

/// And in so many turns of all shards: those that are short of pages try again every 70 ms or so, each
/// when it likes, for as long as a drain may take.
const REST_TURNS: u32 = 1_000_000;

/// As many turns without a pause empty a full mailbox, and fire all timers, several times over.
const HOT: u32 = 200;

/// The accounts are reconciled after so many steps.
const STEPS_PER_AUDIT: u64 = 256;

/// The most shards that a plan has.
const SHARDS_MOST: usize = 4;

pub(super) struct Ship {
    pub(super) plan: Plan,
    pub(super) kernel: SimKernel,
    /// Each with the end of its next wait.
    pub(super) shards: Vec<(Shard<SimDriver, Moody>, Option<Nanos>)>,
    pub(super) links: Arc<[Link<SimSocket>]>,
    pub(super) ledger: Arc<Ledger>,
    deadline: Arc<Deadline>,
    peers: Option<Arc<Peers>>,
    gauge: Arc<Gauge>,
    counters: AllCounters,
    remote: Remote,
    pub(super) census: Rc<RefCell<Census>>,
    pub(super) clients: Vec<Client>,
    /// Where handlers connect to.
    harbour: SimPeerListener,
    random: Random,
    draining: bool,
    /// Turns in a row of each shard after which it wanted another at once.
    hot: Vec<u32>,
}

/// Where the ship listens.
pub(super) fn here() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

fn there() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7001))
}

impl Ship {
    /// A ship that has not sailed.
    pub(super) fn launch(plan: Plan) -> Self {
        let kernel = SimKernel::new(plan.options.clone());
        let harbour = kernel.peer_listener(there(), 4);
        let arenas: Vec<Arena> =
            (0..plan.shards).map(|_| Arena::new(plan.blocks, BLOCK).expect("memory")).collect();
        let drivers: Vec<SimDriver> = arenas
            .iter()
            .map(|arena| SimDriver::new(&kernel, plan.slots, arena.memory().clone()))
            .collect();
        let wakers: Vec<_> = drivers.iter().map(Driver::waker).collect();
        let links: Arc<[Link<_>]> = wakers
            .iter()
            .map(|waker| Link {
                mailbox: Arc::new(Mailbox::new(waker.clone())),
                handed: HandOver::new(plan.slots as usize),
            })
            .collect();
        let limits = &plan.limits;
        let permits = limits.max_connections;
        let ledger = Arc::new(Ledger::new(permits, plan.shards, wakers[0].clone()));
        let peers = limits.max_per_peer.map(|most| Arc::new(Peers::new(most, permits)));
        let set = limits.service_set.filter(|_| plan.profile == Profile::Throughput);
        let service = set.map(|set| {
            let set = ServiceSet::new(set, limits.service_time, wakers, plan.slots);
            Arc::new(set.in_dry_run(limits.dry_run.has(Dry::ServiceSet)))
        });
        let counters: Arc<[Arc<Counters>]> = (0..plan.shards).map(|_| Arc::default()).collect();
        let remote = Remote { shards: links.iter().map(|link| link.mailbox.clone()).collect() };
        let census = Rc::new(RefCell::new(Census::default()));
        let gauge: Arc<Gauge> = Arc::default();
        let deadline = Arc::new(Deadline::new());
        let shards = drivers.into_iter().zip(arenas).enumerate().map(|(number, seat)| {
            let handler = Moody {
                random: Random::new(plan.seed ^ (number as u64 + 1) << 40),
                census: census.clone(),
                calm: plan.calm,
                chatty: plan.chatty,
                remote: remote.clone(),
                target: there(),
            };
            let parts = Parts {
                number: number as u32,
                profile: plan.profile,
                limits: plan.limits.clone(),
                slots: plan.slots,
                outgoing: plan.outgoing,
                links: links.clone(),
                ledger: ledger.clone(),
                deadline: deadline.clone(),
                counters: counters[number].clone(),
                accepts: number == 0,
                peers: peers.clone(),
                service: service.clone(),
                gauge: gauge.clone(),
            };
            let mut shard = Shard::new(seat.0, seat.1, handler, parts);
            shard.start(Nanos(0)).expect("no handler panics as it begins");
            (shard, Some(Nanos(0)))
        });
        let mut shards: Vec<_> = shards.collect();
        let listener: SimListener = kernel.listen(here(), plan.limits.backlog);
        shards[0].0.driver().listen(listener);
        Self {
            random: Random::new(plan.seed),
            plan,
            kernel,
            shards,
            links,
            ledger,
            deadline,
            peers,
            gauge,
            counters: AllCounters(counters),
            remote,
            census,
            clients: Vec::new(),
            harbour,
            draining: false,
            hot: vec![0; SHARDS_MOST],
        }
    }

    /// So many steps. A step is one turn of one shard, one advance of the clock to what comes next
    /// in the network, or one thing that a peer did or that came from outside. What is tried in
    /// vain (a read of nothing, a write without room) is none.
    pub(super) fn sail(&mut self, steps: u64) {
        let early = self.plan.drain_early.map(|part| steps / part);
        let mut done = 0;
        while done < steps {
            if early == Some(done) {
                self.ask_to_drain();
            }
            done += u64::from(self.step());
            if done.is_multiple_of(STEPS_PER_AUDIT) {
                self.audit();
            }
        }
    }

    /// The accounts agree with what is there.
    fn audit(&mut self) {
        for (shard, _) in &mut self.shards {
            shard.audit().expect("the accounts agree with what is there");
        }
    }

    fn step(&mut self) -> bool {
        let taken = self.ledger.taken();
        assert!(taken <= self.plan.limits.max_connections, "{taken} permits");
        self.check_operations();
        match self.random.below(32) {
            0..8 => {
                let number = self.random.below(self.shards.len() as u64) as usize;
                self.turn(number);
                true
            }
            8..12 => self.kernel.advance_anyway().is_some(),
            12 if self.random.below(8) > 0 => false,
            12 => self.reached_from_outside(),
            13..15 => self.board(),
            _ => self.act(),
        }
    }

    /// No limit on operations is ever passed, in the kernel's eyes.
    fn check_operations(&mut self) {
        let Some(most) = self.plan.limits.max_operations else { return };
        let drivers =
            self.shards.iter_mut().map(|(shard, _)| shard.driver().in_flight_but_closes());
        let found: usize = drivers.sum();
        assert!(found <= most as usize, "{found} operations in flight, {most} may be");
    }

    pub(super) fn turn(&mut self, number: usize) {
        let (shard, until) = &mut self.shards[number];
        let now = shard.wait(*until).expect("a simulation goes on");
        *until = shard.turn(now);
        let again = until.is_some_and(|until| until <= now);
        self.hot[number] = if again { self.hot[number] + 1 } else { 0 };
        assert!(self.hot[number] < HOT, "a hot loop: shard {number} never wants to wait");
    }

    /// Somebody comes: to the ship, or to where it connects to.
    fn board(&mut self) -> bool {
        if self.clients.len() >= self.plan.clients {
            return false;
        }
        let peer = if self.random.below(4) == 0 {
            self.harbour.accept().map(|(peer, _)| peer)
        } else {
            let source = SocketAddr::from(([127, 0, 0, 1 + self.random.below(3) as u8], 0));
            self.kernel.connect_from(Some(source), here()).ok()
        };
        let Some(peer) = peer else { return false };
        self.clients.push(Client::new(peer, &mut self.random, self.plan.calm));
        true
    }

    fn act(&mut self) -> bool {
        if self.clients.is_empty() {
            return false;
        }
        let number = self.random.below(self.clients.len() as u64) as usize;
        let did = self.clients[number].act(&mut self.random, self.plan.calm);
        if did == Did::Leaves {
            let client = self.clients.swap_remove(number);
            assert!(!(self.plan.calm && client.is_cheated()), "an echo is incomplete");
            client.leave(&mut self.random);
        }
        did != Did::Nothing
    }

    /// Another thread reaches for a session, or for a shard.
    fn reached_from_outside(&mut self) -> bool {
        if self.plan.calm || self.random.below(8) > 0 {
            return false;
        }
        let shard = self.random.below(self.shards.len() as u64) as u32;
        let id = self.census.borrow().any(&mut self.random);
        let taken = match (self.random.below(10), id) {
            (8, _) => {
                self.gauge.set(Pressure::Calm);
                Ok(())
            }
            (9, _) => {
                let levels = [Pressure::Braking, Pressure::Shedding];
                self.gauge.set(levels[self.random.below(2) as usize]);
                Ok(())
            }
            (0, Some(id)) => self.remote.disconnect(id),
            (1..5, Some(id)) if self.plan.chatty => self.remote.send(id, &CHATTER[..]),
            (5, _) if self.plan.chatty => self.remote.broadcast(&CHATTER[..]),
            (6, Some(id)) if self.plan.chatty => self.remote.message(shard, Box::new(id)),
            (7, _) => self.remote.message(shard, Box::new(())),
            _ => return false,
        };
        taken.is_ok()
    }

    /// Lets everything come to rest: clients read all, shards turn, time passes.
    pub(super) fn rest(&mut self, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.kernel.now().after(REST);
        for _ in 0..REST_TURNS {
            for number in 0..self.shards.len() {
                self.turn(number);
            }
            while let Some((peer, _)) = self.harbour.accept() {
                let mut client = Client::new(peer, &mut self.random, self.plan.calm);
                client.shut();
                self.clients.push(client);
            }
            self.clients.iter_mut().for_each(Client::read_all);
            if until(self) {
                return true;
            }
            self.kernel.advance();
            if self.kernel.now() > end {
                break;
            }
        }
        false
    }

    pub(super) fn ask_to_drain(&mut self) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        self.deadline.set(self.kernel.now().after(self.plan.drain));
        self.links.iter().for_each(|link| link.mailbox.ring());
    }

    /// Ends the voyage: everybody says goodbye, the shards drain, and every account must be at zero.
    pub(super) fn land(self) {
        self.kernel.heal();
        self.land_unhealed();
    }

    /// The same, but that what was to fail still does.
    pub(super) fn land_unhealed(mut self) {
        self.gauge.set(Pressure::Calm);
        self.clients.iter_mut().for_each(Client::shut);
        if self.plan.calm {
            assert_eq!(self.noted(), 0, "the kernel was never short of anything");
            let answered = self.rest(|ship| ship.clients.iter().all(Client::is_answered));
            assert!(answered, "an echo never came back");
            assert!(!self.clients.iter().any(Client::is_cheated), "an echo is incomplete");
        }
        self.ask_to_drain();
        let drained = self.rest(|ship| ship.shards.iter().all(|(shard, _)| shard.is_drained()));
        assert!(drained, "the drain does not end: {:?}", self.left());
        self.reckon();
    }

    fn left(&mut self) -> (Vec<SimHoldings>, u32) {
        let holdings = self.shards.iter_mut().map(|(shard, _)| shard.driver().holdings()).collect();
        (holdings, self.ledger.taken())
    }

    /// Every account must be at zero.
    fn reckon(mut self) {
        assert_eq!((self.ledger.taken(), self.ledger.loads()), (0, 0), "permits");
        let census = self.census.borrow();
        assert_eq!((census.aboard, census.outgoing), (0, 0), "sessions that never ended");
        assert!(census.most_aboard <= self.plan.limits.max_connections, "the limit was overshot");
        drop(census);
        if let Some(peers) = &self.peers {
            assert_eq!(peers.counted(), 0, "connections by peer");
        }
        for (shard, _) in &mut self.shards {
            assert_eq!(shard.settle_accounts(), 0, "blocks");
            assert_eq!(shard.driver().holdings(), SimHoldings::default());
            assert_eq!(shard.provided, 0, "blocks lent to streams");
            let places = self.plan.limits.sends_in_flight(self.plan.shards as u32, self.plan.slots);
            let at_rest = |it: &Operations| places.is_some_and(|places| it.is_at_rest(places));
            assert!(shard.operations.as_ref().is_none_or(at_rest), "{:?}", shard.operations);
            let core = &shard.core;
            assert_eq!((core.table.used(), core.open), (0, 0), "sessions");
            assert_eq!(core.outgoing_left, self.plan.outgoing, "places for connections of ours");
            assert_eq!(core.wheel.next(), None, "deadlines");
            assert!(core.touched.is_empty() && core.connects.is_empty(), "work that is left");
        }
        assert_eq!(self.kernel.report().descriptors, 0, "descriptors");
        self.clients.clear();
        // Ends of streams and resets that are on their way, and those that nobody answers.
        self.kernel.advance_by(Duration::from_secs(1000));
        while self.harbour.accept().is_some() {}
        self.kernel.advance_by(Duration::from_secs(1000));
        let report = self.kernel.report();
        assert_eq!((report.sockets, report.queued, report.files), (0, 0, 0), "{report:?}");
        assert_eq!((report.pool_bytes, report.pinned_bytes), (0, 0), "{report:?}");
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.counters.sum()
    }

    /// Shortages of the kernel's that were noted.
    pub(super) fn noted(&self) -> u64 {
        self.gauge.figures().shortages
    }
}
