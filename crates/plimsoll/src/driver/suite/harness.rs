//! What the behaviours are told with: opening, posting, turning until something holds.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Family, Heard, Peer, PeerListener, Plan, World};
use crate::buffer::{Lease, Span};
use crate::driver::{Accepted, Completion, Driver, Failure, Fault, Into, Kind, Nanos, Token};

/// How long a test waits for what must come: long enough for a retried SYN on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long one wait of a loop that also watches peers may take.
const SLICE: Duration = Duration::from_millis(1);

/// A world, and the completions that nobody has asked for yet.
pub(super) struct Harness<W: World> {
    pub(super) world: W,
    pub(super) done: Vec<Completion>,
    pub(super) address: Option<SocketAddr>,
    accepted: Vec<(Token, Accepted<<W::D as Driver>::Socket>)>,
    generations: Vec<u64>,
}

impl<W: World> Harness<W> {
    /// A world as planned, whose driver does not listen.
    pub(super) fn idle(plan: Plan) -> Self {
        Self::on(W::new(plan), plan)
    }

    /// A world whose driver listens, on IPv4 with a roomy backlog.
    pub(super) fn listening(plan: Plan) -> Self {
        let mut harness = Self::idle(plan);
        harness.listen(Family::V4, 1024);
        harness
    }

    pub(super) fn on(world: W, plan: Plan) -> Self {
        Self {
            world,
            done: Vec::new(),
            address: None,
            accepted: Vec::new(),
            generations: vec![1; plan.slots as usize],
        }
    }

    pub(super) fn listen(&mut self, family: Family, backlog: u32) {
        let (listener, address) = self.world.listener(family, backlog);
        self.world.driver().listen(listener);
        self.address = Some(address);
    }

    pub(super) fn driver(&mut self) -> &mut W::D {
        self.world.driver()
    }

    /// The token of an operation of the slot's present use.
    pub(super) fn token(&self, kind: Kind, slot: u32) -> Token {
        Token::new(kind, self.generations[slot as usize], slot)
    }

    /// What a completed accept brought: asked for as soon as it completed, as the contract has it.
    #[track_caller]
    pub(super) fn accepted(&mut self, token: Token) -> Accepted<<W::D as Driver>::Socket> {
        let at = self.accepted.iter().position(|(accept, _)| *accept == token);
        self.accepted.swap_remove(at.expect("the accept has succeeded")).1
    }

    /// One wait; what completed is in `done`.
    pub(super) fn turn(&mut self, until: Nanos) {
        let mut out = Vec::with_capacity(256);
        self.world.driver().wait(Some(until), &mut out).expect("the driver goes on");
        for completion in &out {
            let accepts = matches!(completion.token.kind(), Kind::Accept | Kind::HandOver);
            if accepts && completion.result.is_ok() {
                let brought = self.world.driver().accepted(completion.token);
                self.accepted.push((completion.token, brought));
            }
        }
        self.done.append(&mut out);
    }

