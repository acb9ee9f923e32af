//! Who gets in: one listener, one place that decides. A role of shard 0.
//!
//! Accepts are posted ahead, each against a permit and for the shard that was the least loaded
//! then. How many follows the arrivals: when every one posted has completed within a turn there are
//! twice as many the next time, up to [`MOST_AHEAD`]. Out of permits nothing is posted, and the
//! backlog holds those who come; or, where the limits say so, some are accepted to be refused.

use std::time::Duration;

use self::rate::Rate;
use crate::driver::{Fault, Kind, MAX_HANDED, Nanos, Token};

pub(crate) mod ledger;
pub(crate) mod peers;
mod rate;
pub(crate) mod service;

/// The most accepts in flight for slots of the acceptor's own shard.
pub(crate) const MOST_AHEAD: u32 = 256;
const FEWEST_AHEAD: u32 = 4;

/// Accepts in flight for those who are to be refused.
pub(crate) const REFUSING: u32 = 4;
/// Whom an accept is for that hands over its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// For another shard.
    Shard(u32),
    /// Who comes is to be refused.
    Nobody,
}

/// A number for accepts that hand over their connection.
#[derive(Debug, Clone, Copy)]
struct Number {
    /// Counts its uses.
    generation: u64,
    /// Whom the accept in flight is for.
    target: Option<Target>,
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Time between two log lines about accepts that fail.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What the acceptor keeps between turns.
#[derive(Debug)]
pub(crate) struct Acceptor {
    posted: u32,
    /// How many should be posted.
    ahead: u32,
    /// Completed since the last look.
    completed: u32,
    /// Numbers for accepts that hand over, and those that are free.
    numbers: [Number; MAX_HANDED as usize],
    free_numbers: Vec<u32>,
    /// Short of something: nothing is posted.
    pause: Pause,
    /// Short of this process' descriptors, of which a connection for another shard needs one at
    /// least on its way: nothing is posted that hands over.
    hand_over_pause: Pause,
    logged_at: Option<Nanos>,
    rate: Option<Rate>,
    /// The rate holds nobody up.
    dry_rate: bool,
    /// Accepts in flight for those who are to be refused, and the most.
    refusing: u32,
    refuse: u32,
    pub closed: bool,
}

/// A time in which nothing is posted, longer each time that it was in vain.
#[derive(Debug)]
struct Pause {
    until: Option<Nanos>,
    length: Duration,
    /// For want of descriptors: it is over as soon as a connection of ours has ended.
    short_of_files: bool,
}

impl Pause {
    fn new() -> Self {
        Self { until: None, length: SHORTEST_PAUSE, short_of_files: false }
    }

