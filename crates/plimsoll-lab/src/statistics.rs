//! Medians and quartiles: what is quoted where a machine is noisy; and whether two series of repeats
//! differ by more than chance.

pub(crate) mod exact;
pub(crate) mod family;

/// The middle of the values; `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Lower quartile, median, upper quartile; `None` of none.
pub(crate) fn quartiles(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let position = share * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
        low + (high - low) * position.fract()
    };
    Some((median(values).map(|_| at(0.25))?, at(0.5), at(0.75)))
}

/// Connections of which the memory is told from other growth whatever it is: a page more or less is
/// four bytes of each.
const ENOUGH_CONNECTIONS: u64 = 1000;
/// Growth that is told from other growth with fewer connections too.
const ENOUGH_BYTES: u64 = 256 << 10;

/// Resident memory of a server per connection, from what it had before and has with so many more;
/// `None` where that is lost among the pages that a process takes and gives back anyway: "0 bytes" of
/// ten connections says nothing.
pub(crate) fn user_bytes_per_connection(before: u64, now: u64, connections: u64) -> Option<f64> {
    let told = connections >= ENOUGH_CONNECTIONS || now.saturating_sub(before) >= ENOUGH_BYTES;
    (told && connections > 0).then(|| (now as f64 - before as f64) / connections as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_tell_their_memory_only_where_it_is_much() {
        const MB: u64 = 1_000_000;
        assert_eq!(user_bytes_per_connection(MB, MB, 10), None, "not 0");
        assert_eq!(user_bytes_per_connection(MB, MB + 4096, 10), None);
        assert_eq!(user_bytes_per_connection(MB, 11 * MB, 10), Some(1e6));
        assert_eq!(user_bytes_per_connection(MB, MB, 1000), Some(0.0));
        assert_eq!(user_bytes_per_connection(MB, MB - 4000, 4000), Some(-1.0));
        assert_eq!(user_bytes_per_connection(0, MB, 0), None);
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(quartiles(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some((2.0, 3.0, 4.0)));
        assert_eq!(quartiles(&[1.0, 2.0]), Some((1.25, 1.5, 1.75)));
        assert_eq!(quartiles(&[]), None);
    }
}
