//! Sockets that the shards of a server lend to the one that accepts.
//!
//! An accept is posted by the driver that listens, and its socket has to be there before the client
//! is: so each accept for another shard is assigned to that shard as it is posted, and is given a
//! socket that has come back to that shard's pool, if there is one. Its completion arrives at the listener's port
//! all the same, and the socket goes to the port that it has belonged to since its first use.
//!
//! Behind a lock that accepts and closes take, not messages.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The drivers of one server, and what each has lent.
#[derive(Debug)]
pub(crate) struct Exchange<S> {
    inner: Mutex<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    /// Of each driver, in the order in which they joined: never more than its vector was made for.
    lent: Vec<Vec<S>>,
    /// Whether somebody listens, and on IPv6 or not.
    listens: Option<bool>,
}

impl<S> Exchange<S> {
    /// One that nobody has joined.
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::new(Inner { lent: Vec::new(), listens: None }) }
    }

    /// A driver joins, which lends so many sockets at most. Its number: that of its shard, where
    /// drivers are made in that order.
    pub(super) fn join(&self, most: u32) -> u32 {
        let mut inner = self.inner();
        inner.lent.push(Vec::with_capacity(most as usize));
        inner.lent.len() as u32 - 1
    }

    /// Somebody listens from now on.
    pub(super) fn open(&self, v6: bool) {
        self.inner().listens = Some(v6);
    }

    /// Nobody listens any more: what was lent is closed.
    pub(super) fn close(&self) {
        let mut inner = self.inner();
        inner.listens = None;
        inner.lent.iter_mut().for_each(Vec::clear);
    }

    /// Whether a socket of this driver's could be lent now.
    pub(super) fn wants(&self, home: u32, v6: bool) -> bool {
        self.inner().has_room(home, v6)
    }

    /// Lends a socket of this driver's; it is closed where nobody wants it any more.
    pub(super) fn lend(&self, home: u32, v6: bool, socket: S) {
        let mut inner = self.inner();
        if inner.has_room(home, v6) {
            inner.lent[home as usize].push(socket);
        }
    }

    /// A socket that this driver has lent, for an accept that is assigned to it.
    pub(super) fn borrow(&self, home: u32) -> Option<S> {
        self.inner().lent.get_mut(home as usize)?.pop()
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // Nothing between lock and unlock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Inner<S> {
    fn has_room(&self, home: u32, v6: bool) -> bool {
        let lent = &self.lent[home as usize];
        self.listens == Some(v6) && lent.len() < lent.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drivers_sockets_come_back_to_it_alone() {
        let exchange = Exchange::new();
        let [zero, one] = [(); 2].map(|()| exchange.join(4));
        assert_eq!((zero, one), (0, 1));
        assert!(!exchange.wants(one, false), "nobody listens");
        exchange.open(false);
        exchange.lend(one, false, 'a');
        exchange.lend(one, true, 'b');
        assert_eq!((exchange.borrow(zero), exchange.borrow(7)), (None, None));
        assert_eq!((exchange.borrow(one), exchange.borrow(one)), (Some('a'), None));
    }

    #[test]
    fn what_is_lent_is_bounded_and_ends_with_the_listener() {
        let exchange = Exchange::new();
        let home = exchange.join(4);
        exchange.open(true);
        let mut lent = 0;
        while exchange.wants(home, true) {
            exchange.lend(home, true, lent);
            lent += 1;
        }
        assert!((4..100).contains(&lent));
        exchange.lend(home, true, lent);
        exchange.close();
        assert_eq!(exchange.borrow(home), None);
        assert!(!exchange.wants(home, true));
    }
}
