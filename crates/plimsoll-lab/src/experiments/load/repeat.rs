//! Repeats: a load measured in parts, of one target or of several in turns.
//!
//! The spread within one piece says nothing about the next piece: a machine has slow and fast
//! phases of tenths of a second to minutes. So the measured time is divided into repeats, and
//! several targets take turns within each, which every phase meets alike.
//!
//! Decisions:
//! - `--duration` stays the whole measured time of each target; a repeat is its N-th part. What is
//!   due in an open loop is therefore rate × duration, as without repeats.
//! - With several targets a repeat takes them there and back: A B B A. A phase that grows or fades
//!   steadily weighs on both alike. Which comes first is drawn by the seed; every second repeat
//!   has the order of the one before reversed, so that no target is first more often.
//! - What is judged are the ratios of slices that were measured next to each other, there and back
//!   apart: two of each repeat. Their mean would be less noisy, but ten means can be told from
//!   chance, with six rows, only where all ten agree; that missed a server that needs 10 % more in
//!   two of nine runs, at slices of 0.1 s.
//! - Each slice makes its connections anew, and ends them. A target that is not loaded has no
//!   connections of ours, and nothing to do. Connecting is not measured.
//! - One slice of each target is not counted: it warms caches, and finds a target that does not
//!   answer before anything is measured.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::gauge::Gauge;
use super::keystream::Random;
use super::piece::{self, Piece, joined};
use super::{Options, measure};
use crate::checks::rows::{self, Design, LEVEL, Pair};
use crate::results::{
    Interleaved, Load, LoadRepeat, LoadTarget, Side, Spread, StoppedBy, TargetComparison,
};
use crate::statistics::quartiles;
use crate::{Error, Lab, Progress, Result, units};

/// The shortest slice: below, the start of a slice weighs more than what is measured.
const SLICE_LEAST: Duration = Duration::from_millis(20);
/// The longest slice that is not counted.
const WARM_UP_MOST: Duration = Duration::from_millis(200);
/// How often a slice in which nothing was sent is measured again.
const AGAIN_MOST: u32 = 3;
/// Most repeats.
pub const REPEATS_MOST: u32 = 1000;

/// What is compared of a load, as fields of a [`LoadRepeat`].
pub(crate) const QUANTITIES: [&str; 6] = [
    "messages_per_second",
    "latency_us.p50",
    "latency_us.p99",
    "latency_us.p999",
    "server_cpu_us_per_message",
    "client_cpu_us_per_message",
];

/// The speed of the machine itself, as a field of a [`LoadRepeat`]. Targets in turns meet the same.
pub(crate) const MACHINE: &str = "machine_us";

/// One of [`QUANTITIES`], or [`MACHINE`]; `None` where it was not measured.
pub(crate) fn quantity(repeat: &LoadRepeat, name: &str) -> Option<f64> {
    let latency = repeat.latency_us.as_ref();
    match name {
        "messages_per_second" => Some(repeat.messages_per_second),
        "latency_us.p50" => latency.map(|latency| latency.p50),
        "latency_us.p99" => latency.map(|latency| latency.p99),
        "latency_us.p999" => latency.map(|latency| latency.p999),
        "server_cpu_us_per_message" => repeat.server_cpu_us_per_message,
        "client_cpu_us_per_message" => repeat.client_cpu_us_per_message,
        MACHINE => repeat.machine_us,
        _ => None,
    }
}

/// Loads each target in `repeats` parts, in turns where there are several. The options differ in
/// target, process and sources only; each has the whole measured time of its target. The flag tells
/// whether it was interrupted.
///
/// # Errors
///
/// As [`run`](super::run); too many repeats for the duration. A target that fails after something
/// was measured on it is no error: the run ends there, and its loads are not
/// [`complete`](Load::complete).
pub fn run(lab: &Lab, targets: &[Options], repeats: u32) -> Result<(Load, bool)> {
    let Some(first) = targets.first() else {
        return Err(Error::usage("there is no target", "give --target"));
    };
    if repeats <= 1 && targets.len() == 1 {
        return super::run(lab, first);
    }
    let plan = Plan::new(targets, repeats)?;
    plan.warm_up(lab)?;
    let mut measured: Vec<Measured> = targets.iter().map(|_| Measured::default()).collect();
    let mut end = End::Whole;
    let mut gauge = Gauge::open();
    for (repeat, order) in plan.orders.iter().enumerate() {
        end = plan.repeat(&plan.part_of(lab, repeat), order, &mut gauge, &mut measured)?;
        for one in &mut measured {
            one.end_repeat(end == End::Whole);
        }
        if end != End::Whole {
            break;
        }
    }
    Ok((plan.result(&measured, end)?, end == End::Interrupted))
}

