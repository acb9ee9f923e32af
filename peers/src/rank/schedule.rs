//! When the messages of an open loop are due, and on which connections.

use std::time::Duration;

/// A steady rate, spread evenly over time and over the connections.
///
/// Messages are numbered from 0 within a slice: message `n` is due `n / rate` seconds after the
/// slice began. They go round all connections in one order, which is shuffled once, so that
/// connections that were opened together do not follow each other; the next slice goes on with the
/// connection at which this one stopped.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// Messages per second over all connections; at least 1.
    rate: u64,
    /// The connections in the order in which they are used.
    order: Vec<usize>,
    /// The place of each connection in `order`.
    place: Vec<usize>,
    /// The place in `order` of the connection of message 0 of this slice.
    first: usize,
}

impl Schedule {
    /// # Panics
    /// When there is no connection, or `rate` is 0.
    pub(super) fn new(rate: u64, connections: usize, seed: u64) -> Self {
        assert!(rate > 0 && connections > 0, "{rate} messages/s over {connections} connections");
        let mut order: Vec<usize> = (0..connections).collect();
        super::shuffle(&mut order, &mut seed.clone());
        let mut place = vec![0; connections];
        for (at, &connection) in order.iter().enumerate() {
            place[connection] = at;
        }
        Self { rate, order, place, first: 0 }
    }

    /// The number of messages that are due before `duration` has passed.
    pub(super) fn count(&self, duration: Duration) -> u64 {
        (duration.as_nanos() * u128::from(self.rate)).div_ceil(1_000_000_000) as u64
    }

    /// When a message is due, in nanoseconds after the slice began.
    pub(super) fn due_ns(&self, message: u64) -> u64 {
        (u128::from(message) * 1_000_000_000 / u128::from(self.rate)) as u64
    }

    /// How long after it was due a message must be sent to count as late: so long that it bunches
    /// with the next. That is half the distance between two messages, and at least 100 µs: sending
    /// to a server that sleeps on another CPU takes up to some 40 µs under a hypervisor, and may
    /// hold up one message more.
    pub(super) fn late_ns(rate: u64) -> u64 {
        (1_000_000_000 / rate / 2).max(100_000)
    }

    /// The connection that a message is sent on.
    pub(super) fn connection(&self, message: u64) -> usize {
        let connections = self.order.len() as u64;
        self.order[((self.first as u64 + message) % connections) as usize]
    }

    /// The message of this slice that is the `nth` (from 0) on its connection.
    pub(super) fn message(&self, connection: usize, nth: u64) -> u64 {
        let connections = self.order.len();
        let begin = (self.place[connection] + connections - self.first) % connections;
        begin as u64 + nth * connections as u64
    }

    /// Begins the next slice, after one of so many messages.
    pub(super) fn advance(&mut self, messages: u64) {
        let connections = self.order.len() as u64;
        self.first = ((self.first as u64 + messages) % connections) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_equal_distances() {
        let schedule = Schedule::new(20_000, 7, 1);
        assert_eq!([0, 1, 2, 3000].map(|n| schedule.due_ns(n)), [0, 50_000, 100_000, 150_000_000]);
        // A distance that is no whole number of nanoseconds does not add up to an error.
        let thirds = Schedule::new(3, 7, 1);
        let due = [1, 2, 3, 3_000_000].map(|n| thirds.due_ns(n));
        assert_eq!(due, [333_333_333, 666_666_666, 1_000_000_000, 1_000_000_000_000_000]);
    }

    #[test]
    fn a_slice_counts_what_is_due_before_its_end() {
        let millis = Duration::from_millis;
        for (rate, slice, count) in
            [(20_000, 150, 3000), (2000, 150, 300), (3, 1000, 3), (3, 1001, 4), (1, 150, 1)]
        {
            let schedule = Schedule::new(rate, 1, 1);
            assert_eq!(schedule.count(millis(slice)), count, "{rate}/s for {slice} ms");
            assert!(u128::from(schedule.due_ns(count - 1)) < millis(slice).as_nanos());
            assert!(u128::from(schedule.due_ns(count)) >= millis(slice).as_nanos());
        }
    }

    #[test]
    fn late_is_what_bunches_with_the_next_message() {
        assert_eq!(Schedule::late_ns(2000), 250_000);
        assert_eq!(Schedule::late_ns(20_000), 100_000);
        assert_eq!(Schedule::late_ns(10_000_000), 100_000);
    }

    #[test]
    fn every_connection_has_its_turn_before_any_has_another() {
        let mut schedule = Schedule::new(1000, 10, 7);
        let mut used = vec![0; 10];
        // Slices of any length: 3 + 11 + 26 messages are four rounds.
        for messages in [3, 11, 26] {
            for message in 0..messages {
                let least = *used.iter().min().expect("ten connections");
                let connection = schedule.connection(message);
                assert_eq!(used[connection], least, "message {message} of {messages}");
                used[connection] += 1;
            }
            schedule.advance(messages);
        }
        assert_eq!(used, [4; 10]);
    }

    #[test]
    fn a_message_is_found_by_its_connection_and_turn() {
        let mut schedule = Schedule::new(1000, 10, 3);
        schedule.advance(4);
        let mut turns = [0; 10];
        for message in 0..35 {
            let connection = schedule.connection(message);
            assert_eq!(schedule.message(connection, turns[connection]), message);
            turns[connection] += 1;
        }
    }

    #[test]
    fn the_order_is_shuffled_and_fixed_by_the_seed() {
        let order = |seed| {
            let schedule = Schedule::new(1, 100, seed);
            (0..100).map(|message| schedule.connection(message)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..100).collect::<Vec<_>>());
    }
}
