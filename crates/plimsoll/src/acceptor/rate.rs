//! Accepts per second: a bucket of tokens.
//!
//! The bucket holds a tenth of a second's tokens, at least one, and is full at first. Over any time
//! `t` no more than `rate × t` tokens and a bucket's more are spent: an accept is posted only
//! while there are more tokens than accepts in flight, and spends its token when it brings somebody.

use crate::driver::Nanos;

/// Tokens that come back at a steady rate.
#[derive(Debug)]
pub(super) struct Rate {
    /// Nanoseconds for one token.
    interval: u64,
    /// Tokens that it holds.
    most: u32,
    /// When it will be full, or was.
    full_at: Nanos,
}

impl Rate {
    /// So many a second; at least 1.
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        Self {
            interval: 1_000_000_000_u64.div_ceil(u64::from(per_second)),
            most: (per_second / 10).max(1),
            full_at: Nanos(0),
        }
    }

    /// Whole tokens that are there now.
    pub(super) fn available(&self, now: Nanos) -> u32 {
        let missing = self.full_at.0.saturating_sub(now.0).div_ceil(self.interval);
        self.most.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX))
    }

    /// When there will be so many; `None` where it never holds as many.
    pub(super) fn when(&self, tokens: u32) -> Option<Nanos> {
        let spare = self.most.checked_sub(tokens)?;
        Some(Nanos(self.full_at.0.saturating_sub(u64::from(spare) * self.interval)))
    }

    /// Spends one, which must be there: there are no debts.
    pub(super) fn spend(&mut self, now: Nanos) {
        let empty = now.0.saturating_add(u64::from(self.most) * self.interval);
        self.full_at = Nanos((self.full_at.0.max(now.0) + self.interval).min(empty));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_full_at_first_and_fills_at_the_rate() {
        let mut rate = Rate::new(100);
        let start = Nanos(5_000_000_000);
        assert_eq!(rate.available(start), 10);
        (0..10).for_each(|_| rate.spend(start));
        assert_eq!(rate.available(start), 0);
        let next = rate.when(1).unwrap();
        assert_eq!(next.since(start).as_millis(), 10);
        assert_eq!((rate.available(Nanos(next.0 - 1)), rate.available(next)), (0, 1));
        assert_eq!(rate.available(start.after(std::time::Duration::from_secs(9))), 10);
        assert_eq!(rate.when(11), None);
    }

    #[test]
    fn over_any_time_no_more_than_the_rate_and_a_bucket() {
        for per_second in [1, 3, 10, 999, 1_000_000] {
            let mut rate = Rate::new(per_second);
            let (mut now, mut spent) = (Nanos(1), 0_u64);
            while now.0 < 3_000_000_000 {
                while rate.available(now) > 0 {
                    rate.spend(now);
                    spent += 1;
                }
                now = Nanos(rate.when(1).unwrap().0.max(now.0 + 1));
            }
            let most = u64::from(per_second) * 3 + u64::from((per_second / 10).max(1));
            assert!(spent <= most && spent + 1 >= u64::from(per_second) * 3, "{spent} of {most}");
        }
    }
}
