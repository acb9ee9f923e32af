//! The simulated driver: posting, waiting, telling.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SimKernel;
use super::faults::{Operation, failure, on_windows};
use super::kernel::{DriverEnd, Event, Kernel};
use super::oddities::{Ghosts, Keys};
use super::peer::{SimListener, SimSocket};
use super::rules::Rules;
use super::slot::{Accepting, Handed, Receive, Send, Slot};
use super::socket::{Owner, SocketId};
use crate::buffer::{Lease, Memory, Span};
use crate::driver::{
    Accepted, Completion, Driver, Failure, Features, Into, Kind, MAX_HANDED, Nanos, Token, Wake,
};

/// A [`Driver`] on a [`SimKernel`]: virtual time, chance from a seed, and every rule of the
/// contract asserted. A caller that breaks one panics with the tokens concerned.
///
/// Its `wait` never blocks: it moves the kernel's clock to what comes next. When nothing ever
/// will, and `until` is `None`, it returns with nothing, and [`is_deadlocked`](Self::is_deadlocked).
#[derive(Debug)]
pub struct SimDriver {
    pub(super) kernel: Rc<RefCell<Kernel>>,
    /// The driver's number in its kernel.
    pub(super) id: u32,
    pub(super) memory: Arc<Memory>,
    features: Features,
    pub(super) rules: Rules,
    pub(super) slots: Vec<Slot>,
    pub(super) handed: Vec<Handed>,
    posted: Vec<Posted>,
    /// `posted`, while it is worked on: its memory is kept.
    starting: Vec<Posted>,
    /// Slots that the kernel told of, while they are worked on.
    pub(super) stirred: Vec<u32>,
    pub(super) listener: Option<usize>,
    pub(super) accepts: VecDeque<Accepting>,
    pub(super) provided: VecDeque<Lease>,
    /// Completions that come before all others: of sends and receives at once.
    prompt: VecDeque<Completion>,
    due: BinaryHeap<Reverse<Due>>,
    dues: u64,
    woken: Arc<AtomicBool>,
    deadlocked: bool,
    /// Successful accepts that were given and not asked about.
    unclaimed: Vec<Token>,
    /// For hashing what is sent: its memory is kept.
    pub(super) scratch: Vec<u8>,
    pub(super) ghosts: Ghosts,
    pub(super) keys: Keys,
}

/// What was posted and is not carried out yet.
#[derive(Debug)]
pub(super) enum Posted {
    Accept(Token, Into),
    Connect(Token, SocketAddr, Option<SocketAddr>),
    Park(Token),
    Receive(Token),
    Send(Token),
    Stop(Token),
    HalfClose(Token),
    Close(Token),
    Abort(Token),
}

/// A completion, and when it is told.
#[derive(Debug)]
struct Due {
    at: Nanos,
    number: u64,
    completion: Completion,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

/// What a simulated driver holds. All zero after a clean end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimHoldings {
    /// Slots that are not free, as the caller sees it.
    pub slots: usize,
    /// Operations that were posted and have not completed.
    pub operations: usize,
    /// Leases: of receives in flight, and provided.
    pub leases: usize,
}

#[derive(Debug)]
struct SimWaker(Arc<AtomicBool>);

impl Wake for SimWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl SimDriver {
    /// A driver with slots `0..slots`, for leases of the arena that `memory` belongs to.
    ///
    /// Allocates all that it needs, about 700 bytes a slot; only the queues of an overdriven
    /// simulation grow later.
    pub fn new(kernel: &SimKernel, slots: u32, memory: Arc<Memory>) -> Self {
        let woken = Arc::new(AtomicBool::new(false));
        let mut shared = kernel.shared.borrow_mut();
        let id = shared.drivers.len() as u32;
        shared.drivers.push(DriverEnd {
            woken: woken.clone(),
            stirred: Vec::with_capacity(slots as usize),
            arrivals: false,
            due: None,
            until: None,
        });
        let features = Features {
            name: "sim",
            streams: shared.options.streams,
            notes: vec![format!("seed: {}", shared.options.seed)],
        };
        drop(shared);
        Self {
            kernel: kernel.shared.clone(),
            id,
            features,
            rules: Rules::new(slots, &memory),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            handed: (0..MAX_HANDED).map(|_| Handed::default()).collect(),
            provided: VecDeque::with_capacity(memory.blocks() as usize),
            memory,
            posted: Vec::with_capacity(slots as usize),
            starting: Vec::with_capacity(slots as usize),
            stirred: Vec::with_capacity(slots as usize),
            listener: None,
            accepts: VecDeque::with_capacity(slots as usize),
            prompt: VecDeque::with_capacity(slots as usize),
            due: BinaryHeap::with_capacity(slots as usize),
            dues: 0,
            woken,
            deadlocked: false,
            unclaimed: Vec::with_capacity(slots as usize),
            scratch: Vec::new(),
            ghosts: Ghosts::default(),
            keys: Keys::default(),
        }
    }

