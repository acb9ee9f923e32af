//! What all drivers and peers of a simulation share: the clock, the events, the listeners.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::faults::Faults;
use super::network::Ports;
use super::options::SimOptions;
use super::random::Random;
use super::resources::Resources;
use super::socket::{Owner, SocketId, Sockets};
use super::trace::Trace;
use crate::driver::Nanos;

/// Something that happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A connect's first segment arrives at the listener.
    Syn(SocketId),
    /// Its answer arrives at the client.
    Connected(SocketId),
    /// Or this does.
    Fails(SocketId, i32),
    /// Bytes of this sender, or its end of stream, arrive.
    Deliver(SocketId),
    /// A reset arrives at this end.
    Reset(SocketId),
    /// The connection fails at this end.
    Kill(SocketId, i32),
    /// A driver is woken.
    Wake(u32),
}

/// An event in the order of its time; among equals, of its making.
#[derive(Debug, PartialEq, Eq)]
struct Timed {
    at: Nanos,
    number: u64,
    event: Event,
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A listening address.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    /// How many may wait in the queue: as granted, and what the system admits beyond.
    pub(super) admits: u32,
    /// Whether a peer listens: what is queued is made of another process' memory.
    pub(super) of_peer: bool,
    pub(super) queue: VecDeque<SocketId>,
    /// The driver that is told; none where a peer listens.
    pub(super) driver: Option<u32>,
}

/// What the kernel knows of a driver.
#[derive(Debug)]
pub(super) struct DriverEnd {
    pub(super) woken: Arc<AtomicBool>,
    /// Slots whose socket has changed.
    pub(super) stirred: Vec<u32>,
    /// The listener's queue has grown.
    pub(super) arrivals: bool,
    /// When it has a completion to give, at the earliest.
    pub(super) due: Option<Nanos>,
    /// Until when it would like to wait.
    pub(super) until: Option<Nanos>,
}

/// The shared part of a simulation.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) options: SimOptions,
    pub(super) random: Random,
    pub(super) now: Nanos,
    events: BinaryHeap<Reverse<Timed>>,
    /// Events that ever were made.
    events_made: u64,
    /// Events that happened.
    pub(super) events_done: u64,
    pub(super) sockets: Sockets,
    pub(super) listeners: Vec<Option<Listener>>,
    next_listening_port: u16,
    pub(super) ports: BTreeMap<IpAddr, Ports>,
    pub(super) drivers: Vec<DriverEnd>,
    pub(super) faults: Faults,
    pub(super) trace: Trace,
    pub(super) resources: Resources,
    pub(super) dropped_syns: u64,
    pub(super) stale_completions: u64,
    /// Sockets that were handed over and dropped, from whatever thread.
    pub(super) dropped: Arc<Dropped>,
}

/// Sockets that nobody adopted, to be closed at the kernel's next step.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Whether there is any: looked at in each step, without the lock.
    any: AtomicBool,
    sockets: Mutex<Vec<SocketId>>,
}

impl Dropped {
    pub(super) fn push(&self, id: SocketId) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.any.store(true, Ordering::Release);
    }
}

impl Kernel {
    pub(super) fn new(options: SimOptions) -> Self {
        Self {
            random: Random::new(options.seed),
            // Not 0: a time of 0 is in the past, as callers expect.
            now: Nanos(1_000_000),
            events: BinaryHeap::new(),
            events_made: 0,
            events_done: 0,
            sockets: Sockets::new(options.system.is_windows()),
            listeners: Vec::new(),
            next_listening_port: 1024,
            ports: BTreeMap::new(),
            drivers: Vec::new(),
            faults: Faults::new(options.fault_per_million, options.system.errors),
            trace: Trace::new(options.record),
            resources: Resources::default(),
            dropped_syns: 0,
            stale_completions: 0,
            dropped: Arc::default(),
            options,
        }
    }

