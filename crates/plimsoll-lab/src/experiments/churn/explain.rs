//! What makes the difference between the variants, in sentences made from the figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::errno;
use crate::results::ChurnVariant;
use crate::statistics::quartiles;
use crate::units;

use super::client::PARTS;
use super::servers::{EXPIRED, LIMBO, RETURNED};

/// What [`ChurnVariant::server`] says of an embedded server.
pub(super) const EMBEDDED: &str = "embedded";

/// One sentence per finding: each pair with and without the pools, what of it is the server's, what
/// it took from its pools, who closes first, who is left with `TIME_WAIT`s, errors, and against what
/// it ran.
pub(super) fn explain(variants: &[ChurnVariant]) -> Vec<String> {
    let mut sentences = Vec::new();
    let find = |closes: &str, pool: &str| {
        variants.iter().find(|one| one.closes == closes && one.pool == pool)
    };
    for closes in ["client", "client-reset", "server"] {
        let (off, on) = (find(closes, "off"), find(closes, "on"));
        let where_ = format!("{closes} closes");
        if let (Some(off), Some(on)) = (off, on) {
            sentences.extend(compare(off, on, "Pool", &where_));
        }
        if let (Some(off), Some(server)) = (off, find(closes, "server")) {
            sentences.extend(compare(off, server, "The server's pool alone", &where_));
        }
        sentences.extend(pools(closes, off, on));
    }
    if let (Some(fin), Some(reset)) = (find("client", "off"), find("client-reset", "off")) {
        sentences.extend(compare(fin, reset, "Reset instead of FIN", "pool off"));
    }
    for variant in variants {
        // The client of `server` is that of `off`, and so are its TIME_WAITs.
        sentences.extend(time_wait(variant).filter(|_| variant.pool != "server"));
        sentences.extend(errors(variant));
    }
    sentences.extend(against(variants));
    if cfg!(windows) && variants.iter().any(|one| one.pool == "on") {
        sentences.push(
            "The pool is the server's alone: the client makes a socket for each connection in every \
             variant."
                .to_owned(),
        );
    }
    sentences
}

/// What the servers themselves say of their pools, on and off.
fn pools(closes: &str, off: Option<&ChurnVariant>, on: Option<&ChurnVariant>) -> Option<String> {
    let said = |name: &str, variant: Option<&ChurnVariant>| {
        Some(format!("{name}, {}", taken(variant?.server_pools.as_ref()?)?))
    };
    let both: Vec<String> = [said("on", on), said("off", off)].into_iter().flatten().collect();
    let mut sentence = format!(
        "What the server took was there before ({closes} closes): pool {}.",
        both.join("; ")
    );
    sentence.push_str(&on.and_then(way_back).unwrap_or_default());
    (!both.is_empty()).then_some(sentence)
}

/// What became of the sockets of a server that has a pool of them; `None` of one that has not.
fn way_back(variant: &ChurnVariant) -> Option<String> {
    let pools = variant.server_pools.as_ref()?;
    let figure = |name: &str| pools.get(name).copied().unwrap_or(0);
    if figure("socket_hits") + figure("socket_misses") == 0 {
        return None;
    }
    Some(match figure(RETURNED) {
        0 => " Its sockets were made ahead, and none came back to be used again: this system does \
              not reuse them."
            .to_owned(),
        returned => format!(
            " {} sockets came back to be used again; at most {} were on their way at once, and {} \
             took too long.",
            units::count(returned),
            units::count(figure(LIMBO)),
            units::count(figure(EXPIRED))
        ),
    })
}

/// `41 of 42 blocks, 5 of 5 slots`; `None` where the server names none.
fn taken(pools: &BTreeMap<String, u64>) -> Option<String> {
    let kinds: Vec<String> = pools
        .iter()
        .filter_map(|(name, hits)| {
            let kind = name.strip_suffix("_hits")?;
            let misses = pools.get(&format!("{kind}_misses"))?;
            (hits + misses > 0).then_some(())?;
            Some(format!("{} of {} {kind}s", units::count(*hits), units::count(hits + misses)))
        })
        .collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}

