//! Sockets that are made ahead, and sockets that are used again.
//!
//! A connection that ends orderly can leave its socket behind: `DisconnectEx` with `TF_REUSE_SOCKET`
//! ends the connection and keeps the handle, which `AcceptEx` or `ConnectEx` takes again. What the pool
//! knows of that:
//!
//! - The socket is in *limbo* until the disconnect has completed, and only then pooled. A
//!   `TIME_WAIT` may delay that for minutes, and a peer that does not read for ever: so sockets in limbo are
//!   bounded in number (beyond it the socket is closed) and in time (then it is reset).
//! - A socket once accepted can only be accepted again, one connected only connected: they are kept
//!   apart.
//! - It stays with the completion port of its first use: only the driver that it was returned to has
//!   it. A fresh one belongs to no port yet.
//!
//! Where sockets cannot be used again they are only made ahead, so that an accept need not wait for
//! one. Nothing here calls the kernel: a socket is whatever the caller pools, and all of this is tested
//! without one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::driver::{Nanos, PoolFigures};

/// How many sockets a pool holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Fresh ones, kept ready for accepts.
    pub(super) ahead: u32,
    /// Used ones that are idle, of each sort.
    pub(super) idle: u32,
    /// Those in limbo.
    pub(super) limbo: u32,
    /// How long one may be in limbo.
    pub(super) limbo_time: Duration,
}

/// What a used socket can be used for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// It was accepted.
    Accepted,
    /// It was accepted, for another driver's listener: IPv6 or not. It is not pooled here.
    Lent {
        /// Its family.
        v6: bool,
    },
    /// It was connected, from no address in particular: IPv6 or not.
    Connected {
        /// Its family.
        v6: bool,
    },
}

/// Where a disconnect that has completed leaves its socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Returned<S> {
    /// In the pool.
    Pooled,
    /// In the caller's hands, to be lent.
    Lent {
        /// The socket.
        socket: S,
        /// Its family.
        v6: bool,
    },
    /// Nowhere: to be closed.
    Closed(Option<S>),
}

/// A place in limbo.
#[derive(Debug)]
struct Limbo<S> {
    /// None where the place is free, or the socket was reset and its disconnect has not completed.
    socket: Option<S>,
    sort: Sort,
    in_flight: bool,
    /// Counts the uses of this place.
    turn: u32,
}

/// Idle sockets, and those on their way back.
#[derive(Debug)]
pub(super) struct Pool<S> {
    bounds: Bounds,
    fresh: Vec<S>,
    accepted: Vec<S>,
    connected: [Vec<S>; 2],
    limbo: Vec<Limbo<S>>,
    free: Vec<u32>,
    /// Places in limbo in the order of their time-outs, with the turn that each was for.
    order: VecDeque<(u32, u32, Nanos)>,
    figures: PoolFigures,
}

impl<S> Pool<S> {
    /// An empty pool. It allocates here and never again.
    pub(super) fn new(bounds: Bounds) -> Self {
        let idle = || Vec::with_capacity(bounds.idle as usize);
        let place = |_| Limbo { socket: None, sort: Sort::Accepted, in_flight: false, turn: 0 };
        Self {
            fresh: Vec::with_capacity(bounds.ahead as usize),
            accepted: idle(),
            connected: [idle(), idle()],
            limbo: (0..bounds.limbo).map(place).collect(),
            free: (0..bounds.limbo).rev().collect(),
            // An expired place leaves its entry behind until its time has come.
            order: VecDeque::with_capacity(bounds.limbo as usize * 2),
            figures: PoolFigures::default(),
            bounds,
        }
    }

    /// Fresh sockets that should be made, for the pool to be as full as it is meant to be.
    pub(super) fn wanted(&self) -> u32 {
        self.bounds.ahead - self.fresh.len() as u32
    }

    /// Takes in a fresh socket that [`Pool::wanted`] asked for.
    pub(super) fn stock(&mut self, socket: S) {
        debug_assert!(self.wanted() > 0, "more than were asked for");
        self.fresh.push(socket);
        self.note();
    }

    /// A fresh socket that was made ahead, for an accept. None: a miss, the caller makes one.
    pub(super) fn fresh(&mut self) -> Option<S> {
        let socket = self.fresh.pop();
        self.count(socket.is_some());
        socket
    }

    /// A socket that was accepted before, of this driver's port. None is no miss yet: a fresh one
    /// serves as well.
    pub(super) fn accepted(&mut self) -> Option<S> {
        let socket = self.accepted.pop()?;
        self.count(true);
        Some(socket)
    }

    /// A socket that was connected before. None: a miss, the caller makes one.
    pub(super) fn connected(&mut self, v6: bool) -> Option<S> {
        let socket = self.connected[usize::from(v6)].pop();
        self.count(socket.is_some());
        socket
    }

