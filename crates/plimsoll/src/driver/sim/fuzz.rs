//! Random intents on random slots with random peers: the contract, for many seeds.
//!
//! The caller here keeps the rules, and knows of each slot what a shard would know; the peers and
//! the kernel do as chance has it. What is checked: nothing panics, every operation completes
//! once, every byte that arrives is the right one, and at the end nothing is left.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::random::Random;
use super::*;
use crate::buffer::{Arena, Lease, Span};
use crate::driver::{Completion, Driver, Into, Kind, Token};

const SLOTS: u32 = 12;
const BLOCK: usize = 4096;

/// The byte at a place of a stream: both directions of all connections send these.
fn byte_at(place: u64) -> u8 {
    (place % 251) as u8 ^ (place / 251 % 241) as u8
}

/// What the caller knows of a slot.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Slot {
    generation: u64,
    open: bool,
    closing: bool,
    /// Kinds in flight, a bit each.
    flight: u8,
    start: u32,
    streaming: bool,
    sending: Option<Lease>,
    sent: u64,
    received: u64,
    shut: bool,
}

impl Slot {
    fn flies(&self, kind: Kind) -> bool {
        self.flight & 1 << kind as u8 != 0
    }
}

/// What a test's peer has done.
#[derive(Debug)]
struct Client {
    peer: SimPeer,
    written: u64,
    read: u64,
    shut: bool,
    reads: bool,
}

struct Run {
    random: Random,
    kernel: SimKernel,
    driver: SimDriver,
    arena: Arena,
    slots: Vec<Slot>,
    clients: Vec<Client>,
    servers: SimPeerListener,
    address: SocketAddr,
    out: Vec<Completion>,
    sockets: Vec<SimSocket>,
    handing: bool,
    /// Operations posted, and last completions of operations.
    posted: u64,
    completed: u64,
}

impl Run {
    fn new(options: SimOptions) -> Self {
        let seed = options.seed;
        let kernel = SimKernel::new(options);
        let arena = Arena::new(40, BLOCK).expect("address space");
        let mut driver = SimDriver::new(&kernel, SLOTS, arena.memory().clone());
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = kernel.listen(loopback, 4);
        let address = listener.address();
        driver.listen(listener);
        let servers = kernel.peer_listener(loopback, 4);
        Self {
            random: Random::new(!seed),
            kernel,
            driver,
            arena,
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            clients: Vec::new(),
            servers,
            address,
            out: Vec::with_capacity(16),
            sockets: Vec::new(),
            handing: false,
            posted: 0,
            completed: 0,
        }
    }

    fn go(&mut self, steps: u32) {
        for _ in 0..steps {
            for _ in 0..self.random.below(4) {
                self.peers_act();
            }
            for _ in 0..self.random.below(6) {
                self.intend();
            }
            let until = self.kernel.now().after(std::time::Duration::from_micros(100));
            self.turn(until);
        }
        self.rest();
    }

    fn turn(&mut self, until: Nanos) {
        let mut out = std::mem::take(&mut self.out);
        self.driver.wait(Some(until), &mut out).expect("a simulation goes on");
        for completion in out.drain(..) {
            self.completed(completion);
        }
        self.out = out;
    }

    fn token(&self, kind: Kind, slot: u32) -> Token {
        Token::new(kind, self.slots[slot as usize].generation, slot)
    }

    fn post(&mut self, kind: Kind, slot: u32) -> Token {
        self.slots[slot as usize].flight |= 1 << kind as u8;
        self.posted += 1;
        self.token(kind, slot)
    }

