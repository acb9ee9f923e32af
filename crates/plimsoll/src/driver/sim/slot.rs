//! What is in flight on a slot, and how it is carried out.

use std::net::SocketAddr;
use std::time::Duration;

use super::driver::SimDriver;
use super::faults::{Effect, NO_BLOCK, Operation, Possible, errno, failure};
use super::kernel::{Event, Kernel};
use super::peer::SimSocket;
use super::resources::Charge;
use super::socket::{Readable, SocketId, Writable};
use super::trace::{hash_of, mix};
use crate::buffer::{Lease, Memory, Span};
use crate::driver::{Completion, Failure, Into, Kind, MAX_SPANS, Nanos, Token};

/// The most completions that a stream brings in one go (Linux: `MULTISHOT_MAX_RETRY` and one).
const STREAM_BURST: usize = 33;

/// Pages, as buffers are locked by them. The same on every machine, for equal runs.
const PAGE: usize = 4096;

/// How late after an operation was posted a fault that kills its connection may strike.
const DOOM_DELAY: Duration = Duration::from_millis(50);

/// What is in flight on a slot.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) socket: Option<SocketId>,
    /// The address that an accept brought, until it is asked for.
    pub(super) peer: Option<SocketAddr>,
    pub(super) connect: Option<Token>,
    park: Option<Token>,
    pub(super) receive: Option<Receive>,
    pub(super) send: Option<Send>,
    /// When the last completion of a receive is told: the next is not told before.
    pub(super) received_at: Nanos,
    /// What the operation of each kind in flight has taken of the machine.
    pub(super) charges: [Charge; Kind::OF_SLOTS],
    /// The socket's key: the operation that it was first used for.
    pub(super) key: Option<Token>,
    /// It was aborted: the socket is not used again.
    pub(super) discarded: bool,
}

/// What a successful accept for another shard left.
#[derive(Debug, Default)]
pub(super) struct Handed {
    pub(super) peer: Option<SocketAddr>,
    pub(super) socket: Option<SimSocket>,
    /// What the accept has taken of the machine.
    pub(super) charge: Charge,
}

/// An accept that waits.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) token: Token,
    pub(super) into: Into,
    /// How it fails when a connection comes.
    pub(super) doom: Option<&'static Possible>,
}

/// A receive (into a lease, from a byte) or a stream (into what is provided).
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) token: Token,
    pub(super) into: Option<(Lease, u32)>,
    pub(super) at_once: bool,
}

/// A send that waits.
#[derive(Debug)]
pub(super) struct Send {
    token: Token,
    spans: [Span; MAX_SPANS],
    count: u8,
    at_once: bool,
    /// The hash of the bytes when it was posted, where sends are watched.
    posted_as: Option<u64>,
}

impl Send {
    pub(super) fn new(
        token: Token,
        spans: &[Span],
        at_once: bool,
        watch: Option<(&Memory, &mut Vec<u8>)>,
    ) -> Self {
        let mut kept = [Span { block: 0, start: 0, len: 0 }; MAX_SPANS];
        kept[..spans.len()].copy_from_slice(spans);
        let posted_as = watch.map(|(memory, scratch)| hash_of_spans(memory, spans, scratch));
        Self { token, spans: kept, count: spans.len() as u8, at_once, posted_as }
    }

    fn spans(&self) -> &[Span] {
        &self.spans[..usize::from(self.count)]
    }

    /// The contract: nobody changes the bytes until the completion.
    fn assert_unchanged(&self, memory: &Memory, scratch: &mut Vec<u8>) {
        if let Some(hash) = self.posted_as {
            assert!(
                hash == hash_of_spans(memory, self.spans(), scratch),
                "{:?}: the bytes were changed while being sent: {:?}",
                self.token,
                self.spans()
            );
        }
    }

    /// Copies the first bytes of it to where the kernel keeps them.
    fn copy_out(&self, memory: &Memory, mut bytes: usize, into: &mut Vec<u8>) {
        for span in self.spans() {
            let part = bytes.min(span.len as usize);
            memory.copy_out(Span { len: part as u32, ..*span }, into);
            bytes -= part;
        }
    }
}

fn hash_of_spans(memory: &Memory, spans: &[Span], bytes: &mut Vec<u8>) -> u64 {
    spans.iter().fold(0, |hash, span| {
        bytes.clear();
        memory.copy_out(*span, bytes);
        mix(hash, hash_of(bytes))
    })
}