    /// A place in limbo for a socket whose disconnect is about to be posted; none where there are as
    /// many as may be, or the pool is full already.
    pub(super) fn place(&mut self, sort: Sort) -> Option<u32> {
        let waiting = self.limbo.len() - self.free.len();
        // Those that are lent are bounded where they go.
        let idle = self.idle(sort).map_or(0, Vec::len);
        if idle + waiting >= self.bounds.idle as usize {
            return None;
        }
        let place = self.free.pop()?;
        let limbo = &mut self.limbo[place as usize];
        limbo.sort = sort;
        limbo.in_flight = true;
        limbo.turn = limbo.turn.wrapping_add(1);
        self.figures.limbo += 1;
        self.figures.limbo_high_water = self.figures.limbo_high_water.max(self.figures.limbo);
        Some(place)
    }

    /// The disconnect was posted at `now`, and is in flight.
    pub(super) fn enter(&mut self, place: u32, socket: S, now: Nanos) {
        let limbo = &mut self.limbo[place as usize];
        debug_assert!(limbo.in_flight && limbo.socket.is_none());
        limbo.socket = Some(socket);
        if self.order.len() == self.order.capacity() {
            // Of entries that their places have outlived; those in use are at most half of it.
            let limbos = &self.limbo;
            self.order.retain(|&(place, turn, _)| {
                let limbo = &limbos[place as usize];
                limbo.turn == turn && limbo.socket.is_some()
            });
        }
        self.order.push_back((
            place,
            limbo_turn(&self.limbo, place),
            now.after(self.bounds.limbo_time),
        ));
    }

    /// A disconnect has completed, or failed as it was posted (then `socket` is the one). Its place is
    /// free again.
    pub(super) fn leave(&mut self, place: u32, socket: Option<S>, succeeded: bool) -> Returned<S> {
        let limbo = &mut self.limbo[place as usize];
        debug_assert!(limbo.in_flight, "a place completes once");
        limbo.in_flight = false;
        let (socket, sort) = (socket.or(limbo.socket.take()), limbo.sort);
        self.free.push(place);
        self.figures.limbo -= 1;
        let Some(socket) = socket.filter(|_| succeeded) else {
            // The filter dropped it where it failed: dropping closes.
            return Returned::Closed(None);
        };
        let idle = self.idle(sort).map_or(0, Vec::len);
        if idle == self.bounds.idle as usize {
            return Returned::Closed(Some(socket));
        }
        self.figures.returned += 1;
        match sort {
            Sort::Accepted => self.accepted.push(socket),
            Sort::Connected { v6 } => self.connected[usize::from(v6)].push(socket),
            Sort::Lent { v6 } => return Returned::Lent { socket, v6 },
        }
        self.note();
        Returned::Pooled
    }

    /// A socket that has been in limbo for too long at `now`, to be reset. Its place stays taken until
    /// its disconnect has completed.
    pub(super) fn expired(&mut self, now: Nanos) -> Option<S> {
        while let Some(&(place, turn, until)) = self.order.front() {
            let limbo = &mut self.limbo[place as usize];
            let gone = limbo.turn != turn || limbo.socket.is_none();
            if !gone && until > now {
                return None;
            }
            self.order.pop_front();
            if !gone {
                self.figures.expired += 1;
                return limbo.socket.take();
            }
        }
        None
    }

    /// When to ask for [`Pool::expired`] again.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.order.front().map(|&(_, _, until)| until)
    }

    /// All sockets, out of the pool, those in limbo too: to be closed.
    pub(super) fn empty(&mut self) -> impl Iterator<Item = S> {
        let idle = self.fresh.drain(..).chain(self.accepted.drain(..));
        let [v4, v6] = &mut self.connected;
        let limbo = self.limbo.iter_mut().filter_map(|limbo| limbo.socket.take());
        idle.chain(v4.drain(..)).chain(v6.drain(..)).chain(limbo)
    }

    /// What has been counted.
    pub(super) fn figures(&self) -> PoolFigures {
        self.figures
    }

    /// Idle ones of a sort that is pooled here.
    fn idle(&self, sort: Sort) -> Option<&Vec<S>> {
        match sort {
            Sort::Accepted => Some(&self.accepted),
            Sort::Connected { v6 } => Some(&self.connected[usize::from(v6)]),
            Sort::Lent { .. } => None,
        }
    }

    /// A socket that was borrowed of another driver's pool was there.
    pub(super) fn borrowed(&mut self) {
        self.count(true);
    }

    fn count(&mut self, hit: bool) {
        if hit {
            self.figures.hits += 1;
        } else {
            self.figures.misses += 1;
        }
        self.note();
    }

    fn note(&mut self) {
        let used: usize = self.connected.iter().map(Vec::len).sum();
        self.figures.idle = (self.fresh.len() + self.accepted.len() + used) as u64;
        self.figures.high_water = self.figures.high_water.max(self.figures.idle);
    }
}

