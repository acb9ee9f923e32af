//! Several comparisons at once: the more rows a table has, the more likely one of them looks like a
//! change by chance.
//!
//! Holm's procedure (Scandinavian Journal of Statistics 6, 1979) keeps the probability that *any*
//! row is called a change, where none is, below one level for the whole table, whatever the rows
//! have to do with each other.

use super::exact::Shift;

/// The probability that a comparison of two equal servers calls any row a change, at most.
///
/// Of 20 such comparisons at most one is to be wrong, with a probability of 95 %: that needs a level
/// of at most 0.018 for each (binomial distribution). With six rows and ten repeats the smallest
/// p-value, 2/1024, still reaches 0.018 / 6.
pub(crate) const LEVEL: f64 = 0.018;

/// What the repeats say of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Judgement {
    /// Whether chance is ruled out, at [`LEVEL`] for all rows together.
    pub(crate) changed: bool,
    /// The p-value, corrected for the number of rows.
    pub(crate) p_value: f64,
    /// The interval at the level at which Holm's procedure looked at this row; it leaves zero out
    /// exactly where `changed` is set. `None` where the row has too few repeats for that level.
    pub(crate) interval: Option<(f64, f64)>,
}

/// Judges the rows of one table together. `None` for a row whose repeats are too few to be told
/// from chance, whatever their values: such a row takes no part, and costs the others nothing.
pub(crate) fn judge(rows: &[Shift], level: f64) -> Vec<Option<Judgement>> {
    let mut order = able(rows, level);
    order.sort_by(|a, b| rows[*a].p_value().total_cmp(&rows[*b].p_value()));
    let mut judged = vec![None; rows.len()];
    let (mut largest, mut rejecting, mut divisor) = (0.0_f64, true, order.len());
    for (place, index) in order.iter().enumerate() {
        let left = order.len() - place;
        let p_value = rows[*index].p_value();
        if rejecting {
            divisor = left;
        }
        rejecting = rejecting && p_value <= level / divisor as f64;
        largest = largest.max((p_value * left as f64).min(1.0));
        judged[*index] = Some(Judgement {
            changed: rejecting,
            p_value: largest,
            interval: rows[*index].interval(level / divisor as f64),
        });
    }
    judged
}

/// The rows that have enough repeats: their smallest possible p-value passes the first step. This
/// depends on the numbers of repeats only, never on their values.
fn able(rows: &[Shift], level: f64) -> Vec<usize> {
    let mut able: Vec<usize> = (0..rows.len()).collect();
    loop {
        let before = able.len();
        able.retain(|index| rows[*index].p_least() <= level / before as f64);
        if able.len() == before {
            return able;
        }
    }
}

/// How many repeats paired rows need at least, so many of them, before any can be called a change.
pub(crate) fn pairs_needed(rows: usize, level: f64) -> usize {
    (1..64).find(|n| 2.0 * 0.5_f64.powi(*n) <= level / rows.max(1) as f64).unwrap_or(64) as usize
}