    /// Whether the last wait was for ever, and nothing ever would have come.
    pub fn is_deadlocked(&self) -> bool {
        self.deadlocked
    }

    /// What it holds now.
    pub fn holdings(&self) -> SimHoldings {
        SimHoldings {
            slots: self.rules.occupied,
            operations: self.rules.in_flight,
            leases: self.rules.lent,
        }
    }

    /// Operations that were posted and have not completed, closes and aborts not counted.
    pub fn in_flight_but_closes(&self) -> usize {
        self.rules.in_flight - self.rules.closes
    }

    /// Wakes it at a time of the virtual clock.
    pub fn wake_at(&self, time: Nanos) {
        self.kernel.borrow_mut().schedule(time, Event::Wake(self.id));
    }

    fn carry_out_posted(&mut self, kernel: &mut Kernel) {
        std::mem::swap(&mut self.posted, &mut self.starting);
        let mut starting = std::mem::take(&mut self.starting);
        let keyed = kernel.options.system.reuses_sockets;
        for posted in starting.drain(..) {
            if keyed {
                self.associate(&posted);
            }
            match posted {
                Posted::Accept(token, into) => self.start_accept(kernel, token, into),
                Posted::Connect(token, remote, source) => {
                    self.start_connect(kernel, token, remote, source);
                }
                Posted::Park(token) => self.start_park(kernel, token),
                Posted::Receive(token) => self.start_receive(kernel, token),
                Posted::Send(token) => self.start_send(kernel, token),
                Posted::Stop(token) => self.carry_out_stop(kernel, token),
                Posted::HalfClose(token) => self.carry_out_half_close(kernel, token),
                Posted::Close(token) => self.carry_out_close(kernel, token, false),
                Posted::Abort(token) => self.carry_out_close(kernel, token, true),
            }
        }
        self.starting = starting;
    }

    /// Looks at the sockets that have changed.
    fn progress(&mut self, kernel: &mut Kernel) {
        let end = &mut kernel.drivers[self.id as usize];
        if std::mem::take(&mut end.arrivals) {
            self.try_accepts(kernel);
        }
        let mut stirred = std::mem::take(&mut self.stirred);
        std::mem::swap(&mut stirred, &mut kernel.drivers[self.id as usize].stirred);
        for slot in stirred.drain(..) {
            self.look_at(kernel, slot);
        }
        self.stirred = stirred;
    }

    /// Completes an operation: now, or late, as chance has it; the completions of a stream in
    /// their order.
    pub(super) fn tell(&mut self, kernel: &mut Kernel, mut completion: Completion) {
        self.settle(kernel, &mut completion);
        let mut at = kernel.now;
        if kernel.random.chance(kernel.options.late_per_million) {
            let most = kernel.options.lateness.as_nanos() as u64;
            at = Nanos(at.0.saturating_add(kernel.random.within(0, most)));
        }
        if completion.token.kind() == Kind::Receive {
            let slot = &mut self.slots[completion.token.slot() as usize];
            at = at.max(slot.received_at);
            slot.received_at = at;
        }
        self.dues += 1;
        self.due.push(Reverse(Due { at, number: self.dues, completion }));
    }

    /// Completes a send or receive that was to be carried out at once.
    pub(super) fn tell_at_once(&mut self, kernel: &mut Kernel, mut completion: Completion) {
        self.settle(kernel, &mut completion);
        self.prompt.push_back(completion);
    }

    /// What an operation had taken is given back, and its failure put in the system's words.
    fn settle(&mut self, kernel: &mut Kernel, completion: &mut Completion) {
        let system = &kernel.options.system;
        if let Err(failure) = &mut completion.result
            && system.is_windows()
        {
            *failure = on_windows(*failure);
        }
        if completion.more || !system.counts_operations() {
            return;
        }
        let (at, kind) = (completion.token.slot() as usize, completion.token.kind());
        let charge = if kind == Kind::HandOver {
            &mut self.handed[at].charge
        } else {
            &mut self.slots[at].charges[kind as usize - 1]
        };
        kernel.refund(std::mem::take(charge));
    }