/// How a repeat, or the run, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of it was measured.
    Whole,
    Interrupted,
    /// A target went away: what others do from here on can be compared with nothing.
    TargetGone,
}

/// What was measured on one target.
#[derive(Debug, Default)]
struct Measured {
    /// All repeats that have ended.
    whole: Option<Piece>,
    repeats: Vec<LoadRepeat>,
    /// The slices of these repeats, in the order in which they were measured.
    slices: Vec<LoadRepeat>,
    /// The slices of the repeat that is being measured.
    pieces: Vec<Piece>,
    /// Why nothing more could be measured.
    failure: Option<Error>,
}

impl Measured {
    fn has_some(&self) -> bool {
        self.whole.is_some() || !self.pieces.is_empty()
    }

    /// Joins the slices of a repeat; one that was not finished has no place among the repeats.
    fn end_repeat(&mut self, finished: bool) {
        let slices: Vec<LoadRepeat> = self.pieces.iter().map(Piece::repeat).collect();
        let Some(repeat) = joined(self.pieces.drain(..)) else { return };
        if finished {
            self.slices.extend(slices);
            self.repeats.push(repeat.repeat());
        }
        self.whole = joined(self.whole.take().into_iter().chain([repeat]));
    }

    /// What was found on a target for which this was asked; `None` where nothing was measured.
    fn load(&self, options: &Options, end: End) -> Option<Load> {
        let mut load = self.whole.as_ref()?.load.clone();
        load.duration_asked = options.duration.as_secs_f64();
        load.complete &= end == End::Whole;
        if let Some(failure) = &self.failure {
            // Anything else is of this machine: a limit of the client's, for one.
            let of_target = matches!(failure, Error::Target { .. });
            load.stopped_by =
                Some(if of_target { StoppedBy::ServerEnded } else { StoppedBy::Unknown });
            load.stopped_side = of_target.then_some(Side::Server);
            load.evidence = format!(
                "after {} of {} s no slice could be measured any more: {failure}",
                load.duration, load.duration_asked
            );
        }
        load.spread = spread(&self.repeats);
        load.repeats.clone_from(&self.repeats);
        Some(load)
    }
}

/// The order and the length of the slices.
struct Plan<'a> {
    targets: &'a [Options],
    slice: Duration,
    orders: Vec<Vec<u32>>,
}

impl<'a> Plan<'a> {
    fn new(targets: &'a [Options], repeats: u32) -> Result<Self> {
        let duration = targets[0].duration;
        let each = if targets.len() > 1 { 2 } else { 1 };
        if repeats == 0 || repeats > REPEATS_MOST {
            return Err(Error::usage(
                format!("{repeats} repeats"),
                format!("--repeat from 1 to {REPEATS_MOST}"),
            ));
        }
        let slice = duration / repeats / each;
        if slice < SLICE_LEAST {
            return Err(Error::usage(
                format!(
                    "{repeats} repeats of {} leave slices of {}",
                    units::micros(duration.as_secs_f64() * 1e6),
                    units::micros(slice.as_secs_f64() * 1e6)
                ),
                format!(
                    "a --duration of at least {}, or fewer repeats",
                    units::micros((SLICE_LEAST * repeats * each).as_secs_f64() * 1e6)
                ),
            ));
        }
        Ok(Self { targets, slice, orders: orders(targets.len() as u32, repeats, targets[0].seed) })
    }

    fn slice(&self, index: u32) -> Options {
        Options { duration: self.slice, ..self.targets[index as usize].clone() }
    }