/// As [`pairs_needed`], for the repeats of each of two separate runs.
pub(crate) fn repeats_needed(rows: usize, level: f64) -> usize {
    // Of n and n values, one order in (2n choose n) has all of one side first.
    let mut orders = 1.0;
    (1..64)
        .find(|n| {
            let n = *n as f64;
            orders *= (2.0 * n) * (2.0 * n - 1.0) / (n * n);
            2.0 / orders <= level / rows.max(1) as f64
        })
        .unwrap_or(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::load::keystream::Random;

    /// Repeats of which `against` lie on the other side, the smallest ones.
    fn row(count: usize, against: usize) -> Shift {
        let sign = |rank: usize| if rank <= against { -1.0 } else { 1.0 };
        Shift::paired(&(1..=count).map(|rank| sign(rank) * rank as f64).collect::<Vec<_>>())
            .unwrap()
    }

    /// Ten repeats, of which none, the smallest, or the two smallest lie on the other side: p-values
    /// of 2/1024, 4/1024 and 10/1024. At 0.02: 0.00195 ≤ 0.02/3; 0.0039 ≤ 0.02/2; 0.0098 ≤ 0.02.
    #[test]
    fn a_worked_example_of_holm() {
        let rows = [row(10, 2), row(10, 0), row(10, 1)];
        let p = |number: f64| number / 1024.0;
        assert_eq!(rows.each_ref().map(Shift::p_value), [p(10.0), p(2.0), p(4.0)]);
        let judged = judge(&rows, 0.02);
        let corrected: Vec<f64> = judged.iter().map(|row| row.unwrap().p_value).collect();
        assert_eq!(corrected, [p(10.0), p(6.0), p(8.0)]);
        assert!(judged.iter().all(|row| row.unwrap().changed));
        // Bonferroni would reject only what is at most 0.02 / 3; at 0.0079 Holm stops at the second.
        let strict = judge(&rows, 0.0077);
        assert_eq!(
            strict.iter().map(|row| row.unwrap().changed).collect::<Vec<_>>(),
            [false, true, false]
        );
        for (row, shift) in strict.iter().zip(&rows) {
            let row = row.unwrap();
            let outside = row.interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
            assert_eq!(outside, row.changed, "{shift:?}");
        }
    }

    #[test]
    fn rows_with_too_few_repeats_take_no_part() {
        let rows = [row(3, 0), row(10, 0), row(3, 0)];
        let judged = judge(&rows, LEVEL);
        assert_eq!(judged.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
        assert!(
            (judged[1].unwrap().p_value - 2.0 / 1024.0).abs() < 1e-12,
            "one row needs no correction"
        );
        assert_eq!(judge(&[], LEVEL), []);
    }

    #[test]
    fn the_number_needed_is_the_smallest_that_can_be_judged() {
        for rows in [1, 2, 6, 20] {
            let needed = pairs_needed(rows, LEVEL);
            assert!(judge(&vec![row(needed, 0); rows], LEVEL).iter().all(Option::is_some));
            assert!(judge(&vec![row(needed - 1, 0); rows], LEVEL).iter().all(Option::is_none));
            let separate = |count: usize| {
                let values: Vec<f64> = (0..count).map(|value| value as f64).collect();
                Shift::separate(&values, &values).unwrap()
            };
            let needed = repeats_needed(rows, LEVEL);
            assert!(judge(&vec![separate(needed); rows], LEVEL).iter().all(Option::is_some));
            assert!(judge(&vec![separate(needed - 1); rows], LEVEL).iter().all(Option::is_none));
        }
        assert_eq!(pairs_needed(6, LEVEL), 10);
    }

    /// Evenly from 0 to 1, 1 left out.
    fn even(random: &mut Random) -> f64 {
        (random.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normally distributed.
    fn normal(random: &mut Random) -> f64 {
        let (first, second) = (1.0 - even(random), even(random));
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }

    /// A machine whose speed is one of two that differ by 40 %, each for some slices, and drifts
    /// within them. It is read once for each slice.
    struct Machine<'a> {
        random: &'a mut Random,
        /// Slices between changes of the speed, on average.
        phase: f64,
        slow: bool,
        drift: f64,
    }

    impl Machine<'_> {
        fn next(&mut self) -> f64 {
            if even(self.random) < 1.0 / self.phase {
                self.slow = !self.slow;
            }
            self.drift = 0.8 * self.drift + 0.02 * normal(self.random);
            self.drift + if self.slow { 0.34 } else { 0.0 }
        }
    }

    /// What 1,000 experiments, of six rows and ten repeats each, called a change: how many some
    /// row, and how many the first one, to which `shift` is added on the second side.
    ///
    /// Noise is of some percent, in part common to all rows, as on a machine; one slice in 20 is
    /// disturbed by up to ten times as much. In turns (A B B A) both sides meet the same phases of
    /// the machine; separate runs have a machine each that stays as it is.
    fn calls(in_turns: bool, phase: f64, shift: f64) -> (usize, usize) {
        let mut random = Random::new(5);
        let (mut any, mut first) = (0, 0);
        for _ in 0..1000 {
            let mut sides: [[Vec<f64>; 6]; 2] = Default::default();
            let mut machine = Machine { random: &mut random, phase, slow: false, drift: 0.0 };
            for slice in 0..40 {
                // 0 1 1 0, and the other way round in every second repeat.
                let side = usize::from((slice % 4 == 1 || slice % 4 == 2) != (slice % 8 > 3));
                let speed = machine.next();
                let disturbed = if even(machine.random) < 0.05 { 10.0 } else { 1.0 };
                let common = 0.015 * disturbed * normal(machine.random);
                for (index, row) in sides[side].iter_mut().enumerate() {
                    let shift = if index == 0 && side == 1 { shift } else { 0.0 };
                    let speed = if in_turns { speed } else { 0.0 };
                    row.push(speed + shift + common + 0.01 * normal(machine.random));
                }
            }
            let [one, two] = &sides;
            let differences =
                |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| b - a).collect::<Vec<_>>();
            let shifts: Vec<Shift> = (one.iter().zip(two))
                .filter_map(|(a, b)| match in_turns {
                    true => Shift::paired(&differences(a, b)),
                    false => Shift::separate(a, b),
                })
                .collect();
            let judged = judge(&shifts, LEVEL);
            any += usize::from(judged.iter().any(|row| row.unwrap().changed));
            first += usize::from(judged[0].unwrap().changed);
        }
        (any, first)
    }

    #[test]
    fn equal_servers_are_rarely_called_different() {
        for in_turns in [true, false] {
            for phase in [5.0, 15.0, 50.0] {
                let (any, _) = calls(in_turns, phase, 0.0);
                // 18 of 1,000 are allowed on average; four standard errors more are chance.
                assert!(any <= 18 + 17, "in turns {in_turns}, {phase}: {any} of 1000");
            }
        }
    }

    #[test]
    fn a_tenth_more_is_found() {
        for in_turns in [true, false] {
            let (_, found) = calls(in_turns, 50.0, 0.095);
            // One slice in 20 is disturbed, and the machine changes its speed about once a run: of
            // the 20 ratios two or three say nothing.
            assert!(found >= 900, "in turns {in_turns}: {found} of 1000");
        }
    }
}