    fn begin(&mut self, now: Nanos, short_of_files: bool) {
        self.short_of_files |= short_of_files;
        if self.until.is_none() {
            self.until = Some(now.after(self.length));
            self.length = (self.length * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether it lasts.
    fn lasts(&mut self, now: Nanos) -> bool {
        self.until = self.until.filter(|until| *until > now);
        self.until.is_some()
    }

    fn freed(&mut self) {
        if std::mem::take(&mut self.short_of_files) {
            self.until = None;
        }
    }
}

impl Acceptor {
    /// An acceptor that accepts so many a second at most, and refuses who finds no permit, or lets
    /// them wait.
    pub(crate) fn new(rate: Option<u32>, refuses: bool) -> Self {
        Self {
            rate: rate.map(Rate::new),
            dry_rate: false,
            refusing: 0,
            refuse: if refuses { REFUSING } else { 0 },
            pause: Pause::new(),
            hand_over_pause: Pause::new(),
            logged_at: None,
            posted: 0,
            ahead: FEWEST_AHEAD,
            completed: 0,
            free_numbers: (0..MAX_HANDED).rev().collect(),
            numbers: [Number { generation: 0, target: None }; MAX_HANDED as usize],
            closed: false,
        }
    }

    /// The same, but that the rate holds nobody up where it is in dry run: it only tells whom it
    /// would.
    pub(crate) fn with_dry_rate(self, dry_rate: bool) -> Self {
        Self { dry_rate, ..self }
    }

    /// The rate, where it is one to be kept.
    fn kept_rate(&self) -> Option<&Rate> {
        self.rate.as_ref().filter(|_| !self.dry_rate)
    }

    /// How many accepts to post now.
    pub(crate) fn wanted(&mut self, now: Nanos) -> u32 {
        if self.closed || self.pause.lasts(now) {
            return 0;
        }
        if self.posted == 0 && self.completed >= self.ahead {
            self.ahead = (self.ahead * 2).min(MOST_AHEAD);
        } else if self.completed == 0 && self.ahead > FEWEST_AHEAD {
            self.ahead -= 1;
        }
        self.completed = 0;
        self.ahead.saturating_sub(self.posted)
    }

    /// Whether accepts may be posted that hand over, among those wanted.
    pub(crate) fn may_hand_over(&mut self, now: Nanos) -> bool {
        !self.hand_over_pause.lasts(now)
    }

    /// Whether the rate lets one more accept be posted now.
    pub(crate) fn rate_allows(&self, now: Nanos) -> bool {
        self.kept_rate().is_none_or(|rate| rate.available(now) > self.posted)
    }

    /// Whether the rate lets somebody in who was accepted to be refused, and counts as posted.
    pub(crate) fn rate_admits(&self, now: Nanos) -> bool {
        self.kept_rate().is_none_or(|rate| rate.available(now) >= self.posted)
    }

    /// When to look again: while paused, or when the rate allows one more. A time that has passed is
    /// not what it waits for: out of permits, to wake for that would be a hot loop.
    pub(crate) fn next(&self, now: Nanos) -> Option<Nanos> {
        let rate = self.kept_rate().filter(|_| self.posted < self.ahead);
        let next = self.pause.until.or_else(|| rate?.when(self.posted + 1));
        let both = [next, self.hand_over_pause.until].into_iter().flatten();
        both.filter(|next| *next > now && !self.closed).min()
    }

    /// A connection of ours has ended, and its descriptor is free.
    pub(crate) fn freed(&mut self) {
        self.pause.freed();
        self.hand_over_pause.freed();
    }

    /// Whether it waits for a descriptor to be free.
    pub(crate) fn is_short_of_files(&self) -> bool {
        self.pause.short_of_files || self.hand_over_pause.short_of_files
    }

    /// Whether accepts are in flight for those who are to be refused: they serve, where there is
    /// room by then, and so no others are posted beside them.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing > 0
    }

    /// The token of an accept of somebody who is to be refused; `None` where enough are in flight,
    /// and as long as accepts with a permit are: who comes now is theirs.
    pub(crate) fn token_to_refuse(&mut self) -> Option<Token> {
        let enough = self.refusing == self.refuse || self.posted > 0;
        let paused = self.pause.until.or(self.hand_over_pause.until).is_some();
        if enough || self.closed || paused {
            return None;
        }
        let token = self.token_of(Target::Nobody)?;
        self.refusing += 1;
        Some(token)
    }

    /// The token of an accept that is for another shard; `None` where as many are in flight as may
    /// be.
    pub(crate) fn token_for(&mut self, shard: u32) -> Option<Token> {
        self.token_of(Target::Shard(shard))
    }

    fn token_of(&mut self, target: Target) -> Option<Token> {
        let number = self.free_numbers.pop()?;
        let used = &mut self.numbers[number as usize];
        used.generation += 1;
        used.target = Some(target);
        Some(Token::new(Kind::HandOver, used.generation, number))
    }

    /// Whom an accept that has completed was for; its number is free again. `None`: no such accept
    /// is in flight.
    pub(crate) fn target_of(&mut self, token: Token) -> Option<Target> {
        let number = self.numbers.get_mut(token.slot() as usize)?;
        let target = number.target.filter(|_| token.is_of(number.generation))?;
        number.target = None;
        // Within the capacity that `new` gave it: no allocation.
        self.free_numbers.push(token.slot());
        if target == Target::Nobody {
            // From here on it counts as any other.
            self.refusing -= 1;
            self.posted += 1;
        }
        Some(target)
    }

    /// An accept was posted.
    pub(crate) fn post(&mut self) {
        self.posted += 1;
    }

    /// An accept completed with a connection, for this shard or handed over, which is served. Whether
    /// the rate would have had it wait.
    pub(crate) fn succeed(&mut self, handed: bool, now: Nanos) -> bool {
        self.posted -= 1;
        self.completed += 1;
        self.end_pause(handed);
        let Some(rate) = &mut self.rate else { return false };
        let would_wait = self.dry_rate && rate.available(now) == 0;
        if !would_wait {
            rate.spend(now);
        }
        would_wait
    }

    /// An accept completed with a connection, which is refused.
    pub(crate) fn refuse(&mut self) {
        self.posted -= 1;
        self.end_pause(true);
    }

    /// There was enough of what an accept needs, of this kind.
    fn end_pause(&mut self, handed: bool) {
        self.pause = Pause::new();
        if handed {
            self.hand_over_pause = Pause::new();
        }
    }

    /// An accept failed, for this shard or handed over. Returns whether a log line is due: one a
    /// second at most.
    pub(crate) fn fail(&mut self, handed: bool, fault: Fault, now: Nanos) -> bool {
        self.posted -= 1;
        match fault {
            // The client had gone, and the next one may be there already; or we closed the listener.
            Fault::Aborted | Fault::Reset => {
                self.completed += 1;
                false
            }
            Fault::Cancelled => false,
            // Short of descriptors, files, buffers or memory, or something new: asking again at
            // once would be a hot loop.
            _ => {
                let files = matches!(fault, Fault::ProcessDescriptors | Fault::SystemDescriptors);
                // A connection of this shard's own may need no descriptor: it says so itself.
                let only_handed = handed && fault == Fault::ProcessDescriptors;
                let pause = if only_handed { &mut self.hand_over_pause } else { &mut self.pause };
                pause.begin(now, files);
                let due = self.logged_at.is_none_or(|at| now.since(at) >= LOG_EVERY);
                if due {
                    self.logged_at = Some(now);
                }
                due
            }
        }
    }

    /// Accepts in flight that hand over.
    pub(crate) fn handing_over(&self) -> u32 {
        MAX_HANDED - self.free_numbers.len() as u32
    }

    /// The tokens of accepts in flight that hand over.
    #[cfg(test)]
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let numbers = self.numbers.iter().zip(0..).filter(|(number, _)| number.target.is_some());
        numbers.map(|(used, at)| Token::new(Kind::HandOver, used.generation, at)).collect()
    }

    /// Accepts in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.posted + self.refusing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_ahead_follow_the_arrivals() {
        let mut acceptor = Acceptor::new(None, false);
        let mut ahead = Vec::new();
        for _ in 0..8 {
            let wanted = acceptor.wanted(Nanos(0));
            ahead.push(wanted);
            (0..wanted).for_each(|_| acceptor.post());
            (0..wanted).for_each(|_| _ = acceptor.succeed(false, Nanos(0)));
        }
        assert_eq!(ahead, [4, 8, 16, 32, 64, 128, 256, 256]);
        for _ in 0..300 {
            acceptor.wanted(Nanos(0));
        }
        assert_eq!(acceptor.wanted(Nanos(0)), FEWEST_AHEAD);
    }

