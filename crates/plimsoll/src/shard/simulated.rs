//! Whole shards on the simulated kernel: from a seed, with every failure that an operation can have.
//!
//! `PLIMSOLL_SEED=n cargo test -p plimsoll simulated` replays one seed; `PLIMSOLL_SEEDS=n` sails so
//! many instead of a few hundred.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::driver::sim::{SimDriver, SimHoldings, SimKernel, SimOptions, SimPeer, SimRead};
use crate::mailbox::{HandOver, Mail};

const SLOTS: u32 = 6;
const LIMIT: u32 = 8;
const SHARDS: usize = 2;

/// SplitMix64: enough for a test's choices.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Echoes in every way there is: whole, in part, from the block, from a copy; and sometimes pauses,
/// closes, aborts or panics.
struct Moody {
    random: Rc<RefCell<Random>>,
    /// Sessions it knows, and the most at once, over all shards.
    census: Rc<RefCell<(u32, u32)>>,
    calm: bool,
}

impl Handler for Moody {
    type State = bool;

    fn on_connect(&mut self, cx: &mut Context<'_, bool>) -> bool {
        assert!(!*cx.state(), "a state of an earlier session");
        *cx.state() = true;
        let mut census = self.census.borrow_mut();
        census.0 += 1;
        census.1 = census.1.max(census.0);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, bool>, bytes: &[u8]) -> usize {
        assert!(*cx.state(), "bytes for a session that has not begun, or is over");
        let mut random = self.random.borrow_mut();
        let count = if random.below(2) == 0 { bytes.len() } else { 1 + random.below(bytes.len()) };
        match random.below(4) {
            0 => {
                let copy = bytes[..count].to_vec();
                cx.send(&copy);
            }
            1 => {
                cx.send(&bytes[..count / 2]);
                cx.send(&bytes[count / 2..count]);
            }
            _ => _ = cx.send(&bytes[..count]),
        }
        match random.below(if self.calm { 8 } else { 100 }) {
            0 => {
                cx.pause();
                cx.set_timer(Duration::from_millis(random.next() % 100));
            }
            1 if !self.calm => cx.close(),
            2 if !self.calm => cx.abort(),
            3 if !self.calm => panic::panic_any("a mood"),
            _ => {}
        }
        count
    }

    fn on_timer(&mut self, cx: &mut Context<'_, bool>) {
        cx.resume();
    }

    fn on_disconnect(&mut self, cx: &mut Context<'_, bool>, _: Reason) {
        assert!(std::mem::replace(cx.state(), false), "a second end, or one without a beginning");
        self.census.borrow_mut().0 -= 1;
    }
}

use std::panic;

struct Client {
    peer: SimPeer,
    stream: Random,
    sent: Vec<u8>,
    received: usize,
    shut: bool,
    ended: bool,
}

struct Ship {
    kernel: SimKernel,
    /// Each with the end of its next wait.
    shards: Vec<(Shard<SimDriver, Moody>, Option<Nanos>)>,
    links: Arc<[Link<crate::driver::sim::SimSocket>]>,
    ledger: Arc<Ledger>,
    clients: Vec<Client>,
    random: Random,
    census: Rc<RefCell<(u32, u32)>>,
    calm: bool,
}

fn here() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