    /// One random intent, if the rules allow it on a random slot.
    fn intend(&mut self) {
        let at = self.random.below(u64::from(SLOTS)) as u32;
        let choice = self.random.below(24);
        let slot = &self.slots[at as usize];
        if slot.closing {
            return;
        }
        if !slot.open {
            if slot.flight == 0 {
                self.occupy(at, choice);
            } else if slot.flies(Kind::Connect) && choice == 0 {
                self.close(at, false);
            }
            return;
        }
        match choice {
            0..=3 if !slot.flies(Kind::Park) => {
                let token = self.post(Kind::Park, at);
                self.driver.park(token);
            }
            4..=9 if !slot.flies(Kind::Receive) => self.receive(at),
            10..=17 if !slot.flies(Kind::Send) => self.send(at, choice.is_multiple_of(2)),
            18 if !slot.flies(Kind::HalfClose) && !slot.flies(Kind::Send) => {
                let token = self.post(Kind::HalfClose, at);
                self.slots[at as usize].shut = true;
                self.driver.half_close(token);
            }
            19 => {
                let kind = if self.random.chance(500_000) { Kind::Park } else { Kind::Receive };
                let token = self.token(kind, at);
                self.driver.stop(token);
            }
            20 if self.random.chance(300_000) => self.close(at, false),
            21 if self.random.chance(200_000) => self.close(at, true),
            22 => {
                if let Some(lease) = self.arena.lease() {
                    self.driver.provide(lease);
                }
            }
            23 => self.driver.waker().wake(),
            _ => {}
        }
    }

    fn occupy(&mut self, at: u32, choice: u64) {
        let generation = self.slots[at as usize].generation + 1;
        self.slots[at as usize] = Slot { generation, ..Slot::default() };
        match choice {
            0..=9 => {
                let token = self.post(Kind::Accept, at);
                self.driver.accept(token, Into::Slot);
            }
            10..=13 => {
                let token = self.post(Kind::Connect, at);
                let source = (choice == 10).then(|| (Ipv4Addr::new(127, 0, 0, 5), 0).into());
                self.driver.connect(token, self.servers.address(), source);
            }
            14 if !self.handing => {
                self.handing = true;
                self.posted += 1;
                self.driver.accept(Token::new(Kind::HandOver, 3, 0), Into::Socket);
            }
            15..=20 => {
                if let Some(socket) = self.sockets.pop() {
                    self.slots[at as usize].open = self.driver.adopt(at, socket).is_ok();
                }
            }
            _ => {}
        }
    }

    fn receive(&mut self, at: u32) {
        let streaming = self.driver.features().streams && self.random.chance(400_000);
        if streaming {
            let token = self.post(Kind::Receive, at);
            self.driver.stream(token);
        } else {
            let Some(lease) = self.arena.lease() else { return };
            let token = self.post(Kind::Receive, at);
            let start = self.random.below(BLOCK as u64) as u32;
            self.slots[at as usize].start = start;
            let at_once = self.random.chance(250_000);
            self.driver.receive(token, lease, start, at_once);
        }
        self.slots[at as usize].streaming = streaming;
    }

    fn send(&mut self, at: u32, at_once: bool) {
        let Some(mut lease) = self.arena.lease() else { return };
        let len = self.random.within(1, BLOCK as u64) as u32;
        let from = self.slots[at as usize].sent;
        let memory = self.arena.memory().clone();
        for (place, byte) in (from..).zip(&mut lease.bytes_mut(&memory)[..len as usize]) {
            *byte = byte_at(place);
        }
        // Cut in two: the order of spans is checked too.
        let cut = self.random.within(0, u64::from(len)) as u32;
        let block = lease.block();
        let spans =
            [Span { block, start: 0, len: cut }, Span { block, start: cut, len: len - cut }];
        self.slots[at as usize].sending = Some(lease);
        let token = self.post(Kind::Send, at);
        self.driver.send(token, &spans, at_once);
    }

