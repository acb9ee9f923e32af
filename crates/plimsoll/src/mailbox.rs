//! Reaching a shard from outside it: messages, hand-over of connections, the doorbell.
//!
//! Each mailbox is bounded, and full is an answer, not a wait.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;

use crate::driver::Wake;
use crate::session::SessionId;

/// Messages that one shard's mailbox holds.
pub const MAILBOX: usize = 4096;

/// What is sent to a shard.
pub(crate) enum Mail {
    Send(SessionId, Arc<[u8]>),
    Disconnect(SessionId),
    Broadcast(Arc<[u8]>),
    Message(Box<dyn Any + Send>),
    /// Reconcile the accounts, and tell what does not agree.
    Audit(std::sync::mpsc::Sender<Result<(), String>>),
}

/// One shard's mailbox, and its doorbell.
pub(crate) struct Mailbox {
    queue: ArrayQueue<Mail>,
    doorbell: Arc<dyn Wake>,
    /// Nobody reads it any more.
    ended: AtomicBool,
}

impl Mailbox {
    pub(crate) fn new(doorbell: Arc<dyn Wake>) -> Self {
        Self { queue: ArrayQueue::new(MAILBOX), doorbell, ended: AtomicBool::new(false) }
    }

    /// Puts mail in and rings.
    pub(crate) fn put(&self, mail: Mail) -> Result<(), Undelivered> {
        if self.ended.load(Ordering::Acquire) {
            return Err(Undelivered::Ended);
        }
        self.queue.push(mail).map_err(|_| Undelivered::Full)?;
        self.doorbell.wake();
        Ok(())
    }

    /// Its shard has ended: nothing is taken in any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn take(&self) -> Option<Mail> {
        // Looked at in each turn: an empty queue's `pop` costs a full fence, this does not.
        if self.queue.is_empty() { None } else { self.queue.pop() }
    }

    pub(crate) fn ring(&self) {
        self.doorbell.wake();
    }
}

/// A connection on its way from the acceptor to the shard that will serve it. It has its permit.
pub(crate) struct Handed<S> {
    pub socket: S,
    pub peer: SocketAddr,
}

/// Connections on their way to one shard: as many as there are permits, at most.
///
/// A lock, since this is the way of a connection and not of a message; and a list that is swapped
/// out whole, so that only as much memory is touched as were ever on their way at once.
pub(crate) struct HandOver<S> {
    list: Mutex<Vec<Handed<S>>>,
    /// Whether there is any: looked at once a turn, without the lock.
    any: AtomicBool,
}

impl<S> HandOver<S> {
    /// Room for `most`: none is allocated later.
    pub(crate) fn new(most: usize) -> Self {
        Self { list: Mutex::new(Vec::with_capacity(most)), any: AtomicBool::new(false) }
    }

    /// Puts one behind the others.
    pub(crate) fn push(&self, handed: Handed<S>) {
        let mut list = self.list();
        list.push(handed);
        self.any.store(true, Ordering::Release);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Takes all, in their order, and leaves `empty` in their place.
    pub(crate) fn take(&self, empty: &mut Vec<Handed<S>>) {
        debug_assert!(empty.is_empty(), "what is in it would be taken again");
        if self.any.load(Ordering::Acquire) {
            let mut list = self.list();
            self.any.store(false, Ordering::Release);
            std::mem::swap(&mut *list, empty);
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Handed<S>>> {
        // Nothing between lock and unlock can panic half-way.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Undelivered {
    /// The shard's mailbox holds [`MAILBOX`] messages.
    #[error("the shard's mailbox is full ({MAILBOX} messages): send less, or later")]
    Full,
    /// The shard has ended, by a drain or a failure: nobody would read it.
    #[error("the shard has ended: nobody would read the message")]
    Ended,
    /// There is no such shard.
    #[error("there is no shard {shard}: the server has {shards}, numbered from 0")]
    NoShard {
        /// The one that was named.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
}

/// Reaches the shards of a running server from any thread. Cheap to clone.
///
/// A message that was taken is read, unless the shard ends before: by a failure, or at the end of a
/// drain. One for a session that has gone by then is counted ([`crate::Metrics::mail_gone`]), and
/// never given to another session.
#[derive(Clone)]
pub struct Remote {
    pub(crate) shards: Arc<[Arc<Mailbox>]>,
}

impl Remote {
    /// Has bytes sent to a session's peer. They are shared, not copied, on the way to the shard.
    ///
    /// # Errors
    ///
    /// [`Undelivered`].
    pub fn send(&self, id: SessionId, bytes: impl Into<Arc<[u8]>>) -> Result<(), Undelivered> {
        self.put(id.shard, Mail::Send(id, bytes.into()))
    }

    /// Has a session closed once its outbox is empty; one that is being connected is given up.
    ///
    /// # Errors
    ///
    /// [`Undelivered`].
    pub fn disconnect(&self, id: SessionId) -> Result<(), Undelivered> {
        self.put(id.shard, Mail::Disconnect(id))
    }

    /// Has bytes sent to the peers of all sessions. They are shared by all shards.
    ///
    /// # Errors
    ///
    /// The first shard's that did not take it: the others have it, and do send.
    pub fn broadcast(&self, bytes: impl Into<Arc<[u8]>>) -> Result<(), Undelivered> {
        let bytes = bytes.into();
        let mut result = Ok(());
        for shard in 0..self.shards.len() {
            result = result.and(self.put(shard as u32, Mail::Broadcast(bytes.clone())));
        }
        result
    }

    /// Gives a message to the handler of a shard ([`crate::Handler::on_message`]).
    ///
    /// # Errors
    ///
    /// [`Undelivered`].
    pub fn message(&self, shard: u32, message: Box<dyn Any + Send>) -> Result<(), Undelivered> {
        self.put(shard, Mail::Message(message))
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards.len() as u32
    }

    fn put(&self, shard: u32, mail: Mail) -> Result<(), Undelivered> {
        let none = Undelivered::NoShard { shard, shards: self.shards() };
        self.shards.get(shard as usize).ok_or(none)?.put(mail)
    }

    /// Has every shard look around.
    pub(crate) fn ring_all(&self) {
        self.shards.iter().for_each(|mailbox| mailbox.ring());
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("shards", &self.shards.len()).finish()
    }
}