/// Bytes in the pages that a part of a block touches; blocks begin with a page.
fn pages_of(start: usize, len: usize) -> u32 {
    let first = start - start % PAGE;
    ((start + len).next_multiple_of(PAGE) - first) as u32
}

impl Kernel {
    /// Whether this operation fails.
    pub(super) fn draw(&mut self, operation: Operation) -> Option<(&'static Possible, bool)> {
        self.faults.draw(operation, &mut self.random)
    }

    /// How many bytes of so many: mostly all.
    fn shortened(&mut self, bytes: usize) -> usize {
        if bytes > 1 && self.random.chance(self.options.short_per_million) {
            return self.random.within(1, bytes as u64) as usize;
        }
        bytes
    }
}

impl SimDriver {
    /// The slot's socket has changed: whatever can go on, does.
    pub(super) fn look_at(&mut self, kernel: &mut Kernel, slot: u32) {
        let Some(id) = self.socket_of(slot) else { return };
        let Some(socket) = kernel.sockets.find(id) else { return };
        socket.told = false;
        let failed = socket.error.is_some();
        self.look_at_connect(kernel, slot, id);
        self.try_park(kernel, slot);
        // An error is told once: whichever of the two directions asks first has it, and the other
        // sees a connection that has ended.
        if failed && kernel.random.chance(500_000) {
            self.try_send(kernel, slot);
            self.try_receive(kernel, slot);
        } else {
            self.try_receive(kernel, slot);
            self.try_send(kernel, slot);
        }
    }

