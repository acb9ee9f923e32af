//! Reaching a shard from outside it: messages, hand-over of connections, the doorbell.
//!
//! Each mailbox is bounded, and full is an answer, not a wait.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    /// Drain: what is still there after this time is cut.
    Drain(Duration),
}

/// One shard's mailbox, and its doorbell.
pub(crate) struct Mailbox {
    queue: ArrayQueue<Mail>,
    doorbell: Arc<dyn Wake>,
}

impl Mailbox {
    pub(crate) fn new(doorbell: Arc<dyn Wake>) -> Self {
        Self { queue: ArrayQueue::new(MAILBOX), doorbell }
    }

    /// Puts mail in and rings; gives it back where the box is full.
    pub(crate) fn put(&self, mail: Mail) -> Result<(), Mail> {
        self.queue.push(mail)?;
        self.doorbell.wake();
        Ok(())
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

/// A mailbox was full: the message was not taken. Send less, or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard's mailbox is full ({MAILBOX} messages): send less, or later")]
pub struct Full;

/// Reaches the shards of a running server from any thread. Cheap to clone.
///
/// A message for a session that has gone by the time it is read is counted
/// ([`crate::Metrics::mail_gone`]), and never given to another session.
#[derive(Clone)]
pub struct Remote {
    pub(crate) shards: Arc<[Arc<Mailbox>]>,
}

impl Remote {
    /// Has bytes sent to a session's peer. They are shared, not copied, on the way to the shard.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn send(&self, id: SessionId, bytes: impl Into<Arc<[u8]>>) -> Result<(), Full> {
        self.put(id.shard, Mail::Send(id, bytes.into()))
    }

    /// Has a session closed once its outbox is empty.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn disconnect(&self, id: SessionId) -> Result<(), Full> {
        self.put(id.shard, Mail::Disconnect(id))
    }

    /// Has bytes sent to the peers of all sessions. They are shared by all shards.
    ///
    /// # Errors
    ///
    /// [`Full`], where any shard's mailbox was: the others have it, and do send.
    pub fn broadcast(&self, bytes: impl Into<Arc<[u8]>>) -> Result<(), Full> {
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
    /// [`Full`]; a shard that does not exist is full.
    pub fn message(&self, shard: u32, message: Box<dyn Any + Send>) -> Result<(), Full> {
        self.put(shard, Mail::Message(message))
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards.len() as u32
    }

    fn put(&self, shard: u32, mail: Mail) -> Result<(), Full> {
        let mailbox = self.shards.get(shard as usize).ok_or(Full)?;
        mailbox.put(mail).map_err(|_| Full)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("shards", &self.shards.len()).finish()
    }
}