    #[test]
    fn a_rate_in_dry_run_tells_whom_it_would_have_had_wait() {
        let mut acceptor = Acceptor::new(Some(20), false).with_dry_rate(true);
        let now = Nanos(5_000_000_000);
        let mut would_wait = || {
            assert!(acceptor.wanted(now) > 0 && acceptor.rate_allows(now));
            acceptor.post();
            acceptor.succeed(false, now)
        };
        assert_eq!([would_wait(), would_wait(), would_wait()], [false, false, true]);
        assert_eq!(acceptor.next(now), None, "it wakes nobody");
    }

    #[test]
    fn a_number_is_used_again_under_another_generation() {
        let mut acceptor = Acceptor::new(None, true);
        let tokens: Vec<Token> = (0..MAX_HANDED).map_while(|_| acceptor.token_for(3)).collect();
        assert_eq!(tokens.len(), MAX_HANDED as usize);
        assert_eq!(acceptor.token_for(3), None, "all are in flight");
        let first = tokens[0];
        assert_eq!(acceptor.target_of(first), Some(Target::Shard(3)));
        assert_eq!(acceptor.target_of(first), None, "it has completed before");
        let again = acceptor.token_to_refuse().unwrap();
        assert_eq!(again.slot(), first.slot());
        assert_eq!(acceptor.target_of(first), None, "of an earlier use");
        assert_eq!(acceptor.target_of(Token::new(Kind::HandOver, 1, MAX_HANDED)), None);
        assert_eq!(acceptor.target_of(again), Some(Target::Nobody));
        // 16.7 million uses later the low bits are zero: as good as any others.
        acceptor.numbers[again.slot() as usize].generation = u64::from(Token::GENERATIONS) - 1;
        let zero = acceptor.token_for(1).unwrap();
        assert_eq!(zero.generation(), 0);
        assert_eq!(acceptor.target_of(zero), Some(Target::Shard(1)));
    }

