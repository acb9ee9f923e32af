//! `doctor`: every limit of this machine that matters to connections, in words and numbers, with
//! the command that raises it.
//!
//! Nothing is changed, only read. [`Facts`] are what was read; [`examine`] turns them into rows and
//! knows no system, so it can be tested with any machine's figures.
//!
//! `ok` means: no lower than the system is usually delivered with, or, with a goal, enough for so many
//! connections of one server, its own end counted. What cannot be read has no value and is `ok`,
//! since nothing is known against it.

mod rows;
mod windows;

use std::fmt::Write as _;

use plimsoll_kernel::cgroup::Cgroup;
use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::machine::Machine;
use plimsoll_kernel::meminfo::Meminfo;
use plimsoll_kernel::windows::{Performance, TcpSettings};

use crate::results::{Doctor, Pinned};
use crate::units::wrap;

/// Kernel memory of an idle connection's server end with what watches it, in bytes: TCP socket,
/// inode, file, directory entry and security blob 3,640, a poll of `io_uring` 256 (Linux 6.18,
/// x86-64). For judging without a measurement; `plan` uses measured costs.
pub const KERNEL_BYTES_PER_CONNECTION: u64 = 3896;

/// Descriptors a server needs besides its connections: listeners, rings or epoll, logs, pipes.
pub const DESCRIPTORS_OTHER: u64 = 64;

/// What was read of the machine.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The limits of this process, the system and the network namespace.
    pub limits: Limits,
    /// The machine's memory.
    pub memory: Option<Meminfo>,
    /// What the control group allows.
    pub cgroup: Option<Cgroup>,
    /// Processors this process may use.
    pub cpus: Option<u64>,
    /// Whether a ring could be made, where somebody tried; else only the sysctl is known.
    pub ring: Option<Result<(), String>>,
    /// What buffers pin, or why it could not be measured; `None` where it was not tried.
    pub pinned: Option<Result<Vec<Pinned>, String>>,
    /// Windows' settings of TCP; `None` on other systems.
    pub tcp: Option<TcpSettings>,
    /// Windows' pools and commit charge; `None` on other systems.
    pub performance: Option<Performance>,
}

impl Facts {
    /// Reads them; under a millisecond, on Windows some 100 ms. What cannot be read is missing.
    pub fn read() -> Self {
        Self {
            limits: Limits::read(),
            memory: Meminfo::read().ok(),
            cgroup: Cgroup::read().ok(),
            cpus: Machine::read().ok().map(|machine| machine.cpus_usable),
            ring: None,
            pinned: None,
            tcp: TcpSettings::read().ok(),
            performance: Performance::read().ok(),
        }
    }

    /// The same, and makes an `io_uring`, and registers buffers with it to see what they pin (Linux);
    /// some two milliseconds. Other threads that register buffers meanwhile spoil the figures.
    pub fn with_ring(self) -> Self {
        #[cfg(target_os = "linux")]
        return match crate::sys::measure_pinned() {
            Ok(pinned) => {
                let pinned = pinned.map_err(|error| format!("the kernel pins no buffers: {error}"));
                Self { ring: Some(Ok(())), pinned: Some(pinned), ..self }
            }
            Err(error) => {
                let pinned = Err(format!("no ring can be made: {error}"));
                Self { ring: Some(Err(error.to_string())), pinned: Some(pinned), ..self }
            }
        };
        #[cfg(not(target_os = "linux"))]
        Self { pinned: Some(Err("only Linux has rings, and tells what they pin".into())), ..self }
    }
}

/// Judges the facts, against a number of connections if one is given.
pub fn examine(facts: &Facts, connections: Option<u64>) -> Doctor {
    let checks = match &facts.tcp {
        Some(tcp) => windows::all(facts, tcp, connections),
        None => rows::all(facts, connections),
    };
    let (pinned, pinned_reason) = match &facts.pinned {
        Some(Ok(pinned)) => (pinned.clone(), None),
        Some(Err(reason)) => (Vec::new(), Some(reason.clone())),
        None => (Vec::new(), Some("nobody tried".to_owned())),
    };
    Doctor { connections, checks, pinned, pinned_reason }
}

/// Whether every check is met: what `doctor --connections N` exits 1 for, if not.
pub fn is_met(doctor: &Doctor) -> bool {
    doctor.checks.iter().all(|check| check.ok)
}

