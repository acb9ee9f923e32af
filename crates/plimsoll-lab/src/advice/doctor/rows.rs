//! The rows of `doctor`, one function for each group of limits.

use plimsoll_kernel::limits::{Limits, Rlimit, Triple};

use super::{DESCRIPTORS_OTHER, Facts, KERNEL_BYTES_PER_CONNECTION, nofile_fix, sysctl_fix};
use crate::results::Check;
use crate::units::{bytes, count};

/// How long a socket stays in `TIME_WAIT` (`TCP_TIMEWAIT_LEN`), in seconds.
const TIME_WAIT_SECONDS: u64 = 60;

pub(super) fn all(facts: &Facts, goal: Option<u64>) -> Vec<Check> {
    let mut rows = Vec::new();
    descriptors(&facts.limits, goal, &mut rows);
    queues(&facts.limits, &mut rows);
    ports(&facts.limits, goal, &mut rows);
    buffers(&facts.limits, goal, &mut rows);
    endings(&facts.limits, &mut rows);
    conntrack(&facts.limits, goal, &mut rows);
    memory(facts, goal, &mut rows);
    processors(facts, &mut rows);
    rows
}

/// A row; one without a value says that it is not known, and is `ok`.
pub(super) fn row<T>(
    name: &str,
    value: Option<T>,
    judge: impl FnOnce(T) -> (String, String, bool, Option<String>),
) -> Check {
    let name = name.to_owned();
    match value {
        Some(value) => {
            let (value, allows, ok, fix) = judge(value);
            Check { name, value: Some(value), allows, ok, fix: fix.filter(|_| !ok) }
        }
        None => Check {
            name,
            value: None,
            allows: "not known on this system".to_owned(),
            ok: true,
            fix: None,
        },
    }
}

/// A sysctl that is one number.
fn number(
    name: &str,
    value: Option<u64>,
    allows: impl FnOnce(u64) -> String,
    least: u64,
    set: u64,
) -> Check {
    row(name, value, |value| {
        (value.to_string(), allows(value), value >= least, Some(sysctl_fix(name, &set.to_string())))
    })
}

fn descriptors(limits: &Limits, goal: Option<u64>, rows: &mut Vec<Check>) {
    let shown = |value: u64| {
        if value == Rlimit::UNLIMITED { "unlimited".to_owned() } else { value.to_string() }
    };
    let needed = goal.map_or(1024, |goal| goal.saturating_add(DESCRIPTORS_OTHER));
    let hard = limits.nofile.map_or(0, |limit| limit.hard);
    rows.push(row("nofile (soft)", limits.nofile, |limit| {
        let room = count(limit.soft.saturating_sub(DESCRIPTORS_OTHER));
        let allows =
            format!("{room} connections of a process that does not raise it to the hard limit");
        // What the hard limit does not allow is that row's affair.
        let fix = nofile_fix(needed.min(hard));
        (shown(limit.soft), allows, limit.soft >= needed.min(limit.hard), Some(fix))
    }));
    rows.push(row("nofile (hard)", limits.nofile, |limit| {
        let room = count(limit.hard.saturating_sub(DESCRIPTORS_OTHER));
        let allows = format!("{room} connections of one process; of io_uring's direct descriptors that many in each ring");
        (shown(limit.hard), allows, limit.hard >= needed, Some(nofile_fix(needed)))
    }));
    let least = goal.map_or(1 << 20, |_| needed);
    rows.push(number(
        "fs.nr_open",
        limits.nr_open,
        |n| format!("ulimit -n up to {}", count(n)),
        least,
        least,
    ));
    rows.push(row("fs.file-max", limits.files, |files| {
        let room = files.max.saturating_sub(files.allocated);
        let allows = format!(
            "{} files more than the {} now: so many connections, half with both ends here",
            count(room),
            count(files.allocated)
        );
        let needed = goal.unwrap_or(1024);
        let set = files.allocated.saturating_add(needed).saturating_add(needed / 4);
        (
            files.max.to_string(),
            allows,
            room >= needed,
            Some(sysctl_fix("fs.file-max", &set.to_string())),
        )
    }));
}

