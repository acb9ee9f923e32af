//! `doctor` on this machine.

use plimsoll_lab::advice::doctor::{self, Facts};

#[test]
fn every_limit_has_a_row() {
    let doctor = doctor::examine(&Facts::read(), None);
    let text = doctor::render_text(&doctor);
    println!("{text}");
    for name in [
        "nofile (soft)",
        "nofile (hard)",
        "fs.nr_open",
        "fs.file-max",
        "net.core.somaxconn",
        "net.ipv4.tcp_max_syn_backlog",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_abort_on_overflow",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_mem",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.tcp_max_tw_buckets",
        "net.ipv4.tcp_max_orphans",
        "net.ipv4.tcp_tw_reuse",
        "net.ipv4.tcp_fin_timeout",
        "net.netfilter.nf_conntrack_max",
        "memory available",
        "cgroup memory",
        "cgroup pids",
        "memlock",
        "io_uring",
        "kernel.threads-max",
        "net.ipv4.tcp_congestion_control",
        "CPUs",
        "cgroup cpu",
    ] {
        let check = doctor.checks.iter().find(|check| check.name == name);
        let check = check.unwrap_or_else(|| panic!("no row for {name}"));
        assert!(!check.allows.is_empty(), "{check:?}");
        assert!(check.ok || check.fix.is_some(), "{check:?}");
        assert!(!check.ok || check.fix.is_none(), "{check:?}");
    }
    assert_eq!(doctor.checks.len(), 27);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_goal_beyond_the_machine_is_not_met() {
    let doctor = doctor::examine(&Facts::read(), Some(1_000_000_000));
    assert!(!doctor::is_met(&doctor));
    let low: Vec<_> = doctor.checks.iter().filter(|check| !check.ok).collect();
    assert!(
        low.iter().any(|check| check.name == "nofile (hard)" || check.name == "memory available")
    );
    assert!(low.iter().all(|check| check.fix.is_some()));
}