    #[test]
    fn a_shortage_pauses_longer_and_longer_and_a_success_forgets_it() {
        let mut acceptor = Acceptor::new(None, false);
        let mut now = Nanos(0);
        let mut pauses = Vec::new();
        let mut lines = 0;
        for _ in 0..7 {
            assert!(acceptor.wanted(now) > 0);
            acceptor.post();
            acceptor.post();
            lines += u32::from(acceptor.fail(false, Fault::SystemDescriptors, now));
            lines += u32::from(acceptor.fail(false, Fault::SystemDescriptors, now));
            let until = acceptor.next(now).unwrap();
            assert_eq!(acceptor.wanted(now), 0);
            pauses.push(until.since(now).as_millis());
            now = until;
        }
        assert_eq!((lines, pauses[0]), (1, 5), "one line a second");
        assert!(pauses.windows(2).all(|pair| pair[1] >= pair[0]));
        assert_eq!(*pauses.last().unwrap(), 100);
        acceptor.wanted(now);
        acceptor.post();
        acceptor.post();
        acceptor.succeed(false, now);
        assert_eq!(acceptor.pause.length, SHORTEST_PAUSE);
        acceptor.fail(false, Fault::ProcessDescriptors, now);
        assert_eq!(acceptor.wanted(now), 0);
        acceptor.freed();
        assert!(acceptor.wanted(now) > 0, "at once");
        acceptor.post();
        acceptor.fail(false, Fault::Memory, now);
        acceptor.freed();
        assert_eq!(acceptor.wanted(now), 0, "no descriptor was missing");
        acceptor.closed = true;
        assert_eq!(acceptor.next(now), None, "nothing to wake for after the end");
    }

    #[test]
    fn who_is_handed_over_waits_for_descriptors_alone() {
        let mut acceptor = Acceptor::new(None, true);
        let now = Nanos(1);
        acceptor.post();
        acceptor.fail(true, Fault::ProcessDescriptors, now);
        assert!(acceptor.wanted(now) > 0 && !acceptor.may_hand_over(now));
        assert!(acceptor.is_short_of_files() && acceptor.token_to_refuse().is_none());
        assert_eq!(acceptor.next(now).unwrap().since(now), SHORTEST_PAUSE);
        acceptor.post();
        acceptor.succeed(false, now);
        assert!(!acceptor.may_hand_over(now), "it needed no descriptor");
        acceptor.freed();
        assert!(acceptor.may_hand_over(now), "at once");
        acceptor.post();
        acceptor.fail(false, Fault::ProcessDescriptors, now);
        assert_eq!(acceptor.wanted(now), 0, "nobody finds one");
        acceptor.post();
        acceptor.fail(true, Fault::SystemDescriptors, now);
        assert!(acceptor.may_hand_over(now), "then all wait");
    }
}