    /// Turns until `holds` gives something; panics after a generous deadline.
    #[track_caller]
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let deadline = self.driver().now().after(DEADLINE);
        loop {
            if let Some(value) = holds(self) {
                return value;
            }
            let now = self.driver().now();
            assert!(now < deadline, "not within {DEADLINE:?}: {what}; done: {:?}", self.done);
            self.turn(now.after(SLICE));
        }
    }

    /// Turns for a while, to see that something does *not* happen.
    pub(super) fn linger(&mut self, duration: Duration) {
        let end = self.driver().now().after(duration);
        loop {
            let now = self.driver().now();
            if now >= end {
                return;
            }
            self.turn(end.min(now.after(SLICE)));
        }
    }

    /// The next completion of the token, waited for.
    #[track_caller]
    pub(super) fn completion(&mut self, token: Token) -> Completion {
        self.until(&format!("{token:?} completes"), |harness| harness.try_completion(token))
    }

    /// The next completion of the token, if it is there.
    pub(super) fn try_completion(&mut self, token: Token) -> Option<Completion> {
        let at = self.done.iter().position(|completion| completion.token == token)?;
        Some(self.done.remove(at))
    }

    /// Accepts into a slot; gives the token, not yet completed.
    pub(super) fn post_accept(&mut self, slot: u32) -> Token {
        let token = self.token(Kind::Accept, slot);
        self.driver().accept(token, Into::Slot);
        token
    }

    /// A peer, connected to the driver's slot.
    #[track_caller]
    pub(super) fn open(&mut self, slot: u32) -> W::Peer {
        let token = self.post_accept(slot);
        let address = self.address.expect("the harness listens");
        let mut peer = self.world.peer(address);
        let mut accepted = false;
        self.until("the accept succeeds and the peer is connected", |harness| {
            if let Some(completion) = harness.try_completion(token) {
                assert_eq!(completion.result, Ok(0), "of {token:?}");
                let brought = harness.accepted(token);
                assert_eq!(brought.peer, peer.address());
                assert!(brought.socket.is_none(), "the connection is in the slot");
                accepted = true;
            }
            let connected = peer.connected().inspect(|outcome| assert_eq!(*outcome, Ok(())));
            (accepted && connected.is_some()).then_some(())
        });
        peer
    }

    /// The next connection of a listening peer, and where it came from.
    #[track_caller]
    pub(super) fn arrival(&mut self, listener: &mut W::PeerListener) -> (W::Peer, SocketAddr) {
        self.until("a connection arrives at the peer", |_| listener.accept())
    }

    #[track_caller]
    pub(super) fn lease(&mut self) -> Lease {
        self.world.arena().lease().expect("the arena has a block")
    }

    pub(super) fn give_back(&mut self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.world.arena().give_back(lease);
        }
    }

    /// A lease on a block that begins with the bytes, and the span of them.
    #[track_caller]
    pub(super) fn block_of(&mut self, bytes: &[u8]) -> (Lease, Span) {
        let mut lease = self.lease();
        let memory = self.world.arena().memory().clone();
        lease.bytes_mut(&memory)[..bytes.len()].copy_from_slice(bytes);
        let span = Span { block: lease.block(), start: 0, len: bytes.len() as u32 };
        (lease, span)
    }

    /// The first bytes of a block, from `start`.
    pub(super) fn bytes_of(&mut self, lease: &Lease, start: u32, len: u32) -> Vec<u8> {
        let memory = self.world.arena().memory().clone();
        lease.bytes(&memory)[start as usize..(start + len) as usize].to_vec()
    }

    /// Posts a receive into a new lease, from the block's start.
    pub(super) fn post_receive(&mut self, slot: u32) -> Token {
        let token = self.token(Kind::Receive, slot);
        let lease = self.lease();
        self.driver().receive(token, lease, 0, false);
        token
    }

    /// Receives once: the bytes, or the failure. Gives the lease back.
    #[track_caller]
    pub(super) fn receive(&mut self, slot: u32) -> Result<Vec<u8>, Failure> {
        let token = self.post_receive(slot);
        let completion = self.completion(token);
        assert!(!completion.more, "a single receive completes once");
        let lease = completion.lease.expect("the lease comes back, whatever the outcome");
        let outcome = completion.result.map(|len| self.bytes_of(&lease, 0, len));
        self.give_back(Some(lease));
        outcome
    }

    /// Receives until so many bytes have come, or the end of the stream.
    #[track_caller]
    pub(super) fn receive_all(&mut self, slot: u32, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.receive(slot).expect("bytes come") {
                more if more.is_empty() => break,
                more => bytes.extend(more),
            }
        }
        bytes
    }

    /// Sends all the bytes, as many sends as it takes.
    #[track_caller]
    pub(super) fn send_all(&mut self, slot: u32, bytes: &[u8]) {
        let (lease, mut span) = self.block_of(bytes);
        while span.len > 0 {
            let send = self.token(Kind::Send, slot);
            self.driver().send(send, &[span], false);
            let taken = self.completion(send).result.expect("the send goes well");
            assert!(taken >= 1 && taken <= span.len, "{taken} of {}", span.len);
            span.start += taken;
            span.len -= taken;
        }
        self.give_back(Some(lease));
    }

    /// Fills the peer, which does not read, until a send at once would block. Gives the bytes
    /// taken; their content is the block's, repeated.
    #[track_caller]
    pub(super) fn fill(&mut self, slot: u32) -> u64 {
        let bytes = pattern(self.world.arena().block_bytes(), 0);
        let (lease, whole) = self.block_of(&bytes);
        let mut taken = 0_u64;
        loop {
            let start = (taken % u64::from(whole.len)) as u32;
            let span = Span { start, len: whole.len - start, ..whole };
            let send = self.token(Kind::Send, slot);
            self.driver().send(send, &[span], true);
            match self.completion(send).result {
                Ok(more) => taken += u64::from(more),
                Err(failure) if failure.fault == Fault::WouldBlock => break,
                Err(failure) => panic!("filling: {failure}"),
            }
            assert!(taken < 1 << 30, "a peer that reads nothing takes a gigabyte");
        }
        self.give_back(Some(lease));
        taken
    }

    /// Writes all the bytes from the peer; nothing is lost while the driver's side does not read
    /// as long as they fit into the kernel's buffers.
    #[track_caller]
    pub(super) fn write_all(&mut self, peer: &mut W::Peer, mut bytes: &[u8]) {
        self.until("the peer writes all", |_| {
            let taken = peer.write(bytes).expect("the peer is connected");
            bytes = &bytes[taken..];
            bytes.is_empty().then_some(())
        });
    }

    /// What the peer hears until `len` bytes, the end, or a reset.
    #[track_caller]
    pub(super) fn hear(&mut self, peer: &mut W::Peer, len: usize) -> (Vec<u8>, Option<Heard>) {
        let mut bytes = Vec::new();
        let mut some = vec![0; 64 << 10];
        let last = self.until("the peer hears it", |_| {
            while bytes.len() < len {
                // Not more than was asked for: the rest is for whoever asks next.
                let most = some.len().min(len - bytes.len());
                match peer.read(&mut some[..most]) {
                    Heard::Nothing => return None,
                    Heard::Bytes(count) => bytes.extend_from_slice(&some[..count]),
                    end @ (Heard::End | Heard::Reset) => return Some(Some(end)),
                }
            }
            Some(None)
        });
        (bytes, last)
    }

    /// What the peer hears until the end or a reset, and which of them it was.
    #[track_caller]
    pub(super) fn hear_end(&mut self, peer: &mut W::Peer) -> (Vec<u8>, Heard) {
        let (bytes, end) = self.hear(peer, usize::MAX);
        (bytes, end.expect("nobody hears so many bytes"))
    }

    /// Closes the slot, takes its close's completion, and makes the slot free for its next use.
    /// No other operation of it may be in flight.
    #[track_caller]
    pub(super) fn close(&mut self, slot: u32) {
        let token = self.token(Kind::Close, slot);
        self.driver().close(token);
        self.closed(slot);
    }

    /// As `close`, with a reset.
    #[track_caller]
    pub(super) fn abort(&mut self, slot: u32) {
        let token = self.token(Kind::Close, slot);
        self.driver().abort(token);
        self.closed(slot);
    }

    /// Waits for the close that was posted.
    #[track_caller]
    pub(super) fn closed(&mut self, slot: u32) {
        let token = self.token(Kind::Close, slot);
        let completion = self.completion(token);
        assert!(completion.result.is_ok(), "{completion:?}");
        assert!(completion.lease.is_none() && !completion.more, "{completion:?}");
        self.next_use(slot);
    }

    /// The slot's next use begins.
    pub(super) fn next_use(&mut self, slot: u32) {
        self.generations[slot as usize] += 1;
    }

    /// Ends the test: nothing is left over, of completions and of leases.
    #[track_caller]
    pub(super) fn end(mut self) {
        if self.address.is_some() {
            self.driver().close_listener();
        }
        self.linger(3 * SLICE);
        assert!(self.accepted.is_empty(), "accepted, and nobody asked");
        assert!(self.done.is_empty(), "nobody asked for {:?}", self.done);
        while let Some(lease) = self.driver().reclaim() {
            self.give_back(Some(lease));
        }
        assert_eq!(self.world.arena().outstanding(), 0, "leases that did not come back");
        self.world.check_empty();
    }
}

/// Bytes that tell their place: none of the periods is a power of two, so that a block that is
/// repeated, lost or swapped shows.
pub(super) fn pattern(len: usize, from: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8 ^ (at / 251 % 241) as u8).collect()
}