    fn give_due(&mut self, kernel: &mut Kernel, out: &mut Vec<Completion>, room: usize) -> usize {
        let mut given = 0;
        while given < room {
            let completion = match self.prompt.pop_front() {
                Some(completion) => completion,
                None => match self.due.peek() {
                    Some(Reverse(due)) if due.at <= kernel.now => {
                        let Some(Reverse(due)) = self.due.pop() else { break };
                        due.completion
                    }
                    _ => break,
                },
            };
            let emptied = self.rules.give(&completion);
            self.note_given(kernel, &completion, emptied);
            let accepts = matches!(completion.token.kind(), Kind::Accept | Kind::HandOver);
            if accepts && completion.result.is_ok() {
                self.unclaimed.push(completion.token);
            }
            kernel.trace.add(kernel.now, self.id, &completion);
            out.push(completion);
            given += 1;
        }
        given
    }

    fn next_due(&self) -> Option<Nanos> {
        if self.prompt.is_empty() {
            self.due.peek().map(|Reverse(due)| due.at)
        } else {
            Some(Nanos(0))
        }
    }
}

impl Completion {
    pub(super) fn done(token: Token, count: u32) -> Self {
        Self { token, result: Ok(count), lease: None, more: false }
    }

    pub(super) fn failed(token: Token, code: i32) -> Self {
        Self::broken(token, failure(code))
    }

    pub(super) fn broken(token: Token, failure: Failure) -> Self {
        Self { token, result: Err(failure), lease: None, more: false }
    }
}

impl Driver for SimDriver {
    type Listener = SimListener;
    type Socket = SimSocket;

    fn features(&self) -> &Features {
        &self.features
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(SimWaker(self.woken.clone()))
    }

    fn now(&self) -> Nanos {
        self.kernel.borrow().now
    }

    fn listen(&mut self, listener: SimListener) {
        assert!(self.listener.is_none(), "listen: the driver has a listener already");
        let mut kernel = self.kernel.borrow_mut();
        let known = kernel.listeners[listener.at].as_mut().expect("its handle owns the listener");
        assert!(known.driver.is_none(), "listen: {} was given to a driver already", known.address);
        known.driver = Some(self.id);
        kernel.drivers[self.id as usize].arrivals = true;
        drop(kernel);
        self.listener = Some(listener.at);
    }

    fn close_listener(&mut self) {
        let shared = self.kernel.clone();
        let mut kernel = shared.borrow_mut();
        // What was posted before is carried out before.
        self.carry_out_posted(&mut kernel);
        if let Some(at) = self.listener.take() {
            kernel.close_listener(at);
        }
        self.cancel_accepts(&mut kernel);
    }

    fn accept(&mut self, token: Token, into: Into) {
        match into {
            Into::Slot => self.rules.accept(token),
            Into::Socket => self.rules.accept_handed(token),
        }
        self.posted.push(Posted::Accept(token, into));
    }

    fn accepted(&mut self, token: Token) -> Accepted<SimSocket> {
        let at = self.unclaimed.iter().position(|unclaimed| *unclaimed == token);
        let at = at.unwrap_or_else(|| {
            panic!("accepted: {token:?} has not succeeded since the last wait, or was asked about")
        });
        self.unclaimed.swap_remove(at);
        let (peer, socket) = if token.kind() == Kind::HandOver {
            let Handed { peer, socket, .. } =
                std::mem::take(&mut self.handed[token.slot() as usize]);
            (peer, socket)
        } else {
            (self.slots[token.slot() as usize].peer.take(), None)
        };
        Accepted { peer: peer.expect("a successful accept left it"), socket }
    }

    fn discard(&mut self, token: Token) {
        // Their sockets close as they are dropped.
        self.ghosts.forget(token);
        let brought = token.kind() == Kind::HandOver && self.unclaimed.contains(&token);
        if brought {
            let _ = self.accepted(token);
        }
    }

    fn refuse(&mut self, socket: SimSocket, message: &[u8]) {
        let mut kernel = self.kernel.borrow_mut();
        let Some(id) = socket.take(&kernel) else { return };
        if message.is_empty() {
            return kernel.abort(id);
        }
        let most = kernel.options.send_buffer_bytes as usize;
        if let Some(socket) = kernel.sockets.find(id) {
            let taken = message.len().min(most);
            socket.outgoing.end().extend_from_slice(&message[..taken]);
        }
        kernel.kick(id);
        kernel.close(id);
    }

    fn adopt(&mut self, slot: u32, socket: SimSocket) -> Result<(), Failure> {
        let shared = self.kernel.clone();
        let mut kernel = shared.borrow_mut();
        let id = socket.take(&kernel).expect("a socket that was not dropped holds its id");
        if let Some((fault, _)) = kernel.draw(Operation::Adopt) {
            self.rules.adopt(slot, false);
            kernel.close(id);
            return Err(fault.failure());
        }
        self.rules.adopt(slot, true);
        self.slots[slot as usize].socket = Some(id);
        if let Some(socket) = kernel.sockets.find(id) {
            socket.owner = Owner::Slot { driver: self.id, slot };
        }
        Ok(())
    }