fn queues(limits: &Limits, rows: &mut Vec<Check>) {
    // 4096 is the default since Linux 5.4; 128 before.
    let allows = |n: u64| {
        format!(
            "{} connections wait in one accept queue, whatever listen asks for",
            count(n.saturating_add(1))
        )
    };
    rows.push(number("net.core.somaxconn", limits.somaxconn, allows, 4096, 4096));
    let allows =
        |n: u64| format!("{} handshakes in progress on a listener without SYN cookies", count(n));
    rows.push(number(
        "net.ipv4.tcp_max_syn_backlog",
        limits.tcp_max_syn_backlog,
        allows,
        128,
        4096,
    ));
    rows.push(row("net.ipv4.tcp_syncookies", limits.tcp_syncookies, |value| {
        let allows = match value {
            0 => "a flood of SYNs fills the queue of handshakes",
            1 => "handshakes go on when their queue is full",
            _ => "every handshake by cookie: for tests only",
        };
        (
            value.to_string(),
            allows.to_owned(),
            value == 1,
            Some(sysctl_fix("net.ipv4.tcp_syncookies", "1")),
        )
    }));
    rows.push(row("net.ipv4.tcp_abort_on_overflow", limits.tcp_abort_on_overflow, |value| {
        let allows = match value {
            0 => "a client that finds the accept queue full tries again after 1 s, 3 s, …",
            _ => "a client that finds the accept queue full is reset",
        };
        (
            value.to_string(),
            allows.to_owned(),
            value == 0,
            Some(sysctl_fix("net.ipv4.tcp_abort_on_overflow", "0")),
        )
    }));
}

fn ports(limits: &Limits, goal: Option<u64>, rows: &mut Vec<Check>) {
    let name = "net.ipv4.ip_local_port_range";
    let usable = limits.local_ports_usable().map(u64::from);
    rows.push(row(name, limits.local_ports.zip(usable), |((first, last), usable)| {
        let mut allows =
            format!("{} connections from one source address to one destination", count(usable));
        if let Some(sources) =
            goal.and_then(|goal| goal.checked_div(usable).map(|n| n + u64::from(goal % usable > 0)))
        {
            let needed = match sources {
                0 | 1 => "; one source address suffices".to_owned(),
                _ => format!("; {} source addresses for the goal", count(sources)),
            };
            allows.push_str(&needed);
        }
        // 28,232: the range as Linux is delivered. More sources help as much as more ports.
        (format!("{first} {last}"), allows, usable >= 28_000, Some(sysctl_fix(name, "1024 65535")))
    }));
    rows.push(row("net.ipv4.ip_local_reserved_ports", limits.local_ports_reserved, |reserved| {
        (
            reserved.to_string(),
            format!("{} ports of the range are kept from clients", count(reserved.into())),
            true,
            None,
        )
    }));
}

fn buffers(limits: &Limits, goal: Option<u64>, rows: &mut Vec<Check>) {
    let page = limits.page_size.unwrap_or(4096);
    rows.push(row("net.ipv4.tcp_mem", limits.tcp_mem, |Triple { min, default, max }| {
        let allows = format!(
            "{} of TCP buffers in all, under pressure from {}; {} connections holding a page each",
            bytes(max as f64 * page as f64),
            bytes(default as f64 * page as f64),
            count(max)
        );
        let needed = goal.unwrap_or(1024);
        let set = format!("{} {} {needed}", needed / 2, needed - needed / 4);
        (
            format!("{min} {default} {max}"),
            allows,
            max >= needed,
            Some(sysctl_fix("net.ipv4.tcp_mem", &set)),
        )
    }));
    for (name, value, what) in [
        ("net.ipv4.tcp_rmem", limits.tcp_rmem, "received and not read"),
        ("net.ipv4.tcp_wmem", limits.tcp_wmem, "written and not acknowledged"),
    ] {
        rows.push(row(name, value, |Triple { min, default, max }| {
            let allows = format!(
                "up to {} {what} per connection, {} at first",
                bytes(max as f64),
                bytes(default as f64)
            );
            // Below a page the least segment does not fit with its overhead.
            let set = format!("4096 {} {}", default.max(16_384), max.max(4 << 20));
            (format!("{min} {default} {max}"), allows, max >= 65_536, Some(sysctl_fix(name, &set)))
        }));
    }
}