/// The result as a plain table for a person, at most 100 columns wide.
pub fn render_text(doctor: &Doctor) -> String {
    const NAME: usize = 32;
    const VALUE: usize = 20;
    let mut out = String::new();
    // Writing to a String cannot fail.
    for check in &doctor.checks {
        let mark = if check.ok { "ok " } else { "LOW" };
        let value = check.value.as_deref().unwrap_or("–");
        let mut lines = wrap(&check.allows, 100 - 4 - NAME - 1 - VALUE - 1).into_iter();
        let first = lines.next().unwrap_or_default();
        if value.chars().count() <= VALUE {
            let _ = writeln!(out, "{mark} {:<NAME$} {value:<VALUE$} {first}", check.name);
        } else {
            let _ = writeln!(out, "{mark} {:<NAME$} {value}", check.name);
            let _ = writeln!(out, "{:indent$} {first}", "", indent = 4 + NAME + 1 + VALUE);
        }
        for line in lines {
            let _ = writeln!(out, "{:indent$} {line}", "", indent = 4 + NAME + 1 + VALUE);
        }
        if let Some(fix) = &check.fix {
            for line in wrap(&format!("→ {fix}"), 92) {
                let _ = writeln!(out, "        {line}");
            }
        }
    }
    let low = doctor.checks.iter().filter(|check| !check.ok).count();
    let goal = doctor.connections.map(crate::units::count);
    let _ = match (low, goal) {
        (0, Some(goal)) => {
            writeln!(out, "All {} suffice for {goal} connections.", doctor.checks.len())
        }
        (0, None) => writeln!(out, "All {} are as usual or higher.", doctor.checks.len()),
        (low, Some(goal)) => writeln!(out, "{low} do not suffice for {goal} connections."),
        (low, None) => writeln!(out, "{low} are lower than usual."),
    };
    if let Some(reason) = &doctor.pinned_reason {
        let _ = writeln!(out, "\nWhat buffers pin is not known: {reason}");
    } else {
        pinned(&doctor.pinned, &mut out);
    }
    out
}

/// What buffers pin, as a sentence for each layout.
fn pinned(rows: &[Pinned], out: &mut String) {
    let _ = writeln!(out, "\nMemory that the kernel pins for buffers registered with a ring:");
    for row in rows {
        let lie = match row.layout.as_str() {
            "whole_pages" => "whole pages",
            "own_page" => "one at the start of each page",
            "straddling" => "each on two pages",
            "packed" => "one after the other",
            other => other,
        };
        let _ = writeln!(
            out,
            "    {} buffers of {}, {lie}: {}, × {:.1}",
            row.buffers,
            crate::units::bytes(row.buffer_bytes as f64),
            crate::units::bytes(row.pinned_bytes as f64),
            row.amplification
        );
    }
}

/// A command that sets a sysctl, now and after the next boot.
pub(crate) fn sysctl_fix(name: &str, value: &str) -> String {
    let quoted = if value.contains(' ') { format!("'{value}'") } else { value.to_owned() };
    format!(
        "sysctl -w {name}={quoted}; to keep it: echo '{name} = {value}' >> /etc/sysctl.d/60-connections.conf"
    )
}

/// A command that raises the limit on descriptors, now and for a service.
pub(crate) fn nofile_fix(descriptors: u64) -> String {
    format!(
        "ulimit -n {descriptors}; of a service: LimitNOFILE={descriptors} in its unit; of a user: \
         'nofile' in /etc/security/limits.conf"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_kernel::limits::{Files, Rlimit, Triple};

    fn facts() -> Facts {
        let limits = Limits {
            nofile: Some(Rlimit { soft: 1024, hard: 20_000 }),
            nr_open: Some(1_048_576),
            files: Some(Files { allocated: 1000, max: 51_000 }),
            somaxconn: Some(4096),
            tcp_mem: Some(Triple { min: 1, default: 2, max: 40_000 }),
            local_ports: Some((32768, 60999)),
            local_ports_reserved: Some(0),
            page_size: Some(4096),
            nf_conntrack_max: Some(60_000),
            nf_conntrack_count: Some(1),
            ..Limits::default()
        };
        Facts { limits, ..Facts::default() }
    }

    fn check<'a>(doctor: &'a Doctor, name: &str) -> &'a crate::results::Check {
        doctor.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn a_goal_is_held_against_each_limit() {
        let small = examine(&facts(), Some(10_000));
        assert!(!check(&small, "nofile (soft)").ok);
        assert!(check(&small, "nofile (hard)").ok);
        assert!(is_met(&examine(&Facts::default(), Some(1 << 40))), "nothing is known against it");
        let large = examine(&facts(), Some(100_000));
        for name in
            ["nofile (hard)", "fs.file-max", "net.ipv4.tcp_mem", "net.netfilter.nf_conntrack_max"]
        {
            let check = check(&large, name);
            assert!(!check.ok && check.fix.is_some(), "{check:?}");
        }
        assert!(check(&large, "fs.nr_open").ok);
        assert!(!is_met(&large));
        let ports = check(&large, "net.ipv4.ip_local_port_range");
        assert!(
            ports.allows.contains("28,232") && ports.allows.contains("4 source addresses"),
            "{ports:?}"
        );
        let most = examine(&facts(), Some(u64::MAX));
        assert!(!is_met(&most));
        assert!(render_text(&most).lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn a_ring_that_was_refused_is_said() {
        let refused = Facts { ring: Some(Err("EPERM".to_owned())), ..Facts::default() };
        let doctor = examine(&refused, None);
        assert!(!check(&doctor, "io_uring").ok);
        let works = Facts { ring: Some(Ok(())), ..Facts::default() };
        assert!(check(&examine(&works, None), "io_uring").ok);
    }
}