    fn close(&mut self, at: u32, abort: bool) {
        let token = self.post(Kind::Close, at);
        self.slots[at as usize].closing = true;
        if abort {
            self.driver.abort(token);
        } else {
            self.driver.close(token);
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, result, lease, more } = completion;
        self.completed += u64::from(!more);
        if token.kind() == Kind::HandOver {
            self.handing = false;
            if result.is_ok() {
                self.sockets.extend(self.driver.accepted(token).socket);
            }
            return;
        }
        let at = token.slot();
        let slot = &mut self.slots[at as usize];
        assert!(token.is_of(slot.generation), "{token:?} is of another use of its slot");
        assert!(slot.flies(token.kind()), "{token:?} was not in flight");
        if !more {
            slot.flight &= !(1 << token.kind() as u8);
        }
        match token.kind() {
            Kind::Accept if result.is_ok() => {
                slot.open = true;
                let _ = self.driver.accepted(token);
            }
            Kind::Connect if result.is_ok() => slot.open = true,
            Kind::Receive => self.received(at, result.unwrap_or(0), lease),
            Kind::Send => {
                slot.sent += u64::from(result.unwrap_or(0));
                let lease = slot.sending.take().expect("a send is in flight with its lease");
                self.arena.give_back(lease);
            }
            _ => assert!(lease.is_none(), "{token:?} brought a lease"),
        }
        let slot = &mut self.slots[at as usize];
        if slot.closing && slot.flight == 0 {
            (slot.open, slot.closing) = (false, false);
        }
    }

    fn received(&mut self, at: u32, len: u32, lease: Option<Lease>) {
        let slot = &mut self.slots[at as usize];
        let start = if slot.streaming { 0 } else { slot.start } as usize;
        let Some(lease) = lease else {
            assert!(slot.streaming && len == 0, "a receive lost its lease");
            return;
        };
        let bytes = &lease.bytes(self.arena.memory())[start..start + len as usize];
        for (place, &byte) in (slot.received..).zip(bytes) {
            assert_eq!(byte, byte_at(place), "byte {place} of slot {at}");
        }
        slot.received += u64::from(len);
        self.arena.give_back(lease);
    }

    fn peers_act(&mut self) {
        if self.clients.len() < 20 && self.random.chance(200_000) {
            let peer = self.kernel.connect(self.address);
            self.take(peer);
        }
        if let Some((peer, _from)) = self.servers.accept() {
            self.take(peer);
        }
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.below(self.clients.len() as u64) as usize;
        match self.random.below(40) {
            0 => drop(self.clients.swap_remove(at)),
            1 => self.clients.swap_remove(at).peer.reset(),
            2 => {
                let client = &mut self.clients[at];
                client.shut = true;
                client.peer.shutdown_write();
            }
            3..=20 => self.write(at),
            _ => {
                if self.clients[at].reads {
                    self.read(at);
                }
            }
        }
    }

    fn take(&mut self, peer: SimPeer) {
        let reads = !self.random.chance(100_000);
        self.clients.push(Client { peer, written: 0, read: 0, shut: false, reads });
    }

    fn write(&mut self, at: usize) {
        let len = self.random.within(1, 10_000);
        let client = &mut self.clients[at];
        if client.shut {
            return;
        }
        let bytes: Vec<u8> = (client.written..client.written + len).map(byte_at).collect();
        client.written += client.peer.write(&bytes).unwrap_or(0) as u64;
    }

    fn read(&mut self, at: usize) {
        let mut some = [0; 8192];
        let client = &mut self.clients[at];
        if let SimRead::Bytes(len) = client.peer.read(&mut some) {
            for (place, &byte) in (client.read..).zip(&some[..len]) {
                assert_eq!(byte, byte_at(place), "byte {place} heard by a peer");
            }
            client.read += len as u64;
        }
    }

    /// Everything is closed; nothing is left.
    fn rest(&mut self) {
        self.kernel.heal();
        self.driver.close_listener();
        self.sockets.clear();
        for at in 0..SLOTS {
            let slot = &self.slots[at as usize];
            if !slot.closing && (slot.open || slot.flies(Kind::Connect)) {
                self.close(at, at % 2 == 0);
            }
        }
        let deadline = self.kernel.now().after(std::time::Duration::from_secs(300));
        while self.driver.holdings().operations > 0 {
            assert!(self.kernel.now() < deadline, "{:?} stay", self.driver.holdings());
            self.turn(self.kernel.now().after(std::time::Duration::from_secs(1)));
            // Late accepts and connects that succeeded.
            for at in 0..SLOTS {
                if self.slots[at as usize].open && !self.slots[at as usize].closing {
                    self.close(at, true);
                }
            }
        }
        while let Some(lease) = self.driver.reclaim() {
            self.arena.give_back(lease);
        }
        self.sockets.clear();
        self.clients.clear();
        assert_eq!(self.posted, self.completed, "operations that did not complete once");
        assert_eq!(self.driver.holdings(), SimHoldings::default());
        assert_eq!(self.arena.outstanding(), 0, "leases that did not come back");
        while self.servers.accept().is_some() {}
        self.kernel.advance_by(std::time::Duration::from_secs(200));
        while self.servers.accept().is_some() {}
        self.kernel.advance_by(std::time::Duration::from_secs(200));
        assert_eq!(self.kernel.report().sockets, 0, "{:?}", self.kernel.report());
    }
}

