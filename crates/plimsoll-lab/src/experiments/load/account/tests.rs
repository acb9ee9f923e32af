//! The account against a model that computes each message by itself.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// When message `number` is intended, by exact fractions: `number / (rate / 10⁶)` seconds.
fn intended(number: u64, rate_millionths: u64) -> u128 {
    u128::from(number) * 1_000_000_000_000_000 / u128::from(rate_millionths)
}

/// What becomes of one message whose reply takes so long, or never comes: the counts of answered,
/// late and lost, and the time that stands in the histogram.
fn fate(intended: u64, reply: Option<u64>, end: u64, deadline: u64) -> ([u64; 3], u64) {
    match reply.map(|delay| intended + delay) {
        Some(at) if at <= end => ([1, 0, 0], at - intended),
        Some(at) if at <= deadline => ([0, 1, 0], at - intended),
        Some(_) | None => ([0, 0, 1], deadline - intended),
    }
}

#[test]
fn message_n_is_intended_at_n_over_the_rate() {
    let schedule = Schedule::new(20.0, Duration::from_secs(1));
    assert_eq!((schedule.due(), schedule.intended_ns(0)), (20, 0));
    assert_eq!(schedule.intended_ns(1), 50_000_000);
    assert_eq!((schedule.due_by(0), schedule.due_by(49_999_999)), (1, 1));
    assert_eq!((schedule.due_by(50_000_000), schedule.due_by(u64::MAX)), (2, 20));
    let slow = Schedule::new(1.0, Duration::from_millis(2500));
    assert_eq!((slow.due(), slow.intended_ns(2)), (3, 2_000_000_000));
}

#[test]
fn rate_times_duration_are_due_exactly() {
    for (rate, seconds, due) in [(1000.0, 3.0, 3000), (0.1, 30.0, 3), (3000.0, 0.7, 2100)] {
        let schedule = Schedule::new(rate, Duration::from_secs_f64(seconds));
        assert_eq!(schedule.due(), due, "{rate}/s for {seconds} s");
    }
    assert_eq!(Schedule::new(1000.0, Duration::from_secs(3)).cut_to(1_500_000_000).due(), 1500);
}

#[test]
fn a_stall_to_the_end_is_charged_to_every_message() {
    // 1,000 a second for 3 s; from second 1 on nothing is answered.
    let (duration, timeout) = (Duration::from_secs(3), Duration::from_secs(1));
    let schedule = Schedule::new(1000.0, duration);
    let mut account = Account::new(0, duration, timeout);
    for number in 0..1000 {
        let at = schedule.intended_ns(number);
        assert!(account.reply(at, at + 100_000));
    }
    account.close((1000..schedule.due()).map(|number| schedule.intended_ns(number)));
    assert_eq!((account.answered, account.late, account.lost), (1000, 0, 2000));
    let latency = account.latencies.summary().unwrap();
    // The message of second 1 was waited for 3 s, that of the last millisecond for 1.001 s.
    assert!((latency.max / 3e6 - 1.0).abs() < 0.01, "{latency:?}");
    assert!((latency.p50 / 1.5e6 - 1.0).abs() < 0.01, "{latency:?}");
}

#[test]
fn nothing_is_clipped_that_takes_longer_than_a_minute() {
    let mut account = Account::new(0, Duration::from_secs(300), Duration::from_secs(60));
    account.reply(0, 250_000_000_000);
    account.close([0]);
    let latency = account.latencies.summary().unwrap();
    assert!((latency.max / 360e6 - 1.0).abs() < 0.01, "{latency:?}");
    assert!((latency.p50 / 250e6 - 1.0).abs() < 0.01, "{latency:?}");
}

proptest! {
    #[test]
    fn the_schedule_is_that_of_the_model(
        rate_millionths in 1_u64..50_000_000_000,
        messages in 0_u64..3000,
        rest_ns in 1_u64..2_000_000_000,
        clients in 1_u64..5,
        share in 0.0_f64..1.0,
    ) {
        // So many messages and some time more, in which up to 100,000 others may be due: for those
        // the rate is lowered.
        let rate_millionths = rate_millionths.min(3_000_000_000);
        let duration_ns = intended(messages, rate_millionths) as u64 + rest_ns;
        let schedule = Schedule {
            rate_millionths, duration_ns, place: 0, clients: 1,
        };
        let all: Vec<u64> = (0..1_000_000)
            .map(|number| intended(number, rate_millionths))
            .take_while(|at| *at < u128::from(duration_ns))
            .map(|at| at as u64)
            .collect();
        prop_assert_eq!(schedule.due(), all.len() as u64);
        let moment = (duration_ns as f64 * share) as u64;
        let by = all.iter().filter(|at| **at <= moment).count() as u64;
        prop_assert_eq!(schedule.due_by(moment), by);
        let mut together = Vec::new();
        for place in 0..clients {
            let part = schedule.of_client(place, clients);
            let mine: Vec<u64> = (0..part.due()).map(|number| part.intended_ns(number)).collect();
            let by = mine.iter().filter(|at| **at <= moment).count() as u64;
            prop_assert_eq!(part.due_by(moment), by);
            together.extend(mine);
        }
        together.sort_unstable();
        prop_assert_eq!(together, all);
    }

    #[test]
    fn every_message_is_answered_late_or_lost(
        rate in 1_u64..2000,
        duration_ms in 1_u64..3000,
        timeout_ms in 1_u64..2000,
        start_ns in 0_u64..1_000_000_000_000,
        // Whether a reply comes, and after which share of the whole time.
        replies in prop::collection::vec((any::<bool>(), 0.0_f64..1.2, any::<bool>()), 1..200),
    ) {
        let (duration, timeout) =
            (Duration::from_millis(duration_ms), Duration::from_millis(timeout_ms));
        let schedule = Schedule::new(rate as f64, duration);
        let mut account = Account::new(start_ns, duration, timeout);
        let (end, deadline) = (account.end_ns(), account.deadline_ns());
        let middle = start_ns + duration.as_nanos() as u64 / 2;
        let (mut counts, mut times, mut missing) = ([0; 3], Vec::new(), Vec::new());
        let mut at_middle = 0;
        for number in 0..schedule.due() {
            let at = start_ns + schedule.intended_ns(number);
            let (comes, share, gives_up) = replies[number as usize % replies.len()];
            let delay = ((duration + timeout).as_nanos() as f64 * share) as u64;
            let reply = comes.then_some(delay).filter(|delay| at + delay <= deadline);
            let (count, time) = fate(at, reply, end, deadline);
            counts.iter_mut().zip(count).for_each(|(sum, one)| *sum += one);
            times.push(time);
            at_middle += u64::from(at <= middle && middle < at + time);
            match reply {
                Some(delay) => _ = account.reply(at, at + delay),
                None if gives_up => account.give_up(at),
                None => missing.push(at),
            }
        }
        account.close(missing);
        prop_assert_eq!([account.answered, account.late, account.lost], counts);
        prop_assert_eq!(account.total(), schedule.due());
        prop_assert_eq!(account.at_middle, at_middle);
        times.sort_unstable();
        if let Some(latency) = account.latencies.summary() {
            let at = |quantile: f64| {
                let rank = (quantile * times.len() as f64).ceil().max(1.0) as usize;
                times[rank - 1] as f64 / 1000.0
            };
            for (got, expected) in
                [(latency.p50, at(0.5)), (latency.p99, at(0.99)), (latency.max, at(1.0))]
            {
                prop_assert!((got - expected).abs() <= expected * 0.002 + 0.002,
                    "{} for {}", got, expected);
            }
        }
    }
}
