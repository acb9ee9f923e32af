//! Exact tests of two samples, and the intervals that belong to them.
//!
//! Two targets that took turns within one run are compared by Wilcoxon's signed-rank test: of each
//! repeat one difference, and the question whether the differences lie around zero. Two runs, whose
//! repeats have nothing to do with each other, are compared by the rank-sum test (Mann and Whitney).
//! Both use the order of the values only, so that one disturbed repeat cannot make a difference,
//! and both have an exact distribution for any number of repeats, however small.
//!
//! The interval of a difference holds every difference that the same test does not reject (Hodges
//! and Lehmann 1963; Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", sections
//! 3.3 and 4.3). A verdict and its interval therefore never contradict each other. A bootstrap was
//! tried and left: with ten repeats its 95 % interval misses the truth more often than once in
//! twenty, and at the level that several rows need it misses far more often than it says. A test
//! below shows both.

/// Most differences of a signed-rank test, and most values of a side of a rank-sum test: the exact
/// distributions are cheap up to here. Longer series are averaged down to it.
pub(crate) const MOST: usize = 40;

/// Two samples, reduced to what a test and its interval need: all differences that count, in
/// ascending order, and how likely it is by chance that only so many of them lie on one side.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shift {
    /// Walsh averages (all averages of two differences, each with itself included), or all
    /// differences between a value of one side and a value of the other.
    differences: Vec<f64>,
    /// `tail[k]`: the probability that at most `k` of `differences` lie above zero, where nothing
    /// but chance decides.
    tail: Vec<f64>,
}

impl Shift {
    /// Of paired differences: the signed-rank test. `None` of no difference.
    ///
    /// Where two values are equal the test counts that against a change. Cost: cubic in the number
    /// of differences, of which at most [`MOST`] are used, below a millisecond.
    pub(crate) fn paired(differences: &[f64]) -> Option<Self> {
        let values = averaged(differences);
        let walsh = values.iter().enumerate().flat_map(|(index, first)| {
            values[index..].iter().map(move |second| f64::midpoint(*first, *second))
        });
        Self::of(walsh.collect(), signed_rank_counts(values.len()))
    }

    /// Of two separate samples, second minus first: the rank-sum test. `None` where one is empty.
    ///
    /// Cost as [`paired`](Self::paired).
    pub(crate) fn separate(first: &[f64], second: &[f64]) -> Option<Self> {
        let (first, second) = (averaged(first), averaged(second));
        let differences = second.iter().flat_map(|b| first.iter().map(move |a| b - a)).collect();
        Self::of(differences, rank_sum_counts(first.len(), second.len()))
    }

    fn of(mut differences: Vec<f64>, counts: Vec<f64>) -> Option<Self> {
        if differences.is_empty() {
            return None;
        }
        differences.sort_by(f64::total_cmp);
        let all: f64 = counts.iter().sum();
        let mut sum = 0.0;
        let tail = counts
            .iter()
            .map(|count| {
                sum += count;
                sum / all
            })
            .collect();
        Some(Self { differences, tail })
    }

    /// The estimate of the shift: the median of the differences (Hodges and Lehmann).
    pub(crate) fn estimate(&self) -> f64 {
        // There is at least one, or the value was not made.
        super::median(&self.differences).unwrap_or(0.0)
    }

    /// How probable a shift like this one, or a larger one, is by chance alone; two-sided.
    pub(crate) fn p_value(&self) -> f64 {
        let above = self.differences.iter().filter(|one| **one >= 0.0).count();
        let below = self.differences.iter().filter(|one| **one <= 0.0).count();
        self.tail.get(above.min(below)).map_or(1.0, |tail| (2.0 * tail).min(1.0))
    }

    /// The smallest p-value that samples of this size can have: where all values of one side lie
    /// above all of the other.
    pub(crate) fn p_least(&self) -> f64 {
        self.tail.first().map_or(1.0, |tail| (2.0 * tail).min(1.0))
    }

