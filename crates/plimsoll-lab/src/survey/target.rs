//! What can be read of the target of a survey: its process, its listener, its control group.

use std::net::SocketAddr;

use crate::observe::{Depth, ProcessFamily, Server};
use crate::results::{Compared, SurveyedServer};
use crate::worker::exchange::{Exchange, ReplyEnd};
use crate::{Result, units};

/// Reads it, before any load. Its process is `pid`, or else the owner of the listening socket.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) when `pid` was given and cannot be looked at.
pub(super) fn look(
    address: SocketAddr,
    pid: Option<u32>,
    says: Option<String>,
) -> Result<SurveyedServer> {
    let server = Server::running(address, pid)?;
    let now = server.snapshot(Depth::Full);
    let family = now.server.as_ref();
    let shortest = family.and_then(ProcessFamily::shortest_of_descriptors);
    let group = now.server_group.as_ref();
    Ok(SurveyedServer {
        address: address.to_string(),
        says,
        pid: server.pid(),
        process: server.name().map(str::to_owned),
        processes: family.map(|family| family.processes.len() as u64),
        listeners: now.listener.map(|queue| queue.listeners),
        granted: now.listener.map(|queue| queue.granted),
        depth: now.listener.map(|queue| queue.depth),
        descriptors: shortest.and_then(|one| one.descriptors),
        descriptors_limit: shortest.and_then(|one| one.descriptors_limit),
        memory_bytes: family.and_then(ProcessFamily::rss),
        group_memory_limit_bytes: group.and_then(|group| group.memory.as_ref()?.limit),
        group_pids_limit: group.and_then(|group| group.pids.as_ref()?.limit),
        shares_processors: server.pid().and_then(shares_processors),
    })
}

/// Whether a process may run on one of the processors that this one may run on.
#[cfg(target_os = "linux")]
fn shares_processors(pid: u32) -> Option<bool> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    let (own, other) = (sched_getaffinity(None).ok()?, sched_getaffinity(Some(pid)).ok()?);
    Some((0..CpuSet::MAX_CPU).any(|cpu| own.is_set(cpu) && other.is_set(cpu)))
}

/// Not known elsewhere.
#[cfg(not(target_os = "linux"))]
fn shares_processors(_pid: u32) -> Option<bool> {
    None
}

/// How an exchange compares replies; `None` is an echo.
pub(super) fn compared(exchange: Option<&Exchange>) -> Compared {
    let Some(exchange) = exchange.filter(|exchange| exchange.request().is_some()) else {
        return Compared::EveryByte;
    };
    match exchange.end {
        ReplyEnd::Http => Compared::Status,
        _ if exchange.compares_whole_replies() => Compared::WholeReply,
        _ if exchange.expected().is_empty() => Compared::Nothing,
        _ => Compared::Beginning,
    }
}

/// What a server is called: its process' name, or what it says of itself where its process is not
/// known, or where that is the same name and tells more. A proxy passes on what the server behind it
/// says.
pub(super) fn name(server: &SurveyedServer) -> Option<String> {
    let (says, process) = (server.says.as_deref(), server.process.as_deref());
    let same = |says: &str, process: &str| says.to_lowercase().starts_with(&process.to_lowercase());
    match (says, process) {
        (Some(says), Some(process)) if !same(says, process) => Some(process.to_owned()),
        (Some(name), _) | (None, Some(name)) => Some(name.to_owned()),
        (None, None) => None,
    }
}

/// What the kernel granted to the server's listeners, as a part of a sentence.
pub(super) fn granted(server: &SurveyedServer) -> Option<String> {
    let granted = units::count(server.granted?);
    Some(match server.listeners {
        Some(0 | 1) | None => format!(
            "granted {granted} (its own listen(2) argument or net.core.somaxconn, whichever is \
             smaller)"
        ),
        Some(listeners) => format!(
            "granted {granted} in all to {} listeners (their own listen(2) argument or \
             net.core.somaxconn each, whichever is smaller)",
            units::count(listeners)
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::worker::exchange::Payload;

    #[test]
    fn only_an_echo_has_every_byte_compared() {
        let exchange = |expect: &[u8], end| Exchange {
            send: Payload::Bytes(b"PING\r\n".to_vec()),
            expect: Some(expect.to_vec()),
            end,
            timeout_ms: 1000,
        };
        assert_eq!(compared(None), Compared::EveryByte);
        assert_eq!(compared(Some(&Exchange::echo(Duration::from_secs(1)))), Compared::EveryByte);
        let whole = exchange(b"+PONG\r\n", ReplyEnd::Expectation);
        assert_eq!(compared(Some(&whole)), Compared::WholeReply);
        let until = exchange(b"HTTP/1.1 200", ReplyEnd::Until(b"</html>".to_vec()));
        assert_eq!(compared(Some(&until)), Compared::Beginning);
        assert_eq!(compared(Some(&exchange(b"", ReplyEnd::Bytes(1)))), Compared::Nothing);
        assert_eq!(compared(Some(&exchange(b"N", ReplyEnd::Bytes(1)))), Compared::WholeReply);
        let http = Exchange::http("/", "x", Duration::from_secs(1));
        assert_eq!(compared(Some(&http)), Compared::Status);
    }

    #[test]
    fn a_proxy_is_not_called_by_the_name_of_what_is_behind_it() {
        let of = |says: Option<&str>, process: Option<&str>| {
            name(&SurveyedServer {
                says: says.map(str::to_owned),
                process: process.map(str::to_owned),
                ..SurveyedServer::default()
            })
        };
        assert_eq!(of(Some("nginx/1.22.1"), Some("nginx")).as_deref(), Some("nginx/1.22.1"));
        assert_eq!(of(Some("nginx/1.22.1"), Some("haproxy")).as_deref(), Some("haproxy"));
        assert_eq!(of(Some("nginx/1.22.1"), None).as_deref(), Some("nginx/1.22.1"));
        assert_eq!(of(None, Some("redis-server")).as_deref(), Some("redis-server"));
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn what_a_listener_was_granted_is_said_with_what_decides_it() {
        let mut server = SurveyedServer { granted: Some(511), ..SurveyedServer::default() };
        let says = granted(&server).expect("it is known");
        assert!(says.contains("granted 511 (its own listen(2) argument or net.core.somaxconn"));
        server.listeners = Some(4);
        assert!(granted(&server).is_some_and(|says| says.contains("511 in all to 4 listeners")));
        server.granted = None;
        assert_eq!(granted(&server), None);
    }

    /// A listener of this very process: what the kernel says of it is compared with what was asked.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_here_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = look(address, Some(std::process::id()), Some("x/1".to_owned())).unwrap();
        assert_eq!((server.depth, server.listeners), (Some(0), Some(1)));
        assert!(server.granted.is_some_and(|granted| granted >= 16), "{server:?}");
        assert_eq!((server.pid, server.shares_processors), (Some(std::process::id()), Some(true)));
        assert!(server.descriptors < server.descriptors_limit, "{server:?}");
        assert!(look(address, Some(u32::MAX / 2), None).is_err());
    }
}