    /// Measures one repeat. A target that fails after something was measured ends the run without
    /// an error: what was measured stands.
    fn repeat(
        &self,
        lab: &Lab,
        order: &[u32],
        gauge: &mut Option<Gauge>,
        measured: &mut [Measured],
    ) -> Result<End> {
        for index in self.visits(order) {
            let machine_us = gauge.as_mut().and_then(Gauge::read_us);
            let one = &mut measured[index as usize];
            let slice = self.slice(index);
            let mut found = measure(lab, &slice);
            // On a busy machine the client may have had no turn to send: nothing was measured.
            for _ in 0..AGAIN_MOST {
                if found.as_ref().is_ok_and(|(piece, stop)| piece.load.due == 0 && !stop) {
                    found = measure(lab, &slice);
                }
            }
            match found {
                Ok((piece, interrupted)) => {
                    let gone = piece.load.stopped_by == Some(StoppedBy::ServerEnded);
                    one.pieces.push(piece.on_machine(machine_us));
                    if interrupted {
                        return Ok(End::Interrupted);
                    }
                    if gone {
                        return Ok(End::TargetGone);
                    }
                }
                Err(error) if one.has_some() => {
                    lab.progress.warn(&format!("the run ends here: {error}"));
                    one.failure = Some(error);
                    return Ok(End::TargetGone);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(End::Whole)
    }

    /// The targets of one repeat, in the order in which they are loaded: several there and back.
    fn visits(&self, order: &[u32]) -> Vec<u32> {
        let back = if self.targets.len() > 1 { order.len() } else { 0 };
        order.iter().chain(order.iter().rev().take(back)).copied().collect()
    }

    /// A slice of each target that is not counted.
    fn warm_up(&self, lab: &Lab) -> Result<()> {
        for options in self.targets {
            let duration = self.slice.min(WARM_UP_MOST);
            let quiet = Lab { progress: Arc::new(crate::Quiet), ..lab.clone() };
            measure(&quiet, &Options { duration, ..options.clone() })?;
        }
        Ok(())
    }

    /// The surroundings of a slice: its progress is a part of the whole.
    fn part_of(&self, lab: &Lab, repeat: usize) -> Lab {
        let progress =
            Part { whole: lab.progress.clone(), done: repeat as u64, of: self.orders.len() as u64 };
        Lab { progress: Arc::new(progress), ..lab.clone() }
    }

    /// # Errors
    ///
    /// It ended before every target was measured: there is nothing to compare.
    fn result(&self, measured: &[Measured], end: End) -> Result<Load> {
        let both = self.targets.iter().zip(measured);
        let loads: Option<Vec<Load>> = both.map(|(options, one)| one.load(options, end)).collect();
        let loads = loads.ok_or_else(|| {
            Error::incomplete("the run ended before every target was measured", "run it again")
        })?;
        let first = loads[0].clone();
        if loads.len() == 1 {
            return Ok(first);
        }
        let slices: Vec<Vec<LoadRepeat>> = measured.iter().map(|one| one.slices.clone()).collect();
        let address = |index: usize| self.targets[index].target.to_string();
        let comparison = Interleaved {
            baseline: address(0),
            repeats: first.repeats.len() as u32,
            slice_seconds: self.slice.as_secs_f64(),
            orders: self.orders[..first.repeats.len()].to_vec(),
            level: LEVEL,
            targets: compare(&loads, &slices, address),
            slices,
        };
        let targets = loads.into_iter().enumerate().map(|(index, load)| LoadTarget {
            address: address(index),
            server_pid: self.targets[index].server_pid,
            load,
        });
        Ok(Load { targets: targets.collect(), comparison: Some(comparison), ..first })
    }
}

/// The order of the targets in each repeat. Every second one reverses the one before.
fn orders(targets: u32, repeats: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random::new(seed);
    let mut order: Vec<u32> = (0..targets).collect();
    (0..repeats)
        .map(|repeat| {
            if repeat % 2 == 1 {
                order.reverse();
            } else {
                // Fisher and Yates.
                for last in (1..targets).rev() {
                    order.swap(last as usize, random.between(0, last) as usize);
                }
            }
            order.clone()
        })
        .collect()
}

/// Each target but the first against the first. All rows of all targets are judged together, so
/// that the level holds for the whole table.
fn compare(
    loads: &[Load],
    slices: &[Vec<LoadRepeat>],
    address: impl Fn(usize) -> String,
) -> Vec<TargetComparison> {
    let others = 1..loads.len();
    let mut pairs = Vec::new();
    let mut owners = Vec::new();
    for index in others.clone() {
        for name in QUANTITIES {
            let side = |index: usize| (&loads[index], slices[index].as_slice());
            if let Some(pair) = pair(name, side(0), side(index)) {
                pairs.push(pair);
                owners.push(index);
            }
        }
    }
    let rows = rows::judge(&pairs, Design::Interleaved);
    let of = |index: usize| {
        owners.iter().zip(&rows).filter(move |(owner, _)| **owner == index).map(|(_, row)| row)
    };
    others
        .map(|index| TargetComparison {
            address: address(index),
            rows: of(index).cloned().collect(),
        })
        .collect()
}

/// One quantity of two loads with their slices; `None` where one of them has none. Only slices in
/// which both have it count.
fn pair(
    name: &str,
    (first, first_slices): (&Load, &[LoadRepeat]),
    (second, second_slices): (&Load, &[LoadRepeat]),
) -> Option<Pair> {
    let whole = |load: &Load| quantity(&piece::repeat(load), name);
    let both = first_slices.iter().zip(second_slices);
    let (first_repeats, second_repeats) =
        both.filter_map(|(a, b)| quantity(a, name).zip(quantity(b, name))).unzip();
    Some(Pair {
        path: format!("load.{name}"),
        first: whole(first)?,
        second: whole(second)?,
        first_repeats,
        second_repeats,
        reason: None,
    })
}

/// Median and quartiles of each quantity.
fn spread(repeats: &[LoadRepeat]) -> Vec<Spread> {
    let of = |name: &str| {
        let values: Vec<f64> = repeats.iter().filter_map(|repeat| quantity(repeat, name)).collect();
        let (low, median, high) = quartiles(&values)?;
        Some(Spread { name: name.into(), repeats: values.len() as u32, low, median, high })
    };
    QUANTITIES.into_iter().chain([MACHINE]).filter_map(of).collect()
}

/// The spread over the repeats, for a person; empty where there are none.
pub(super) fn render_spread(load: &Load) -> String {
    if load.repeats.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "{} repeats of {}: median, and the quartiles around it\n",
        load.repeats.len(),
        units::micros(load.duration / load.repeats.len() as f64 * 1e6)
    );
    for spread in &load.spread {
        let number = units::number;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "  {:>12}  {} ({} to {})",
            number(spread.median),
            spread.name,
            number(spread.low),
            number(spread.high)
        );
    }
    out
}

/// What the targets differ in, for a person.
pub(super) fn render_comparison(comparison: &Interleaved) -> String {
    let mut out = String::new();
    let mut all = Vec::new();
    for target in &comparison.targets {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{} against {}: {} repeats, there and back in slices of {}",
            target.address,
            comparison.baseline,
            comparison.repeats,
            units::micros(comparison.slice_seconds * 1e6)
        );
        out.push_str(&rows::table(&target.rows, ("first", "this one")));
        all.extend_from_slice(&target.rows);
    }
    out.push_str(&rows::footnote(&all));
    out
}