/// What the pool of a target is not, and which variants did not run against it.
fn against(variants: &[ChurnVariant]) -> Option<String> {
    let target = variants.iter().find(|one| one.server != EMBEDDED)?;
    let mut sentence = format!(
        "Against {} the pool is the client's alone: the server's own is as it was set in every \
         variant, and what it took from it is not known.",
        target.server
    );
    if variants.iter().any(|one| one.server == EMBEDDED) {
        sentence.push_str(
            " Variants in which the server closes first ran against embedded servers, since the \
             target leaves closing to its clients: compare them with each other only.",
        );
    }
    Some(sentence)
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
    let (name, ports) =
        errno::NO_PORT.iter().find_map(|name| variant.errors.get_key_value(*name))?;
    Some(format!(
        "Pool {}, {} closes: {} connects found no port ({name}), since TIME_WAITs hold them.",
        variant.pool,
        variant.closes,
        units::count(*ports)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn variant(pool: &str, server: &str, hits: u64, rate: f64) -> ChurnVariant {
        let pools = json!({"block_hits": hits, "block_misses": 100 - hits, "stale": 7});
        let known = server == EMBEDDED;
        serde_json::from_value(json!({
            "pool": pool, "closes": "client", "server": server, "cycles_per_second": rate,
            "turns": [rate, rate * 1.01], "cycles": 100, "errors": {}, "pool_hits": 0,
            "pool_misses": 0, "parts_us": {}, "time_wait_samples": [],
            "parts_mean_us": {"socket": 1e6 / rate, "connect": 2.0},
            "server_cpu_us_per_cycle": if known { json!(1e5 / rate) } else { json!(null) },
            "server_pools": if known { pools } else { json!(null) },
        }))
        .expect("the fields are those of the result")
    }

    #[test]
    fn the_servers_share_is_told_apart() {
        let three = [
            variant("off", EMBEDDED, 0, 1000.0),
            variant("server", EMBEDDED, 98, 1100.0),
            variant("on", EMBEDDED, 99, 2200.0),
        ];
        let said = explain(&three).join("\n");
        assert!(said.contains("Pool (client closes) is faster"), "{said}");
        assert!(said.contains("The server's pool alone (client closes) is faster"), "{said}");
        assert!(said.contains("× 1.10 within a sweep"), "{said}");
        assert!(said.contains("pool on, 99 of 100 blocks; off, 0 of 100 blocks."), "{said}");
        assert!(!said.contains("Against"), "{said}");
    }

    #[test]
    fn sockets_on_their_way_back_are_told_of() {
        let with = |figures: serde_json::Value| {
            let mut on = variant("on", EMBEDDED, 0, 1000.0);
            on.server_pools = serde_json::from_value(figures).unwrap();
            way_back(&on).unwrap_or_default()
        };
        let said = with(json!({"socket_hits": 90, "socket_misses": 3, RETURNED: 80, LIMBO: 7}));
        assert!(said.contains("80 sockets came back") && said.contains("at most 7"), "{said}");
        let said = with(json!({"socket_hits": 90, "socket_misses": 3}));
        assert!(said.contains("none came back"), "{said}");
        assert_eq!(with(json!({"socket_hits": 0, "socket_misses": 0, "block_hits": 3})), "");
    }

    #[test]
    fn of_a_target_the_pool_is_the_clients_alone() {
        let two =
            [variant("off", "127.0.0.1:9", 0, 1000.0), variant("on", "127.0.0.1:9", 0, 2000.0)];
        let said = explain(&two).join("\n");
        assert!(said.contains("Against 127.0.0.1:9 the pool is the client's alone"), "{said}");
        assert!(!said.contains("was there before") && !said.contains("embedded"), "{said}");
    }
}