    fn connect(&mut self, token: Token, remote: SocketAddr, source: Option<SocketAddr>) {
        self.rules.connect(token);
        self.posted.push(Posted::Connect(token, remote, source));
    }

    fn park(&mut self, token: Token) {
        self.rules.park(token);
        self.posted.push(Posted::Park(token));
    }

    fn receive(&mut self, token: Token, lease: Lease, start: u32, at_once: bool) {
        self.rules.receive(token, &lease, start);
        self.slots[token.slot() as usize].receive =
            Some(Receive { token, into: Some((lease, start)), at_once });
        self.posted.push(Posted::Receive(token));
    }

    fn stream(&mut self, token: Token) {
        assert!(self.features.streams, "{token:?}: this driver has no streams");
        self.rules.stream(token);
        self.slots[token.slot() as usize].receive =
            Some(Receive { token, into: None, at_once: false });
        self.posted.push(Posted::Receive(token));
    }

    fn stop(&mut self, token: Token) {
        self.rules.stop(token);
        self.posted.push(Posted::Stop(token));
    }

    fn provide(&mut self, lease: Lease) {
        self.rules.provide(&lease);
        self.provided.push_back(lease);
    }

    fn reclaim(&mut self) -> Option<Lease> {
        let slots = &self.slots;
        let stream = self.rules.receiving().find(|token| {
            let receive = slots[token.slot() as usize].receive.as_ref();
            receive.is_some_and(|receive| receive.into.is_none())
        });
        assert!(stream.is_none(), "reclaim: {stream:?} is in flight");
        let lease = self.provided.pop_back()?;
        self.rules.reclaimed(&lease);
        Some(lease)
    }

    fn send(&mut self, token: Token, spans: &[Span], at_once: bool) {
        self.rules.send(token, spans);
        let watch = self.kernel.borrow().options.watch_sends;
        let watch = watch.then_some((&*self.memory, &mut self.scratch));
        let send = Send::new(token, spans, at_once, watch);
        self.slots[token.slot() as usize].send = Some(send);
        self.posted.push(Posted::Send(token));
    }

    fn half_close(&mut self, token: Token) {
        self.rules.half_close(token);
        self.posted.push(Posted::HalfClose(token));
    }

    fn close(&mut self, token: Token) {
        self.rules.close(token);
        self.posted.push(Posted::Close(token));
    }

    fn abort(&mut self, token: Token) {
        self.rules.close(token);
        self.posted.push(Posted::Abort(token));
    }

    fn wait(&mut self, until: Option<Nanos>, out: &mut Vec<Completion>) -> io::Result<Nanos> {
        assert!(self.unclaimed.is_empty(), "accepted was not called for {:?}", self.unclaimed);
        self.ghosts.assert_forgotten();
        self.keys.begin_wait();
        let room = (out.capacity() - out.len()).max(1);
        let shared = self.kernel.clone();
        let mut kernel = shared.borrow_mut();
        self.deadlocked = false;
        let after = kernel.now.after(kernel.options.wait_cost);
        kernel.advance_to(after);
        kernel.run();
        self.carry_out_posted(&mut kernel);
        loop {
            self.progress(&mut kernel);
            let given = self.give_due(&mut kernel, out, room);
            let woken = self.woken.swap(false, Ordering::Acquire);
            if given > 0 || woken || until.is_some_and(|until| until <= kernel.now) {
                break;
            }
            if kernel.options.held_clock {
                break;
            }
            let next = [kernel.next_event(), self.next_due(), until].into_iter().flatten().min();
            let Some(next) = next else {
                self.deadlocked = true;
                break;
            };
            kernel.advance_to(next);
            kernel.run();
        }
        self.haunt(&mut kernel, out, room);
        let (due, now) = (self.next_due(), kernel.now);
        let end = &mut kernel.drivers[self.id as usize];
        (end.due, end.until) = (due, until);
        Ok(now)
    }
}

impl Drop for SimDriver {
    /// The kernel closes what is left, as when a process ends.
    fn drop(&mut self) {
        let Ok(mut kernel) = self.kernel.try_borrow_mut() else { return };
        for slot in &mut self.slots {
            if let Some(id) = slot.socket.take() {
                kernel.close(id);
            }
        }
        if let Some(at) = self.listener.take() {
            kernel.close_listener(at);
        }
        let end = &mut kernel.drivers[self.id as usize];
        (end.due, end.until) = (None, None);
    }
}

impl SimDriver {
    /// The socket of a slot, if it exists.
    pub(super) fn socket_of(&self, slot: u32) -> Option<SocketId> {
        self.slots[slot as usize].socket
    }
}