fn limbo_turn<S>(limbo: &[Limbo<S>], place: u32) -> u32 {
    limbo[place as usize].turn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ahead: u32, idle: u32, limbo: u32) -> Pool<u32> {
        Pool::new(Bounds { ahead, idle, limbo, limbo_time: Duration::from_secs(5) })
    }

    const ACCEPTED: Sort = Sort::Accepted;
    const CONNECTED: Sort = Sort::Connected { v6: false };

    #[test]
    fn fresh_sockets_are_made_ahead_up_to_the_bound() {
        let mut pool = pool(2, 0, 0);
        assert_eq!((pool.wanted(), pool.fresh()), (2, None));
        pool.stock(1);
        pool.stock(2);
        assert_eq!((pool.wanted(), pool.fresh(), pool.wanted()), (0, Some(2), 1));
        let figures = pool.figures();
        assert_eq!((figures.hits, figures.misses, figures.idle, figures.high_water), (1, 1, 1, 2));
    }

    #[test]
    fn a_socket_is_pooled_when_its_disconnect_has_completed() {
        let mut pool = pool(0, 4, 4);
        let place = pool.place(ACCEPTED).unwrap();
        pool.enter(place, 7, Nanos(0));
        assert_eq!((pool.accepted(), pool.figures().limbo), (None, 1));
        assert_eq!(pool.leave(place, None, true), Returned::Pooled);
        assert_eq!((pool.figures().limbo, pool.figures().idle), (0, 1));
        assert_eq!(pool.connected(false), None, "accepted once, only accepted again");
        assert_eq!(pool.accepted(), Some(7));
        let place = pool.place(CONNECTED).unwrap();
        pool.enter(place, 8, Nanos(0));
        pool.leave(place, None, true);
        assert_eq!((pool.accepted(), pool.connected(true)), (None, None));
        assert_eq!(pool.connected(false), Some(8));
    }

    #[test]
    fn a_disconnect_that_fails_pools_nothing() {
        let mut pool = pool(0, 4, 1);
        let place = pool.place(ACCEPTED).unwrap();
        pool.enter(place, 7, Nanos(0));
        assert_eq!(pool.leave(place, None, false), Returned::Closed(None));
        let place = pool.place(ACCEPTED).unwrap();
        assert_eq!(pool.leave(place, Some(8), false), Returned::Closed(None), "as it was posted");
        assert_eq!((pool.accepted(), pool.figures().limbo), (None, 0));
    }

    #[test]
    fn limbo_is_bounded_in_number_and_in_time() {
        let mut pool = pool(0, 9, 2);
        for socket in [1, 2] {
            let place = pool.place(ACCEPTED).unwrap();
            pool.enter(place, socket, Nanos(u64::from(socket)));
        }
        assert_eq!(pool.place(ACCEPTED), None, "closed instead");
        let end = |of: u64| Nanos(of).after(Duration::from_secs(5));
        assert_eq!((pool.next(), pool.expired(Nanos(100))), (Some(end(1)), None));
        assert_eq!((pool.expired(end(1)), pool.expired(end(1))), (Some(1), None));
        // Reset, it is still in flight: its place is not used for another.
        assert_eq!((pool.place(ACCEPTED), pool.figures().limbo), (None, 2));
        assert_eq!(pool.leave(0, None, false), Returned::Closed(None));
        assert_eq!(pool.place(ACCEPTED), Some(0));
        assert_eq!(pool.figures().expired, 1);
    }

    #[test]
    fn what_is_lent_is_not_pooled_here() {
        let mut pool = pool(0, 2, 2);
        let place = pool.place(Sort::Lent { v6: true }).unwrap();
        pool.enter(place, 7, Nanos(0));
        assert_eq!(pool.leave(place, None, true), Returned::Lent { socket: 7, v6: true });
        assert_eq!((pool.figures().returned, pool.figures().idle), (1, 0));
    }

    #[test]
    fn growth_is_bounded_by_what_may_be_idle() {
        let mut pool = pool(0, 2, 9);
        let places: Vec<u32> = std::iter::from_fn(|| pool.place(ACCEPTED)).collect();
        assert_eq!(places.len(), 2, "more could not be pooled");
        for place in places {
            pool.enter(place, place, Nanos(0));
            assert_eq!(pool.leave(place, None, true), Returned::Pooled);
        }
        assert_eq!(pool.place(ACCEPTED), None);
        assert_eq!(pool.place(CONNECTED), Some(1), "sorts are counted apart");
    }

    #[test]
    fn what_has_left_limbo_in_time_does_not_expire() {
        let mut pool = pool(0, 100, 2);
        for round in 0..100 {
            let place = pool.place(CONNECTED).unwrap();
            pool.enter(place, round, Nanos(u64::from(round)));
            assert_eq!(pool.leave(place, None, true), Returned::Pooled);
        }
        assert!(pool.order.len() <= 4, "{}", pool.order.len());
        assert_eq!(pool.expired(Nanos(u64::MAX)), None);
        assert_eq!(pool.empty().count(), 100);
    }
}