    pub(super) fn schedule(&mut self, at: Nanos, event: Event) {
        self.events_made += 1;
        let number = self.events_made;
        self.events.push(Reverse(Timed { at: at.max(self.now), number, event }));
    }

    pub(super) fn after_latency(&mut self, event: Event) {
        let nanos = |duration: &std::time::Duration| duration.as_nanos() as u64;
        let latency = self
            .random
            .within(nanos(self.options.latency.start()), nanos(self.options.latency.end()));
        self.schedule(Nanos(self.now.0.saturating_add(latency)), event);
    }

    /// When the next event happens.
    pub(super) fn next_event(&self) -> Option<Nanos> {
        self.events.peek().map(|Reverse(timed)| timed.at)
    }

    /// Lets everything happen whose time has come.
    pub(super) fn run(&mut self) {
        self.close_dropped();
        while let Some(Reverse(timed)) = self.events.peek() {
            if timed.at > self.now {
                return;
            }
            let event = timed.event;
            self.events.pop();
            self.events_done += 1;
            match event {
                Event::Syn(client) => self.syn(client),
                Event::Connected(client) => self.connected(client),
                Event::Fails(client, code) => self.fails(client, code),
                Event::Deliver(from) => self.deliver(from),
                Event::Reset(to) => self.reset(to),
                Event::Kill(socket, code) => self.kill(socket, code),
                Event::Wake(driver) => {
                    self.drivers[driver as usize].woken.store(true, Ordering::Release);
                }
            }
        }
    }

    /// Moves the clock, never back.
    pub(super) fn advance_to(&mut self, time: Nanos) {
        self.now = self.now.max(time);
    }

    /// The owner shall look at the socket.
    pub(super) fn tell(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.find(id) else { return };
        if let (Owner::Slot { driver, slot }, false) = (socket.owner, socket.told) {
            socket.told = true;
            self.drivers[driver as usize].stirred.push(slot);
        }
    }

    /// A new listener, with so much of a backlog granted; port 0 takes the next free one.
    pub(super) fn listen(&mut self, mut address: SocketAddr, granted: u32, of_peer: bool) -> usize {
        while address.port() == 0 {
            let port = self.next_listening_port;
            self.next_listening_port = if port >= 32_767 { 1024 } else { port + 1 };
            let candidate = SocketAddr::new(address.ip(), port);
            if self.listener_at(candidate).is_none() {
                address = candidate;
            }
        }
        assert!(self.listener_at(address).is_none(), "{address} is in use (EADDRINUSE)");
        let admits = granted + self.options.system.backlog_extra;
        let listener = Listener { address, admits, of_peer, queue: VecDeque::new(), driver: None };
        match self.listeners.iter().position(Option::is_none) {
            Some(at) => {
                self.listeners[at] = Some(listener);
                at
            }
            None => {
                self.listeners.push(Some(listener));
                self.listeners.len() - 1
            }
        }
    }

    /// Who listens at an address: exactly there, or at all addresses.
    pub(super) fn listener_at(&self, address: SocketAddr) -> Option<usize> {
        self.listeners.iter().position(|listener| {
            listener.as_ref().is_some_and(|listener| {
                let own = listener.address;
                own == address
                    || own.port() == address.port()
                        && own.ip().is_unspecified()
                        && own.is_ipv4() == address.is_ipv4()
            })
        })
    }

    /// Those that wait in the queue are reset.
    pub(super) fn close_listener(&mut self, at: usize) {
        if let Some(listener) = self.listeners[at].take() {
            for queued in listener.queue {
                self.abort(queued);
            }
        }
    }

    fn close_dropped(&mut self) {
        if !self.dropped.any.load(Ordering::Acquire) {
            return;
        }
        self.dropped.any.store(false, Ordering::Relaxed);
        let dropped = self.dropped.clone();
        let mut sockets = dropped.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        for id in sockets.drain(..) {
            self.close(id);
        }
    }
}
