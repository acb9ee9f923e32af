//! What the user writes, and the context it is given.

use std::any::Any;
use std::net::SocketAddr;
use std::time::Duration;

use crate::driver::Nanos;
use crate::reason::Reason;
use crate::session::SessionId;
use crate::session::core::Core;
pub use crate::session::core::{NotBegun, Queue};
use crate::session::life::Writing;

/// What a server does with its sessions. One handler per shard, made by a factory; it is called by
/// its shard's thread only, and a callback that blocks stops the whole shard.
///
/// A callback that panics costs its session ([`Reason::Panicked`]), not the shard.
pub trait Handler: 'static {
    /// What the handler keeps for each session, in the shard's table. It is dropped when the session
    /// is over: after [`Handler::on_disconnect`], once nothing of its connection is in flight. The
    /// next session's is made in that moment, or when the slot is used for the first time. A panic of
    /// either ends the server ([`crate::Error::Panicked`]).
    type State: Default + 'static;

    /// The shard begins: connect outgoing sessions here. A panic makes [`crate::Builder::start`] fail
    /// with [`crate::Error::Begin`].
    fn on_start(&mut self, shard: &mut ShardContext<'_, Self::State>) {
        let _ = shard;
    }

    /// A session begins: accepted, or connected by us. False refuses it: it is reset, with
    /// [`Reason::Refused`].
    fn on_connect(&mut self, cx: &mut Context<'_, Self::State>) -> bool {
        let _ = cx;
        true
    }

    /// Bytes have come. Returns how many it consumed; the rest is held and comes again: at once
    /// where some were consumed, otherwise with what follows behind it, after
    /// [`Context::resume`], or when the outbox has fallen below its low mark. At most a block of
    /// the arena is shown at once ([`crate::Limits::block_bytes`]): a handler that consumes nothing
    /// of a whole block, and has neither paused nor filled its outbox, ends its session
    /// ([`Reason::MessageTooLong`]).
    fn on_receive(&mut self, cx: &mut Context<'_, Self::State>, bytes: &[u8]) -> usize;

    /// The outbox passed its high mark before, and is below its low mark now.
    fn on_writable(&mut self, cx: &mut Context<'_, Self::State>) {
        let _ = cx;
    }

    /// The peer has ended its stream; no more bytes will come. By default the session is closed
    /// once its outbox is empty.
    fn on_end(&mut self, cx: &mut Context<'_, Self::State>) {
        cx.core.close(cx.slot, Reason::PeerEnded);
    }

    /// The server drains. By default the session is closed once its outbox is empty; a handler
    /// that wants to finish first returns without closing, and has until the drain's deadline.
    fn on_drain(&mut self, cx: &mut Context<'_, Self::State>) {
        cx.core.close(cx.slot, Reason::Drained);
    }

    /// The session has ended, or an outgoing one could not be made. The last callback for it;
    /// what is sent now is refused.
    fn on_disconnect(&mut self, cx: &mut Context<'_, Self::State>, reason: Reason) {
        let _ = (cx, reason);
    }

    /// The session's timer, set by [`Context::set_timer`], is due.
    fn on_timer(&mut self, cx: &mut Context<'_, Self::State>) {
        let _ = cx;
    }

    /// A message from outside, sent by [`crate::Remote::message`].
    fn on_message(
        &mut self,
        shard: &mut ShardContext<'_, Self::State>,
        message: Box<dyn Any + Send>,
    ) {
        let _ = (shard, message);
    }

    /// A turn of the shard has ended. Returns when, at the latest, the next should begin: a pace
    /// finer than the wheel's 16.8 ms. [`ShardContext::now`] is at once; `None`, the default, is
    /// whenever there is something to do. A moment that had passed when the turn began is a mistake
    /// that would keep a processor busy: it is taken for one millisecond from now, counted
    /// ([`crate::Metrics::turns_in_the_past`]) and logged once for each shard.
    fn on_turn(&mut self, shard: &mut ShardContext<'_, Self::State>) -> Option<Nanos> {
        let _ = shard;
        None
    }
}

/// One session, as its handler sees it.
pub struct Context<'a, S> {
    pub(crate) core: &'a mut Core<S>,
    pub(crate) slot: u32,
}

impl<S: Default> Context<'_, S> {
    /// Its shard.
    pub fn shard(&mut self) -> ShardContext<'_, S> {
        ShardContext { core: self.core }
    }
}

