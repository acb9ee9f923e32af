//! The rows of `doctor` on Windows.

use plimsoll_kernel::windows::{Performance, TcpSettings};

use super::Facts;
use super::rows::row;
use crate::results::Check;
use crate::units::{bytes, count};

/// Non-paged pool of an accepted connection and of one operation in flight on it, in bytes: 1,500 and
/// 500 (*Network Programming for Microsoft Windows*, 2nd edition, chapter 6; of its time). For judging
/// without a measurement; `capacity` measures.
const POOL_BYTES_PER_CONNECTION: u64 = 2_000;
/// Ports that Windows gives to clients as it is delivered, since Vista: 49152 to 65535.
const PORTS_USUAL: u64 = 16_384;

pub(super) fn all(facts: &Facts, tcp: &TcpSettings, goal: Option<u64>) -> Vec<Check> {
    let mut rows = Vec::new();
    ports(tcp, goal, &mut rows);
    memory(facts, goal, &mut rows);
    rows.push(row("CPUs", facts.cpus, |cpus| {
        (cpus.to_string(), format!("{} shards, a core each", count(cpus)), true, None)
    }));
    rows
}

fn ports(tcp: &TcpSettings, goal: Option<u64>, rows: &mut Vec<Check>) {
    rows.push(row("dynamic port range (tcp)", tcp.dynamic_ports, |(first, last)| {
        let usable = u64::from(last.saturating_sub(first)) + 1;
        let needed = match goal.map(|goal| goal.div_ceil(usable)) {
            None => String::new(),
            Some(0 | 1) => "; one source address suffices".to_owned(),
            Some(sources) => format!("; {} source addresses for the goal", count(sources)),
        };
        let allows = format!(
            "{} connections from one source address to one destination{needed}",
            count(usable)
        );
        let fix = "netsh int ipv4 set dynamicport tcp start=1025 num=64511".to_owned();
        (format!("{first} {last}"), allows, usable >= PORTS_USUAL, Some(fix))
    }));
    let mut old = row("MaxUserPort", tcp.max_user_port, |last| {
        let allows = format!(
            "clients' ports up to {last} in Windows 2000 and 2003; later the range above holds"
        );
        (last.to_string(), allows, true, None)
    });
    if old.value.is_none() {
        "not set: the range above holds".clone_into(&mut old.allows);
    }
    rows.push(old);
    let mut delay = row("TcpTimedWaitDelay", tcp.timed_wait_delay, |seconds| {
        let allows = format!("a port in TIME_WAIT is free after {seconds} s");
        let fix = "reg add HKLM\\SYSTEM\\CurrentControlSet\\Services\\Tcpip\\Parameters \
                   /v TcpTimedWaitDelay /t REG_DWORD /d 30 /f, and restart"
            .to_owned();
        // The largest that Windows was ever delivered with.
        (seconds.to_string(), allows, seconds <= 240, Some(fix))
    });
    if delay.value.is_none() {
        "not set: a port in TIME_WAIT is free after the system's own time, minutes"
            .clone_into(&mut delay.allows);
    }
    rows.push(delay);
}

fn memory(facts: &Facts, goal: Option<u64>, rows: &mut Vec<Check>) {
    let needed = goal.map_or(64 << 20, |goal| goal.saturating_mul(POOL_BYTES_PER_CONNECTION));
    rows.push(row("memory available", facts.memory.as_ref(), |memory| {
        let allows = format!(
            "{} idle connections' server ends in the non-paged pool, at {} each",
            count(memory.available / POOL_BYTES_PER_CONNECTION),
            bytes(POOL_BYTES_PER_CONNECTION as f64)
        );
        let fix = format!("free or add memory: {} are needed", bytes(needed as f64));
        (bytes(memory.available as f64), allows, memory.available >= needed, Some(fix))
    }));
    let pool = facts.performance.and_then(|now| now.nonpaged_pool);
    rows.push(row("non-paged pool", pool, |pool| {
        let allows =
            "in use now; Windows does not tell how much is left: `plimsoll capacity` tries it";
        (bytes(pool as f64), allows.to_owned(), true, None)
    }));
    rows.push(row("commit charge", facts.performance, |now: Performance| {
        let room = now.commit_limit.saturating_sub(now.commit);
        let fix =
            format!("a larger page file, or more memory: {} are needed", bytes(needed as f64));
        (
            bytes(now.commit as f64),
            format!("{} more may be promised, to everybody together", bytes(room as f64)),
            room >= needed,
            Some(fix),
        )
    }));
}

#[cfg(test)]
mod tests {
    use plimsoll_kernel::windows::{Performance, TcpSettings};

    use crate::advice::doctor::{Facts, examine, is_met, render_text};

    fn facts() -> Facts {
        Facts {
            tcp: Some(TcpSettings {
                dynamic_ports: Some((49_152, 65_535)),
                max_user_port: None,
                timed_wait_delay: Some(30),
            }),
            performance: Some(Performance {
                nonpaged_pool: Some(300 << 20),
                paged_pool: None,
                commit: 4 << 30,
                commit_limit: (4 << 30) + (100 << 20),
                handles: 1,
                processes: 1,
                threads: 1,
            }),
            ..Facts::default()
        }
    }

    #[test]
    fn a_workstation_is_judged_by_its_own_limits() {
        let doctor = examine(&facts(), Some(50_000));
        let of = |name: &str| doctor.checks.iter().find(|check| check.name == name).unwrap();
        let ports = of("dynamic port range (tcp)");
        assert!(ports.ok && ports.allows.contains("16,384 connections"), "{ports:?}");
        assert!(ports.allows.contains("4 source addresses"), "{ports:?}");
        assert_eq!(of("MaxUserPort").value, None);
        assert!(of("TcpTimedWaitDelay").allows.contains("30 s"));
        assert!(of("commit charge").ok && is_met(&doctor));
        assert!(doctor.checks.iter().all(|check| !check.name.contains("net.")), "{doctor:?}");
        assert!(render_text(&doctor).lines().all(|line| line.chars().count() <= 100));
        assert!(!is_met(&examine(&facts(), Some(1_000_000))), "100 MiB are not enough");
    }

    #[test]
    fn what_is_not_known_has_no_value() {
        let bare = Facts { tcp: Some(TcpSettings::default()), ..Facts::default() };
        let doctor = examine(&bare, None);
        assert!(doctor.checks.iter().all(|check| check.value.is_none() && check.ok), "{doctor:?}");
    }
}