impl Ship {
    fn launch(seed: u64, calm: bool) -> Self {
        let mut options = if calm { SimOptions::rough(seed) } else { SimOptions::stormy(seed) };
        options.held_clock = true;
        let kernel = SimKernel::new(options);
        let random = Random(seed);
        let mut limits = Limits {
            outbox_low: 1000,
            outbox_high: 8000,
            outbox_hard: 64 << 10,
            ..Limits::default()
        };
        if !calm {
            limits.idle_timeout = Some(Duration::from_secs(2));
            limits.first_byte_timeout = Some(Duration::from_millis(300));
        }
        let profile = [Profile::Connections, Profile::Throughput][(seed % 2) as usize];
        let arenas: Vec<Arena> = (0..SHARDS).map(|_| Arena::new(24, 4096).unwrap()).collect();
        let drivers: Vec<SimDriver> = arenas
            .iter()
            .map(|arena| SimDriver::new(&kernel, SLOTS, arena.memory().clone()))
            .collect();
        let links: Arc<[Link<_>]> = drivers
            .iter()
            .map(|driver| Link {
                mailbox: Arc::new(Mailbox::new(driver.waker())),
                handed: HandOver::new(SLOTS as usize),
            })
            .collect();
        let ledger = Arc::new(Ledger::new(LIMIT, SHARDS, drivers[0].waker()));
        let census = Rc::new(RefCell::new((0, 0)));
        let moods = Rc::new(RefCell::new(Random(seed ^ 0xabcd)));
        let shards =
            drivers.into_iter().zip(arenas).enumerate().map(|(number, (driver, arena))| {
                let handler = Moody { random: moods.clone(), census: census.clone(), calm };
                let parts = Parts {
                    number: number as u32,
                    profile,
                    limits: limits.clone(),
                    slots: SLOTS,
                    outgoing: 0,
                    arena,
                    links: links.clone(),
                    ledger: ledger.clone(),
                    counters: Arc::default(),
                    accepts: number == 0,
                };
                (Shard::new(driver, handler, parts), Some(Nanos(0)))
            });
        let mut shards: Vec<_> = shards.collect();
        let listener = kernel.listen(here(), 4);
        shards[0].0.driver().listen(listener);
        Self { kernel, shards, links, ledger, clients: Vec::new(), random, census, calm }
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 => {
                let number = self.random.below(SHARDS);
                self.turn(number);
            }
            4 => _ = self.kernel.advance(),
            5 if self.clients.len() < 14 => {
                let stream = Random(self.random.next());
                let peer = self.kernel.connect(here());
                self.clients.push(Client {
                    peer,
                    stream,
                    sent: Vec::new(),
                    received: 0,
                    shut: false,
                    ended: false,
                });
            }
            _ if !self.clients.is_empty() => {
                let number = self.random.below(self.clients.len());
                self.act(number);
            }
            _ => {}
        }
        assert!(self.ledger.taken() <= LIMIT);
    }

    fn turn(&mut self, number: usize) {
        let (shard, until) = &mut self.shards[number];
        let now = shard.wait(*until).unwrap();
        *until = shard.turn(now);
    }

    fn act(&mut self, number: usize) {
        let choice = self.random.below(12);
        let client = &mut self.clients[number];
        match choice {
            0..5 if !client.shut && client.sent.len() < 200_000 => {
                let count = 1 + self.random.below(5000);
                let mut stream = client.stream.clone();
                let bytes: Vec<u8> = (0..count).map(|_| stream.next() as u8).collect();
                let taken = client.peer.write(&bytes).unwrap_or(0);
                (0..taken).for_each(|_| _ = client.stream.next());
                client.sent.extend_from_slice(&bytes[..taken]);
            }
            5..10 => client.read(),
            10 if client.sent.len() > 50_000 => {
                client.peer.shutdown_write();
                client.shut = true;
            }
            _ if !self.calm => {
                let client = self.clients.swap_remove(number);
                if self.random.below(2) == 0 { client.peer.reset() } else { client.peer.close() }
            }
            _ => {}
        }
    }

    /// Lets everything come to rest: clients read all, shards turn, time passes.
    fn rest(&mut self, until: impl Fn(&mut Self) -> bool) -> bool {
        for _ in 0..20_000 {
            for number in 0..SHARDS {
                self.turn(number);
            }
            self.clients.iter_mut().for_each(Client::read);
            if until(self) {
                return true;
            }
            self.kernel.advance();
        }
        false
    }

    /// Every account must be at zero after a drain.
    fn drain(mut self, seed: u64) {
        self.kernel.heal();
        self.clients.iter_mut().for_each(|client| client.peer.shutdown_write());
        if self.calm {
            let echoed = self.rest(|ship| {
                ship.clients
                    .iter()
                    .all(|client| client.ended || client.received == client.sent.len())
            });
            assert!(echoed, "seed {seed}: an echo never came back");
        }
        for link in self.links.iter() {
            assert!(link.mailbox.put(Mail::Drain(Duration::from_millis(500))).is_ok());
        }
        let drained = self.rest(|ship| ship.shards.iter().all(|(shard, _)| shard.is_drained()));
        assert!(drained, "seed {seed}: the drain does not end: {:?}", self.left());
        assert_eq!(self.ledger.taken(), 0, "seed {seed}: permits");
        assert_eq!(self.census.borrow().0, 0, "seed {seed}: sessions that never ended");
        assert!(self.census.borrow().1 <= LIMIT, "seed {seed}: the limit was overshot");
        for (shard, _) in &mut self.shards {
            assert_eq!(shard.settle_accounts(), 0, "seed {seed}: blocks");
            assert_eq!(shard.driver().holdings(), SimHoldings::default(), "seed {seed}");
        }
    }

    fn left(&mut self) -> Vec<SimHoldings> {
        self.shards.iter_mut().map(|(shard, _)| shard.driver().holdings()).collect()
    }
}

impl Client {
    fn read(&mut self) {
        let mut bytes = [0; 3000];
        match self.peer.read(&mut bytes) {
            SimRead::Bytes(count) => {
                let expected = &self.sent[self.received..self.received + count];
                assert!(expected == &bytes[..count], "an echo came back wrong");
                self.received += count;
            }
            SimRead::Nothing => {}
            SimRead::End | SimRead::Failed(_) => self.ended = true,
        }
    }
}

fn sail(seed: u64, steps: usize, calm: bool) {
    let mut ship = Ship::launch(seed, calm);
    for _ in 0..steps {
        ship.step();
    }
    ship.drain(seed);
}

fn sail_all(calm: bool, seeds: u64) {
    let hook = panic::take_hook();
    // The handler's own panics are part of the test, and many.
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"a mood") {
            hook(info);
        }
    }));
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let most = number("PLIMSOLL_SEEDS").unwrap_or(seeds);
    let seeds = number("PLIMSOLL_SEED").map_or(0..most, |seed| seed..seed + 1);
    for seed in seeds {
        let sailed = panic::catch_unwind(|| sail(seed, 3000, calm));
        assert!(sailed.is_ok(), "replay: PLIMSOLL_SEED={seed} cargo test -p plimsoll simulated");
    }
}

#[test]
fn simulated_calm_seas_lose_no_byte() {
    sail_all(true, 150);
}

#[test]
fn simulated_storms_leave_every_account_at_zero() {
    sail_all(false, 300);
}