impl<S> Context<'_, S> {
    /// The session's name.
    pub fn id(&mut self) -> SessionId {
        self.core.id(self.slot)
    }

    /// The address of the other end.
    pub fn peer(&mut self) -> SocketAddr {
        self.core.table.get(self.slot).peer
    }

    /// The time, as of this turn.
    pub fn now(&self) -> Nanos {
        self.core.now
    }

    /// What the handler keeps for this session.
    pub fn state(&mut self) -> &mut S {
        &mut self.core.table.get(self.slot).state
    }

    /// Whether we connected it.
    pub fn is_outgoing(&mut self) -> bool {
        self.core.table.get(self.slot).marks.outgoing
    }

    /// Queues bytes for the peer. They are sent when the callback has ended.
    ///
    /// Bytes of those just received are sent from where they are; others are copied once, into
    /// the outbox. O(bytes), no allocation.
    pub fn send(&mut self, bytes: &[u8]) -> Queue {
        self.core.send(self.slot, bytes)
    }

    /// Bytes in the outbox: queued, and not yet taken by the kernel.
    pub fn outbox_bytes(&mut self) -> usize {
        self.core.table.get(self.slot).outbox.len() as usize
    }

    /// Closes the session once its outbox is empty. Nothing more is received.
    pub fn close(&mut self) {
        self.core.close(self.slot, Reason::Closed);
    }

    /// Resets the connection. What is in the outbox is lost.
    pub fn abort(&mut self) {
        self.core.table.get(self.slot).end(Reason::Aborted);
        self.core.abort(self.slot);
    }

    /// Ends our stream once the outbox is empty; the peer's goes on. (With direct descriptors of
    /// io_uring this costs a hand-over to a worker thread of the kernel, about 12 µs.)
    pub fn half_close(&mut self) {
        let session = self.core.table.get(self.slot);
        if session.writing != Writing::Shut {
            session.marks.half_close = true;
            self.core.touch(self.slot);
        }
    }

    /// Receives nothing more for now: the peer will be stopped by TCP's own window.
    pub fn pause(&mut self) {
        self.core.table.get(self.slot).marks.held_by_handler = true;
        self.core.touch(self.slot);
    }

    /// Receives again, and has [`Handler::on_receive`] shown what is held, after this callback.
    pub fn resume(&mut self) {
        let marks = &mut self.core.table.get(self.slot).marks;
        marks.held_by_handler = false;
        marks.wants_more = false;
        self.core.touch(self.slot);
    }

    /// Has [`Handler::on_timer`] called after this time, or up to 17 ms later. One timer per
    /// session: a new one replaces the old.
    pub fn set_timer(&mut self, after: Duration) {
        self.core.set_timer(self.slot, Some(after));
    }

    /// Takes the timer back.
    pub fn clear_timer(&mut self) {
        self.core.set_timer(self.slot, None);
    }

    /// Another session of the same shard; `None` where it has gone, or is another shard's.
    pub fn session(&mut self, id: SessionId) -> Option<Context<'_, S>> {
        let slot = self.core.find(id)?;
        Some(Context { core: self.core, slot })
    }
}

/// A shard, as its handler sees it.
pub struct ShardContext<'a, S> {
    pub(crate) core: &'a mut Core<S>,
}

impl<S: Default> ShardContext<'_, S> {
    /// Connects to `remote`, from the address `source` if one is given (port 0: any port).
    /// [`Handler::on_connect`] tells the success; [`Handler::on_disconnect`] the failure, with
    /// [`Reason::ConnectFailed`], or [`Reason::ConnectTimeout`] after
    /// [`crate::Limits::connect_timeout`]. [`ShardContext::disconnect`] gives it up.
    ///
    /// # Errors
    ///
    /// Why none was begun.
    pub fn connect(
        &mut self,
        remote: SocketAddr,
        source: Option<SocketAddr>,
    ) -> Result<SessionId, NotBegun> {
        self.core.connect(remote, source)
    }
}

impl<S> ShardContext<'_, S> {
    /// The shard's number.
    pub fn number(&self) -> u32 {
        self.core.shard
    }

    /// The time, as of this turn.
    pub fn now(&self) -> Nanos {
        self.core.now
    }

    /// Sessions of this shard: open ones, and those that are being closed.
    pub fn sessions(&self) -> u32 {
        self.core.open
    }

    /// A session of this shard; `None` where it has gone, or is another shard's.
    pub fn session(&mut self, id: SessionId) -> Option<Context<'_, S>> {
        let slot = self.core.find(id)?;
        Some(Context { core: self.core, slot })
    }

    /// Closes a session of this shard once its outbox is empty; gives up one that is being connected.
    /// [`Handler::on_disconnect`] tells the end, with [`Reason::Disconnected`]. False where it has
    /// gone, or is another shard's.
    pub fn disconnect(&mut self, id: SessionId) -> bool {
        self.core.disconnect(id)
    }

    /// Calls `each` for every session that is served. O(slots that were ever used).
    pub fn each_session(&mut self, mut each: impl FnMut(&mut Context<'_, S>)) {
        for slot in 0..self.core.table.touched() {
            let session = self.core.table.get(slot);
            if session.is_alive() && session.marks.known {
                each(&mut Context { core: self.core, slot });
            }
        }
    }
}