fn endings(limits: &Limits, rows: &mut Vec<Check>) {
    let allows = |n: u64| {
        format!(
            "{} sockets in TIME_WAIT: {} closes a second by this end, {TIME_WAIT_SECONDS} s each",
            count(n),
            count(n / TIME_WAIT_SECONDS)
        )
    };
    rows.push(number(
        "net.ipv4.tcp_max_tw_buckets",
        limits.tcp_max_tw_buckets,
        allows,
        4096,
        262_144,
    ));
    let allows = |n: u64| format!("{} closed sockets that still deliver; more are reset", count(n));
    rows.push(number("net.ipv4.tcp_max_orphans", limits.tcp_max_orphans, allows, 4096, 65_536));
    rows.push(row("net.ipv4.tcp_tw_reuse", limits.tcp_tw_reuse, |value| {
        let allows = match value {
            0 => format!("a client's port in TIME_WAIT is free after {TIME_WAIT_SECONDS} s"),
            1 => "a client's port in TIME_WAIT is used again after 1 s".to_owned(),
            _ => format!("a client's port in TIME_WAIT is used again after 1 s on loopback, else after {TIME_WAIT_SECONDS} s"),
        };
        (value.to_string(), allows, true, None)
    }));
    rows.push(row("net.ipv4.tcp_fin_timeout", limits.tcp_fin_timeout, |value| {
        let allows = format!("a closed socket waits {value} s for the other end's FIN");
        (
            value.to_string(),
            allows,
            value <= 120,
            Some(sysctl_fix("net.ipv4.tcp_fin_timeout", "60")),
        )
    }));
}

fn conntrack(limits: &Limits, goal: Option<u64>, rows: &mut Vec<Check>) {
    let name = "net.netfilter.nf_conntrack_max";
    let mut check = row(name, limits.nf_conntrack_max, |max| {
        let tracked = limits.nf_conntrack_count.unwrap_or(0);
        let room = max.saturating_sub(tracked);
        let needed = goal.unwrap_or(4096);
        let allows = format!(
            "{} connections more than the {} tracked now, if a firewall rule tracks them",
            count(room),
            count(tracked)
        );
        let set = needed.saturating_add(needed / 4).saturating_add(tracked);
        (max.to_string(), allows, room >= needed, Some(sysctl_fix(name, &set.to_string())))
    });
    if check.value.is_none() {
        check.allows = String::from("no connection tracking here: no bound");
    }
    rows.push(check);
}

fn memory(facts: &Facts, goal: Option<u64>, rows: &mut Vec<Check>) {
    let needed = goal.map_or(64 << 20, |goal| goal.saturating_mul(KERNEL_BYTES_PER_CONNECTION));
    let holds = |room: u64| {
        format!(
            "{} idle connections' server ends in the kernel",
            count(room / KERNEL_BYTES_PER_CONNECTION)
        )
    };
    rows.push(row("memory available", facts.memory.as_ref(), |memory| {
        let fix = format!("free or add memory: {} are needed", bytes(needed as f64));
        (
            bytes(memory.available as f64),
            holds(memory.available),
            memory.available >= needed,
            Some(fix),
        )
    }));
    let group = facts.cgroup.as_ref();
    rows.push(bound(
        "cgroup memory",
        group.and_then(|group| group.memory.as_ref()),
        needed,
        holds,
        "memory.max",
    ));
    rows.push(bound(
        "cgroup pids",
        group.and_then(|group| group.pids.as_ref()),
        64,
        |b| format!("{} threads more", count(b)),
        "pids.max",
    ));
    rows.push(row("memlock", facts.limits.memlock, |limit| {
        let shown = if limit.soft == Rlimit::UNLIMITED {
            "unlimited".to_owned()
        } else {
            bytes(limit.soft as f64)
        };
        let allows =
            format!("{shown} of registered buffers; rings are not charged to it since Linux 5.12");
        // 64 KiB was the kernel's default until 5.15, 8 MiB since.
        (
            shown,
            allows,
            limit.soft >= 65_536,
            Some("ulimit -l 8192; of a service: LimitMEMLOCK=8M in its unit".to_owned()),
        )
    }));
}