#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn the_contract_holds_for_many_seeds() {
    let (mut completions, mut events) = (0, 0);
    for seed in 0..400 {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(SimOptions::stormy(seed));
            run.go(400);
            run.kernel.report()
        });
        let report = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        completions += report.completions;
        events += report.events;
    }
    eprintln!("{completions} completions, {events} events");
    assert!(completions > 100_000, "the runs do too little: {completions}");
}

#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn equal_seeds_make_equal_runs() {
    let run = |seed| {
        let mut run = Run::new(SimOptions { record: true, ..SimOptions::stormy(seed) });
        run.go(500);
        (run.kernel.trace_hash(), run.kernel.trace())
    };
    for seed in 0..20 {
        let (first, second) = (run(seed), run(seed));
        assert!(!first.1.is_empty());
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1).0, run(2).0);
}

/// An echo on 64 connections: how many things a second the simulation does.
///
/// A measurement, printed; its bound only catches what is far off, in whatever build.
#[test]
fn it_is_fast_enough() {
    const CONNECTIONS: u32 = 64;
    let kernel = SimKernel::new(SimOptions::calm(1));
    let arena = Arena::new(CONNECTIONS, 4096).expect("address space");
    let mut driver = SimDriver::new(&kernel, CONNECTIONS, arena.memory().clone());
    let mut arena = arena;
    let listener = kernel.listen((Ipv4Addr::LOCALHOST, 0).into(), CONNECTIONS);
    let address = listener.address();
    driver.listen(listener);
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| kernel.connect(address)).collect();
    for slot in 0..CONNECTIONS {
        driver.accept(Token::new(Kind::Accept, 1, slot), Into::Slot);
    }
    let mut leases: Vec<Option<Lease>> = (0..CONNECTIONS).map(|_| None).collect();
    let mut out = Vec::with_capacity(64);
    let mut echoed = 0_u32;
    let start = Instant::now();
    while echoed < 40_000 {
        driver.wait(None, &mut out).expect("a simulation goes on");
        for completion in out.drain(..) {
            let slot = completion.token.slot();
            let count = completion.result.expect("a calm network");
            match completion.token.kind() {
                Kind::Accept => {
                    let _ = driver.accepted(completion.token);
                    let lease = arena.lease().expect("a block for each");
                    driver.receive(Token::new(Kind::Receive, 1, slot), lease, 0, false);
                }
                Kind::Receive => {
                    let lease = completion.lease.expect("it comes back");
                    let span = Span { block: lease.block(), start: 0, len: count };
                    leases[slot as usize] = Some(lease);
                    driver.send(Token::new(Kind::Send, 1, slot), &[span], true);
                }
                _ => {
                    echoed += 1;
                    let lease = leases[slot as usize].take().expect("a send has its lease");
                    driver.receive(Token::new(Kind::Receive, 1, slot), lease, 0, false);
                }
            }
        }
        let mut some = [0; 64];
        for peer in &mut peers {
            if peer.read(&mut some) != SimRead::Nothing || echoed < CONNECTIONS {
                let _ = peer.write(&[7; 64]).expect("a calm network");
            }
        }
    }
    let report = kernel.report();
    let steps = report.events + report.completions;
    let rate = steps as f64 / start.elapsed().as_secs_f64();
    eprintln!("{rate:.0} steps/s: {} events, {} completions", report.events, report.completions);
    assert!(rate > 10_000.0, "{rate} steps/s");
}
