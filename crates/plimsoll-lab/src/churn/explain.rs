//! What makes the difference between the variants, in sentences made from the figures.

use std::fmt::Write as _;

use crate::accept::median;
use crate::results::ChurnVariant;
use crate::units;

use super::client::PARTS;

/// One sentence per finding: each pair with and without the pool, who closes first, who is left
/// with `TIME_WAIT`s, errors, and against what it ran.
pub(super) fn explain(variants: &[ChurnVariant], has_target: bool) -> Vec<String> {
    let mut sentences = Vec::new();
    for closes in ["client", "client-reset", "server"] {
        let find =
            |pool: &str| variants.iter().find(|one| one.closes == closes && one.pool == pool);
        if let (Some(off), Some(on)) = (find("off"), find("on")) {
            sentences.extend(compare(off, on, "Pool", &format!("{closes} closes")));
        }
    }
    let off = |closes: &str| variants.iter().find(|one| one.closes == closes && one.pool == "off");
    if let (Some(fin), Some(reset)) = (off("client"), off("client-reset")) {
        sentences.extend(compare(fin, reset, "Reset instead of FIN", "pool off"));
    }
    for variant in variants {
        sentences.extend(time_wait(variant));
        sentences.extend(errors(variant));
    }
    if has_target && variants.iter().any(|one| one.server == "lab") {
        sentences.push(
            "Variants in which the server closes first ran against the lab's own small server, since the \
             target leaves closing to its clients: compare them with each other only."
                .to_owned(),
        );
    }
    sentences
}

/// `other` against `base`: the ratio within each sweep, and the part in which most of it lies.
fn compare(base: &ChurnVariant, other: &ChurnVariant, what: &str, where_: &str) -> Option<String> {
    let ratios: Vec<f64> = base
        .turns
        .iter()
        .zip(&other.turns)
        .filter(|(base, _)| **base > 0.0)
        .map(|(base, other)| other / base)
        .collect();
    let (low, middle, high) = quartiles(&ratios)?;
    let verdict = if low > 1.0 {
        "is faster"
    } else if high < 1.0 {
        "is slower"
    } else {
        "makes no clear difference"
    };
    let mut sentence = format!(
        "{what} ({where_}) {verdict}: {} cycles/s against {}, × {middle:.2} within a sweep (quartiles {low:.2} to {high:.2}).",
        units::number(other.cycles_per_second),
        units::number(base.cycles_per_second),
    );
    // Writing to a String cannot fail.
    let mut differences: Vec<(&str, f64)> = PARTS
        .iter()
        .filter_map(|part| {
            Some((*part, other.parts_mean_us.get(*part)? - base.parts_mean_us.get(*part)?))
        })
        .collect();
    differences.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let total: f64 = differences.iter().map(|(_, difference)| difference).sum();
    if let Some((part, _)) = differences.first() {
        let listed: Vec<_> = differences
            .iter()
            .map(|(part, difference)| format!("{part} {difference:+.1}"))
            .collect();
        let _ = write!(
            sentence,
            " Of the client's {total:+.1} µs a cycle most is in {}: {} µs.",
            name_of(part),
            listed.join(", "),
        );
    }
    if let (Some(base), Some(other)) = (base.server_cpu_us_per_cycle, other.server_cpu_us_per_cycle)
    {
        let _ = write!(sentence, " The server's CPU: {other:.1} against {base:.1} µs a cycle.");
    }
    Some(sentence)
}

fn name_of(part: &str) -> &'static str {
    match part {
        "socket" => "making the socket",
        "connect" => "the connect",
        "echo" => "the echo and waiting for it",
        _ => "the disconnect",
    }
}

fn time_wait(variant: &ChurnVariant) -> Option<String> {
    let (server, client) = (variant.time_wait_server?, variant.time_wait_client?);
    if variant.cycles == 0 {
        return None;
    }
    let share = |count: u64| 100.0 * count as f64 / variant.cycles as f64;
    let held = match (server, client) {
        (0, 0) => "no TIME_WAIT on either end".to_owned(),
        (0, client) => {
            format!(
                "{} TIME_WAITs at the client's end ({:.0} % of its cycles), none at the server's",
                units::count(client),
                share(client)
            )
        }
        (server, 0) => {
            format!(
                "{} TIME_WAITs at the server's end ({:.0} % of its cycles), none at the client's",
                units::count(server),
                share(server)
            )
        }
        (server, client) => format!(
            "{} TIME_WAITs at the server's end ({:.0} %) and {} at the client's ({:.0} %)",
            units::count(server),
            share(server),
            units::count(client),
            share(client)
        ),
    };
    Some(format!("Pool {}, {} closes: {held}.", variant.pool, variant.closes))
}

fn errors(variant: &ChurnVariant) -> Option<String> {
    let ports = variant.errors.get("EADDRNOTAVAIL")?;
    Some(format!(
        "Pool {}, {} closes: {} connects found no port (EADDRNOTAVAIL), since TIME_WAITs hold them.",
        variant.pool,
        variant.closes,
        units::count(*ports)
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(quartiles(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some((2.0, 3.0, 4.0)));
        assert_eq!(quartiles(&[1.0, 2.0]), Some((1.25, 1.5, 1.75)));
        assert_eq!(quartiles(&[]), None);
    }
}