fn bound(
    name: &str,
    bound: Option<&plimsoll_kernel::cgroup::Bound>,
    needed: u64,
    words: impl FnOnce(u64) -> String,
    file: &str,
) -> Check {
    match bound {
        None => Check {
            name: name.to_owned(),
            value: None,
            allows: "no such control group: no bound".to_owned(),
            ok: true,
            fix: None,
        },
        Some(bound) => match bound.room() {
            None => Check {
                name: name.to_owned(),
                value: Some("unlimited".to_owned()),
                allows: "no bound".to_owned(),
                ok: true,
                fix: None,
            },
            Some(room) => {
                let limit = bound.limit.unwrap_or(0);
                let set = bound.current.saturating_add(needed);
                let fix = format!("echo {set} > {}", bound.group.join(file).display());
                Check {
                    name: name.to_owned(),
                    value: Some(limit.to_string()),
                    allows: words(room),
                    ok: room >= needed,
                    fix: (room < needed).then_some(fix),
                }
            }
        },
    }
}

fn processors(facts: &Facts, rows: &mut Vec<Check>) {
    rows.push(io_uring(facts));
    let allows = |n: u64| format!("{} threads on the machine", count(n));
    rows.push(number("kernel.threads-max", facts.limits.threads_max, allows, 1024, 32_768));
    rows.push(row(
        "net.ipv4.tcp_congestion_control",
        facts.limits.congestion_control.clone(),
        |name| {
            let allows = match name.as_str() {
                "bbr" => {
                    "paces each connection with a timer: some per cent more CPU on a fast network"
                }
                _ => "how fast a connection grows its window",
            };
            (name, allows.to_owned(), true, None)
        },
    ));
    rows.push(row("CPUs", facts.cpus, |cpus| {
        (cpus.to_string(), format!("{} shards, a core each", count(cpus)), true, None)
    }));
    let mut quota = row("cgroup cpu", facts.cgroup.as_ref().and_then(|group| group.cpu), |quota| {
        (
            format!("{:.2}", quota.cpus()),
            "CPUs' worth of time in each period; then everything waits".to_owned(),
            true,
            None,
        )
    });
    if quota.value.is_none() {
        quota.allows = String::from("no quota known: no bound");
    }
    rows.push(quota);
}

fn io_uring(facts: &Facts) -> Check {
    let fix = sysctl_fix("kernel.io_uring_disabled", "0");
    match (&facts.ring, facts.limits.io_uring_disabled) {
        (Some(Ok(())), _) => row("io_uring", Some(()), |()| {
            (
                "works".to_owned(),
                "a ring was made: completion-based serving, direct descriptors".to_owned(),
                true,
                None,
            )
        }),
        (Some(Err(why)), _) => row("io_uring", Some(()), |()| {
            let fix = format!("{fix}; in a container: allow io_uring_setup in its seccomp profile");
            ("refused".to_owned(), format!("no ring: {why}"), false, Some(fix))
        }),
        (None, disabled) => row("io_uring", disabled, |disabled| {
            let allows = match disabled {
                0 => "allowed by the sysctl; a seccomp filter may still forbid it",
                1 => "for root and the group of kernel.io_uring_group only",
                _ => "for nobody",
            };
            (disabled.to_string(), allows.to_owned(), disabled == 0, Some(fix))
        }),
    }
}