    /// Draws a fault for an operation on a connection. One that kills strikes now if it was
    /// scripted, else now or later. `Some` where the operation itself fails at once.
    fn strike(
        &mut self,
        kernel: &mut Kernel,
        operation: Operation,
        slot: u32,
    ) -> Option<&'static Possible> {
        let (fault, scripted) = kernel.draw(operation)?;
        if fault.effect != Effect::Kills {
            return Some(fault);
        }
        if let Some(id) = self.socket_of(slot) {
            if scripted || kernel.random.chance(500_000) {
                kernel.kill(id, fault.code);
            } else {
                let delay = kernel.random.below(DOOM_DELAY.as_nanos() as u64);
                kernel.schedule(Nanos(kernel.now.0 + delay), Event::Kill(id, fault.code));
            }
        }
        None
    }

    /// Charges an operation on a slot, which is refunded when it completes.
    pub(super) fn afford(
        &mut self,
        kernel: &mut Kernel,
        token: Token,
        pages: u32,
    ) -> Result<(), i32> {
        let system = &kernel.options.system;
        if !system.counts_operations() {
            return Ok(());
        }
        let pinned = if system.pinned_bytes == u64::MAX { 0 } else { pages };
        let charge = Charge { pool: system.pool.operation, pinned };
        kernel.charge(charge)?;
        self.slots[token.slot() as usize].charges[token.kind() as usize - 1] = charge;
        Ok(())
    }

    pub(super) fn start_park(&mut self, kernel: &mut Kernel, token: Token) {
        if let Some(fault) = self.strike(kernel, Operation::Park, token.slot()) {
            self.tell(kernel, Completion::broken(token, fault.failure()));
        } else if let Err(code) = self.afford(kernel, token, 0) {
            self.tell(kernel, Completion::failed(token, code));
        } else {
            self.slots[token.slot() as usize].park = Some(token);
            self.try_park(kernel, token.slot());
        }
    }

    fn try_park(&mut self, kernel: &mut Kernel, slot: u32) {
        let state = &mut self.slots[slot as usize];
        let (Some(token), Some(id)) = (state.park, state.socket) else { return };
        if kernel.sockets.find(id).is_none_or(|socket| socket.stirs()) {
            state.park = None;
            self.tell(kernel, Completion::done(token, 0));
        }
    }

    pub(super) fn start_receive(&mut self, kernel: &mut Kernel, token: Token) {
        let Some(receive) = &self.slots[token.slot() as usize].receive else { return };
        let operation = if receive.into.is_some() { Operation::Receive } else { Operation::Stream };
        let pages = receive.into.as_ref().map_or(0, |(_, start)| {
            pages_of(*start as usize, self.memory.block_bytes() - *start as usize)
        });
        if let Some(fault) = self.strike(kernel, operation, token.slot()) {
            self.end_receive(kernel, token.slot(), Err(fault.code));
        } else if let Err(code) = self.afford(kernel, token, pages) {
            self.end_receive(kernel, token.slot(), Err(code));
        } else {
            self.try_receive(kernel, token.slot());
        }
        // Whatever there was, it is not waited for.
        let left = self.slots[token.slot() as usize].receive.as_ref();
        if left.is_some_and(|receive| receive.at_once) {
            self.end_receive(kernel, token.slot(), Err(errno::EAGAIN));
        }
    }

    fn try_receive(&mut self, kernel: &mut Kernel, slot: u32) {
        let state = &self.slots[slot as usize];
        let (Some(receive), Some(id)) = (&state.receive, state.socket) else { return };
        if receive.into.is_some() {
            self.try_single(kernel, slot, id);
        } else {
            self.try_stream(kernel, slot, id);
        }
    }

    fn try_single(&mut self, kernel: &mut Kernel, slot: u32, id: SocketId) {
        let Some(socket) = kernel.sockets.find(id) else { return };
        let there = match socket.readable() {
            Readable::NotYet => return,
            Readable::End => return self.end_receive(kernel, slot, Ok(0)),
            Readable::Error(code) => return self.end_receive(kernel, slot, Err(code)),
            Readable::Bytes(there) => there,
        };
        let Some(receive) = &mut self.slots[slot as usize].receive else { return };
        let Some((lease, start)) = &mut receive.into else { return };
        let start = *start as usize;
        let len = kernel.shortened(there.min(self.memory.block_bytes() - start));
        let Some(socket) = kernel.sockets.find(id) else { return };
        lease.bytes_mut(&self.memory)[start..start + len]
            .copy_from_slice(socket.incoming.front(len));
        socket.incoming.consume(len);
        kernel.has_read(id);
        self.end_receive(kernel, slot, Ok(len as u32));
    }

    fn try_stream(&mut self, kernel: &mut Kernel, slot: u32, id: SocketId) {
        for _ in 0..STREAM_BURST {
            let Some(socket) = kernel.sockets.find(id) else { return };
            let there = match socket.readable() {
                Readable::NotYet => return,
                Readable::End => return self.end_receive(kernel, slot, Ok(0)),
                Readable::Error(code) => return self.end_receive(kernel, slot, Err(code)),
                Readable::Bytes(there) => there,
            };
            let Some(mut lease) = self.provided.pop_front() else {
                return self.end_receive_as(kernel, slot, Err(NO_BLOCK));
            };
            let len = kernel.shortened(there.min(self.memory.block_bytes()));
            let Some(socket) = kernel.sockets.find(id) else { return };
            lease.bytes_mut(&self.memory)[..len].copy_from_slice(socket.incoming.front(len));
            socket.incoming.consume(len);
            kernel.has_read(id);
            let Some(receive) = &self.slots[slot as usize].receive else { return };
            let token = receive.token;
            let more = !kernel.random.chance(kernel.options.stream_end_per_million);
            if !more {
                self.slots[slot as usize].receive = None;
            }
            let completion = Completion { token, result: Ok(len as u32), lease: Some(lease), more };
            self.tell(kernel, completion);
            if !more {
                return;
            }
        }
        // Others first; the rest at the next look.
        kernel.tell(id);
    }

    /// The receive or stream completes for the last time.
    fn end_receive(&mut self, kernel: &mut Kernel, slot: u32, result: Result<u32, i32>) {
        self.end_receive_as(kernel, slot, result.map_err(failure));
    }

    fn end_receive_as(&mut self, kernel: &mut Kernel, slot: u32, result: Result<u32, Failure>) {
        let Some(receive) = self.slots[slot as usize].receive.take() else { return };
        let lease = receive.into.map(|(lease, _)| lease);
        let completion = Completion { token: receive.token, result, lease, more: false };
        if receive.at_once {
            self.tell_at_once(kernel, completion);
        } else {
            self.tell(kernel, completion);
        }
    }

    pub(super) fn start_send(&mut self, kernel: &mut Kernel, token: Token) {
        let Some(send) = &self.slots[token.slot() as usize].send else { return };
        let operation = if send.at_once { Operation::SendAtOnce } else { Operation::Send };
        let pages = |span: &Span| pages_of(span.start as usize, span.len as usize);
        let pages = send.spans().iter().map(pages).sum();
        if let Some(fault) = self.strike(kernel, operation, token.slot()) {
            self.end_send(kernel, token.slot(), Err(fault.code));
        } else if let Err(code) = self.afford(kernel, token, pages) {
            self.end_send(kernel, token.slot(), Err(code));
        } else {
            self.try_send(kernel, token.slot());
        }
        // Whatever it was, it is not waited for.
        let left = self.slots[token.slot() as usize].send.as_ref();
        if left.is_some_and(|send| send.at_once) {
            self.end_send(kernel, token.slot(), Err(errno::EAGAIN));
        }
    }

    fn try_send(&mut self, kernel: &mut Kernel, slot: u32) {
        let state = &self.slots[slot as usize];
        let (Some(send), Some(id)) = (&state.send, state.socket) else { return };
        let buffer = kernel.options.send_buffer_bytes as usize;
        let Some(socket) = kernel.sockets.find(id) else { return };
        let room = match socket.writable(buffer) {
            Writable::NotYet => return,
            Writable::Error(code) => return self.end_send(kernel, slot, Err(code)),
            Writable::Room(room) => room,
        };
        send.assert_unchanged(&self.memory, &mut self.scratch);
        let asked: usize = send.spans().iter().map(|span| span.len as usize).sum();
        let taken = kernel.shortened(asked.min(room));
        if let Some(socket) = kernel.sockets.find(id) {
            send.copy_out(&self.memory, taken, socket.outgoing.end());
        }
        kernel.kick(id);
        self.end_send(kernel, slot, Ok(taken as u32));
    }

    fn end_send(&mut self, kernel: &mut Kernel, slot: u32, result: Result<u32, i32>) {
        let Some(send) = self.slots[slot as usize].send.take() else { return };
        let completion = Completion {
            token: send.token,
            result: result.map_err(failure),
            lease: None,
            more: false,
        };
        if send.at_once {
            self.tell_at_once(kernel, completion);
        } else {
            self.tell(kernel, completion);
        }
    }

    pub(super) fn carry_out_stop(&mut self, kernel: &mut Kernel, token: Token) {
        let state = &mut self.slots[token.slot() as usize];
        match token.kind() {
            Kind::Park if state.park == Some(token) => {
                state.park = None;
                self.tell(kernel, Completion::failed(token, errno::ECANCELED));
            }
            Kind::Receive if state.receive.as_ref().is_some_and(|it| it.token == token) => {
                self.end_receive(kernel, token.slot(), Err(errno::ECANCELED));
            }
            // It has completed: the stop came too late.
            _ => {}
        }
    }

    pub(super) fn carry_out_half_close(&mut self, kernel: &mut Kernel, token: Token) {
        if let Some(fault) = self.strike(kernel, Operation::HalfClose, token.slot()) {
            self.tell(kernel, Completion::broken(token, fault.failure()));
            return;
        }
        let Some(id) = self.socket_of(token.slot()) else { return };
        if kernel.sockets.find(id).is_none_or(|socket| socket.dead) {
            // The connection was reset before.
            self.tell(kernel, Completion::failed(token, errno::ENOTCONN));
            return;
        }
        kernel.shut(id);
        self.tell(kernel, Completion::done(token, 0));
    }

    /// Cancels what is in flight, and closes.
    pub(super) fn carry_out_close(&mut self, kernel: &mut Kernel, token: Token, abort: bool) {
        let slot = token.slot();
        let operation = if abort { Operation::Abort } else { Operation::Close };
        let fault = kernel.draw(operation).map(|(fault, _)| fault.failure());
        let state = &mut self.slots[slot as usize];
        state.discarded = abort;
        let (connect, park) = (state.connect.take(), state.park.take());
        for cancelled in [connect, park].into_iter().flatten() {
            self.tell(kernel, Completion::failed(cancelled, errno::ECANCELED));
        }
        self.end_receive(kernel, slot, Err(errno::ECANCELED));
        self.end_send(kernel, slot, Err(errno::ECANCELED));
        // No socket: the connect had failed before this was carried out.
        if let Some(id) = self.slots[slot as usize].socket.take() {
            if abort {
                kernel.abort(id);
            } else {
                kernel.close(id);
            }
        }
        let result = fault.map_or(Ok(0), Err);
        self.tell(kernel, Completion { result, ..Completion::done(token, 0) });
    }
}