    /// All shifts that the test does not reject at `level`: they hold the true one with a
    /// probability of at least 1 − `level`. `None` where the samples are too small for that level.
    ///
    /// It leaves zero out exactly where [`p_value`](Self::p_value) is at most `level`.
    pub(crate) fn interval(&self, level: f64) -> Option<(f64, f64)> {
        let rejected = self.tail.iter().take_while(|tail| 2.0 * **tail <= level).count();
        let (low, high) = (rejected.checked_sub(1)?, self.differences.len().checked_sub(rejected)?);
        (low <= high).then(|| (self.differences[low], self.differences[high]))
    }
}

/// A series of at most [`MOST`] values: neighbours are averaged where there are more.
fn averaged(values: &[f64]) -> Vec<f64> {
    let each = values.len().div_ceil(MOST).max(1);
    values.chunks(each).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect()
}

/// In how many of the 2^n ways to give signs to the ranks 1 to n the positive ones sum up to each
/// number.
fn signed_rank_counts(n: usize) -> Vec<f64> {
    let mut counts = vec![0.0; n * (n + 1) / 2 + 1];
    counts[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..counts.len()).rev() {
            counts[sum] += counts[sum - rank];
        }
    }
    counts
}

/// In how many of the orders of `first` and `second` values each number of pairs has the value of
/// the second side above that of the first: the coefficients of the Gaussian binomial.
fn rank_sum_counts(first: usize, second: usize) -> Vec<f64> {
    // `ways[m]` holds them for m values of one side, and so far as many of the other as rounds.
    let mut ways = vec![vec![1.0]; first + 1];
    for there in 1..=second {
        let mut next = vec![vec![1.0]];
        for m in 1..=first {
            // The largest value is of the other side and lies above m values, or it is one of the m.
            let mut counts = vec![0.0; m * there + 1];
            for (pairs, count) in ways[m].iter().enumerate() {
                counts[pairs + m] += count;
            }
            for (pairs, count) in next[m - 1].iter().enumerate() {
                counts[pairs] += count;
            }
            next.push(counts);
        }
        ways = next;
    }
    ways.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::load::keystream::Random;

    /// Normally distributed (Box and Muller).
    fn normal(random: &mut Random) -> f64 {
        let mut even = || (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (first, second) = (1.0 - even(), even());
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }

    fn sample(random: &mut Random, count: usize, mean: f64, spread: f64) -> Vec<f64> {
        (0..count).map(|_| mean + spread * normal(random)).collect()
    }

    #[test]
    fn distributions_are_those_of_counting_every_case() {
        assert_eq!(signed_rank_counts(3), [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
        assert_eq!(rank_sum_counts(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        for n in 1..10_usize {
            let mut counted = vec![0.0; n * (n + 1) / 2 + 1];
            for signs in 0..1_usize << n {
                counted[(0..n)
                    .filter(|bit| signs >> bit & 1 == 1)
                    .map(|bit| bit + 1)
                    .sum::<usize>()] += 1.0;
            }
            assert_eq!(signed_rank_counts(n), counted, "{n}");
        }
        for (m, n) in [(3, 4), (5, 2), (1, 6)] {
            let mut counted = vec![0.0; m * n + 1];
            for order in 0..1_usize << (m + n) {
                if order.count_ones() as usize == n {
                    let above = |at: usize| (0..at).filter(|bit| order >> bit & 1 == 0).count();
                    let pairs =
                        (0..m + n).filter(|at| order >> at & 1 == 1).map(above).sum::<usize>();
                    counted[pairs] += 1.0;
                }
            }
            assert_eq!(rank_sum_counts(m, n), counted, "{m} and {n}");
        }
    }

    /// Hollander, Wolfe and Chicken, examples 3.1 and 3.4: depression scores of nine patients before
    /// and after. The sum of the negative ranks is 5, so that the two-sided p-value is 2 × 0.0195.
    #[test]
    fn a_worked_example_of_paired_values() {
        let before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
        let after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];
        let differences: Vec<f64> = before.iter().zip(after).map(|(x, y)| y - x).collect();
        let shift = Shift::paired(&differences).unwrap();
        assert!((shift.p_value() - 0.0390625).abs() < 1e-9, "{}", shift.p_value());
        assert!((shift.estimate() + 0.46).abs() < 1e-9, "{}", shift.estimate());
        let (low, high) = shift.interval(0.04).unwrap();
        assert!((low + 0.786).abs() < 1e-9 && (high + 0.010).abs() < 1e-9, "{low} {high}");
        assert_eq!(shift.interval(0.001), None, "nine pairs cannot tell at that level");
    }

    #[test]
    fn verdict_and_interval_never_contradict_each_other() {
        let mut random = Random::new(7);
        for round in 0..2000 {
            let count = 3 + round % 12;
            // Coarse values, so that many are equal.
            let coarse = |values: Vec<f64>| -> Vec<f64> {
                values.into_iter().map(|value| (value * 2.0).round()).collect()
            };
            let first = coarse(sample(&mut random, count, 0.0, 1.0));
            let second = coarse(sample(&mut random, count + round % 3, 0.7, 1.0));
            for shift in [Shift::paired(&first), Shift::separate(&first, &second)] {
                let shift = shift.unwrap();
                for level in [0.5, 0.05, 0.01, 0.001] {
                    let outside =
                        shift.interval(level).is_some_and(|(low, high)| low > 0.0 || high < 0.0);
                    assert_eq!(outside, shift.p_value() <= level, "{shift:?} at {level}");
                }
                assert!(shift.p_value() >= shift.p_least());
            }
        }
    }

    /// The share of 2,000 experiments whose interval holds the true shift.
    fn coverage(mut interval: impl FnMut(&mut Random) -> Option<(f64, f64)>, truth: f64) -> f64 {
        let mut random = Random::new(11);
        let holds = |(low, high): (f64, f64)| low <= truth && truth <= high;
        let hits = (0..2000).filter(|_| interval(&mut random).is_none_or(holds)).count();
        hits as f64 / 2000.0
    }

    /// The percentile bootstrap of the mean, with 1,000 resamples.
    fn bootstrap(values: &[f64], level: f64, random: &mut Random) -> (f64, f64) {
        let last = values.len() as u32 - 1;
        let mut means: Vec<f64> = (0..1000)
            .map(|_| {
                let sum: f64 =
                    values.iter().map(|_| values[random.between(0, last) as usize]).sum();
                sum / values.len() as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[((share * 999.0).round() as usize).min(999)];
        (at(level / 2.0), at(1.0 - level / 2.0))
    }

    /// Two thousand experiments have a standard error of half a percent; the bounds leave three.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say_and_a_bootstrap_does_not() {
        for count in [8, 10, 20] {
            for level in [0.05, 0.01] {
                let paired = coverage(
                    |random| Shift::paired(&sample(random, count, 0.1, 0.04))?.interval(level),
                    0.1,
                );
                let separate = coverage(
                    |random| {
                        let first = sample(random, count, 0.0, 0.04);
                        Shift::separate(&first, &sample(random, count, 0.1, 0.04))?.interval(level)
                    },
                    0.1,
                );
                let least = 1.0 - level - 0.015;
                assert!(paired >= least && separate >= least, "{count}: {paired} {separate}");
            }
        }
        let bootstrapped = coverage(
            |random| {
                let values = sample(random, 10, 0.1, 0.04);
                Some(bootstrap(&values, 0.05, random))
            },
            0.1,
        );
        assert!(bootstrapped < 0.93, "a bootstrap of ten would do: {bootstrapped}");
    }

    #[test]
    fn one_disturbed_repeat_neither_makes_nor_hides_much() {
        let quiet = [0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.005, -0.015, 0.0];
        let disturbed = Shift::paired(&[&quiet[..], &[5.0]].concat()).unwrap();
        assert!(disturbed.p_value() > 0.2 && disturbed.estimate() < 0.02, "{disturbed:?}");
    }

    #[test]
    fn long_series_are_averaged() {
        let long: Vec<f64> = (0..1000).map(f64::from).collect();
        let shift = Shift::separate(&long, &long).unwrap();
        assert_eq!(shift.differences.len(), MOST * MOST);
        assert!(shift.p_value() > 0.9);
        assert_eq!(Shift::paired(&[]), None);
        assert_eq!(Shift::separate(&long, &[]), None);
    }
}
