//! Putting a document together: when it started, the machine, the result.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use jiff::{Timestamp, Unit};
use plimsoll_kernel::limits::{Limits, Rlimit};

use crate::results::{Document, Machine, SCHEMA, TargetServer};

/// What was run: the part of a document that is known before there is a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heading {
    /// The command's name.
    pub command: String,
    /// See [`Document::arguments`].
    pub arguments: Vec<String>,
    /// See [`Document::target`].
    pub target: Option<TargetServer>,
}

impl Heading {
    /// A command of this process, with the arguments that the process was started with.
    pub fn of_this_process(command: &str) -> Self {
        let arguments = std::env::args_os().skip(1);
        Self {
            command: command.to_owned(),
            arguments: arguments.map(|text| text.to_string_lossy().into_owned()).collect(),
            target: None,
        }
    }
}

impl TargetServer {
    /// A server at an address, named after its process where that is known and can be read.
    pub fn new(address: SocketAddr, pid: Option<u32>) -> Self {
        let name = pid.and_then(|pid| plimsoll_kernel::process::Process::of(pid).ok());
        Self { address: address.to_string(), pid, name: name.map(|process| process.name) }
    }
}

/// The start of an experiment, to which its document refers.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    at: Timestamp,
    clock: Instant,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self { at: Timestamp::now(), clock: Instant::now() }
    }

    /// The document of an experiment that began here and has just ended.
    pub fn document<T>(&self, heading: &Heading, result: T, partial: bool) -> Document<T> {
        // Rounding fails only beyond the year 9999.
        let started = self.at.round(Unit::Second).unwrap_or(self.at);
        Document {
            schema: SCHEMA.to_owned(),
            command: heading.command.clone(),
            arguments: heading.arguments.clone(),
            target: heading.target.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: started.to_string(),
            seconds: (self.clock.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            machine: machine(),
            partial,
            result,
        }
    }
}

/// This machine, as documents describe it; what cannot be read is left empty.
pub fn machine() -> Machine {
    let limits = Limits::read();
    let mut machine = Machine {
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        page_bytes: limits.page_size.unwrap_or(4096),
        limits: limits_by_name(&limits),
        ..Machine::default()
    };
    if let Ok(read) = plimsoll_kernel::machine::Machine::read() {
        machine.kernel = read.kernel;
        machine.cpu = read.cpu;
        machine.cpus = read.cpus_usable as u32;
        machine.memory_bytes = Some(read.memory);
        machine.virtualised = read.virtualised;
    }
    machine
}

/// The limits that bear on connections, by the names their systems give them.
fn limits_by_name(limits: &Limits) -> BTreeMap<String, String> {
    let rlimit = |limit: Rlimit| {
        let word = |value: u64| match value {
            Rlimit::UNLIMITED => "unlimited".to_owned(),
            value => value.to_string(),
        };
        format!("{} (hard {})", word(limit.soft), word(limit.hard))
    };
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let known = [
        ("nofile", limits.nofile.map(rlimit)),
        ("memlock", limits.memlock.map(rlimit)),
        ("fs.nr_open", number(limits.nr_open)),
        ("fs.file-max", number(limits.files.as_ref().map(|files| files.max))),
        ("net.core.somaxconn", number(limits.somaxconn)),
        ("net.ipv4.tcp_max_syn_backlog", number(limits.tcp_max_syn_backlog)),
        (
            "net.ipv4.ip_local_port_range",
            limits.local_ports.map(|(first, last)| format!("{first} {last}")),
        ),
        (
            "net.ipv4.tcp_mem",
            limits.tcp_mem.map(|pages| format!("{} {} {}", pages.min, pages.default, pages.max)),
        ),
        ("net.ipv4.tcp_congestion_control", limits.congestion_control.clone()),
        ("net.netfilter.nf_conntrack_max", number(limits.nf_conntrack_max)),
    ];
    let known = known.map(|(name, value)| match name {
        "net.ipv4.ip_local_port_range" if cfg!(windows) => ("dynamic port range (tcp)", value),
        _ => (name, value),
    });
    known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_when_where_and_what() {
        let target = TargetServer::new(([127, 0, 0, 1], 7000).into(), Some(std::process::id()));
        let named = target.name.as_deref().is_some_and(|name| !name.is_empty());
        assert!(named || cfg!(not(target_os = "linux")), "{target:?}");
        let heading = Heading { target: Some(target), ..Heading::of_this_process("doctor") };
        let document = Start::now().document(&heading, 7, false);
        assert_eq!((document.command.as_str(), document.result), ("doctor", 7));
        assert_eq!(document.arguments, heading.arguments);
        assert_eq!(document.target.expect("it was given").address, "127.0.0.1:7000");
        assert!(document.started.ends_with('Z') && document.started.contains('T'));
        assert!(document.machine.cpus >= 1 && document.machine.page_bytes >= 4096);
        assert!(cfg!(windows) || !document.machine.limits.is_empty());
    }
}
