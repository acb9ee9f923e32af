use super::*;

/// Only the engine makes names of sessions: here they are numbers, in the order of the connects.
type Lanes = super::Lanes<u32>;

/// Connects all that may be connected now. Returns how many were begun in this turn.
fn turn(lanes: &mut Lanes, now: Nanos, names: &mut u32) -> (u32, Option<Nanos>) {
    let before = *names;
    let next = lanes.connect(now, |_| {
        *names += 1;
        Some(*names - 1)
    });
    (*names - before, next)
}

fn at(ms: u64) -> Nanos {
    Nanos(ms * 1_000_000)
}

fn ended(mute: bool, asked: bool) -> Remains {
    Remains { hopeless: if asked { vec![0] } else { vec![] }, truncated: false, mute }
}

#[test]
fn few_connects_are_begun_in_a_turn_and_fewer_after_a_slow_one() {
    let (mut lanes, mut names) = (Lanes::new(1000), 0);
    let begun: Vec<u32> = (0..5).map(|ms| turn(&mut lanes, at(ms), &mut names).0).collect();
    assert_eq!(begun, [1, 2, 4, 8, 8]);
    // The last turn took 50 ms, and the one after it too.
    assert_eq!(turn(&mut lanes, at(54), &mut names).0, 4);
    assert_eq!(turn(&mut lanes, at(104), &mut names).0, 2);
    for ms in 105..200 {
        turn(&mut lanes, at(ms), &mut names);
    }
    assert_eq!(names as usize, CONNECTING, "no more are in flight at once");
    assert_eq!(lanes.give_up_the_rest(), 1000);
    assert!(lanes.are_dead() && lanes.are_settled());
}

#[test]
fn a_lane_whose_connection_ended_is_connected_again_at_once() {
    let (mut lanes, mut names) = (Lanes::new(1), 0);
    turn(&mut lanes, at(0), &mut names);
    assert_eq!(lanes.connected(0), Some(0));
    assert_eq!((lanes.open(), lanes.open_numbers(), lanes.down_since), (1, vec![0], None));
    lanes.ended(0, &ended(false, false), at(5));
    assert_eq!((lanes.open(), lanes.down_since), (0, Some(at(5))));
    assert_eq!(turn(&mut lanes, at(5), &mut names).0, 1);
    assert_eq!(lanes.connected(1), Some(0));
    assert_eq!((lanes.get(0).connected, lanes.down_since), (2, None));
    assert_eq!(lanes.connected(0), None, "that connect is over");
}

#[test]
fn attempts_that_fail_are_put_off_longer_each_time_up_to_a_bound() {
    let (mut lanes, mut names) = (Lanes::new(1), 0);
    let mut now = at(0);
    let mut waits = Vec::new();
    for attempt in 0..12 {
        assert_eq!(turn(&mut lanes, now, &mut names).0, 1);
        assert_eq!(lanes.failed(attempt, now), Some(0));
        let next = turn(&mut lanes, now, &mut names).1.expect("it is tried again");
        waits.push(next.since(now));
        now = next;
    }
    assert_eq!(waits[..3], [1, 2, 4].map(Duration::from_millis));
    assert_eq!(waits[11], BACK_OFF.1);
}

#[test]
fn a_lane_that_never_had_a_reply_is_given_up_after_some_connections() {
    let (mut lanes, mut names) = (Lanes::new(1), 0);
    let mut now = at(0);
    for attempt in 0..FRUITLESS_MOST {
        assert!(!lanes.are_dead());
        assert_eq!(turn(&mut lanes, now, &mut names).0, 1);
        assert_eq!(lanes.connected(attempt), Some(0));
        lanes.ended(0, &ended(true, true), now);
        now = now.after(Duration::from_secs(1));
    }
    assert!(lanes.are_dead());
    // Where nothing was asked, or there was a reply once, it goes on.
    for first in [ended(true, false), ended(false, false)] {
        let (mut lanes, mut names) = (Lanes::new(1), 0);
        let mut now = at(0);
        for attempt in 0..FRUITLESS_MOST + 2 {
            assert_eq!(turn(&mut lanes, now, &mut names).0, 1, "attempt {attempt}");
            assert_eq!(lanes.connected(attempt), Some(0));
            let asked = first.mute || attempt == 0;
            let remains = if asked { &first } else { &ended(true, true) };
            lanes.ended(0, remains, now);
            now = now.after(Duration::from_secs(1));
        }
        assert!(!lanes.are_dead());
    }
}

#[test]
fn connects_that_nobody_answers_are_given_up_and_tried_again() {
    let (mut lanes, mut names) = (Lanes::new(2), 0);
    for ms in 0..2 {
        turn(&mut lanes, at(ms), &mut names);
    }
    let timeout = Duration::from_millis(100);
    assert_eq!(lanes.give_up_connects(at(100), timeout), 0);
    assert_eq!(lanes.give_up_connects(at(101), timeout), 1);
    assert_eq!(lanes.connected(0), None, "it came too late");
    assert_eq!(lanes.unsettled(), 2);
    assert_eq!(turn(&mut lanes, at(200), &mut names).0, 1);
}