/// The progress of one repeat, as a part of the whole.
struct Part {
    whole: Arc<dyn Progress>,
    done: u64,
    of: u64,
}

impl Progress for Part {
    fn step(&self, _done: u64, _total: Option<u64>, line: &str) {
        let line = format!("repeat {} of {}: {line}", self.done + 1, self.of);
        self.whole.step(self.done, Some(self.of), &line);
    }

    fn warn(&self, line: &str) {
        self.whole.warn(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_mirrored_and_drawn_by_the_seed() {
        for (targets, repeats) in [(1, 3), (2, 10), (3, 7), (5, 4)] {
            let drawn = orders(targets, repeats, 3);
            assert_eq!(drawn.len(), repeats as usize);
            for pair in drawn.chunks(2) {
                let mut sorted = pair[0].clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..targets).collect::<Vec<_>>());
                if let [there, back] = pair {
                    assert_eq!(
                        there.iter().rev().collect::<Vec<_>>(),
                        back.iter().collect::<Vec<_>>()
                    );
                }
            }
            assert_eq!(drawn, orders(targets, repeats, 3));
        }
        let firsts: std::collections::BTreeSet<u32> =
            (0..40).map(|seed| orders(2, 1, seed)[0][0]).collect();
        assert_eq!(firsts.len(), 2, "either target can be first");
    }

    #[test]
    fn repeats_that_leave_no_time_are_refused() {
        let options = Options {
            duration: Duration::from_secs(1),
            ..Options::new(([127, 0, 0, 1], 9).into())
        };
        let two = [options.clone(), options.clone()];
        assert_eq!(Plan::new(&two, 25).unwrap().slice, Duration::from_millis(20));
        for (targets, repeats) in [(&two[..], 26), (&two[..1], 51), (&two[..], 0), (&two[..], 1001)]
        {
            assert!(Plan::new(targets, repeats).is_err_and(|error| error.exit_code() == 2));
        }
    }

    fn repeat(rate: f64, server: Option<f64>) -> LoadRepeat {
        LoadRepeat {
            messages: 10,
            messages_per_second: rate,
            server_cpu_us_per_message: server,
            ..LoadRepeat::default()
        }
    }

    #[test]
    fn the_spread_leaves_out_what_was_not_measured() {
        let repeats =
            [repeat(1.0, None), repeat(2.0, Some(5.0)), repeat(3.0, Some(6.0)), repeat(4.0, None)];
        let spread = spread(&repeats);
        let of = |name: &str| spread.iter().find(|one| one.name == name);
        assert_eq!(of("messages_per_second").map(|one| (one.repeats, one.median)), Some((4, 2.5)));
        assert_eq!(
            of("server_cpu_us_per_message").map(|one| (one.repeats, one.median)),
            Some((2, 5.5))
        );
        assert_eq!((of("latency_us.p50"), of("client_cpu_us_per_message")), (None, None));
    }
}
