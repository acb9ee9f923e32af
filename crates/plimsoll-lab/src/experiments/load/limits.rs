//! The client's own limits, checked before the run: what the generator of the load is short of must
//! not be charged to the server.

use plimsoll_kernel::limits::Limits as System;
use plimsoll_kernel::meminfo::Meminfo;

use super::{Options, Pace};
use crate::{Error, Result, units};

/// Connections of one client: a shard of the engine has 16,384 slots, some of which are kept for
/// connections that are made anew while the old ones are being closed.
const PER_CLIENT: u32 = 16_000;
/// Descriptors beside those of connections: the engine's rings and control files, the standard
/// streams, what is opened for a moment.
const OWN_DESCRIPTORS: u64 = 40;
/// Descriptors of each client: a ring or an epoll, and what wakes it.
const OF_A_CLIENT: u64 = 2;
/// A block of the engine's arena: each connection has one at least while it sends.
const BLOCK: u64 = 16 << 10;
/// What each arena has for received bytes.
const RECEIVED_BYTES: u64 = 64 << 20;
/// In the open loop, a connection's outbox has room for so many of the largest messages.
const OUTBOX_MESSAGES: u64 = 4;
/// Of the memory that is available, the share that buffers may take: the server needs some too.
const MEMORY_SHARE: f64 = 0.75;

/// How the load is spread over clients, a thread each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) clients: u32,
    /// Connections in all.
    connections: u32,
    /// Connections that are being closed while others take their place, for each client.
    pub(super) spare: u32,
    /// Bytes of buffers of each client.
    pub(super) buffer_bytes: u64,
    /// Bytes in one connection's outbox at most, where it holds more than one message.
    pub(super) outbox_bytes: u64,
}

/// What the client's machine has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Descriptors that this process may have; `None` where no limit is met.
    pub(super) descriptors: Option<u64>,
    /// Descriptors that are open.
    pub(super) open: u64,
    /// Memory that can be had; `None` where it cannot be read.
    pub(super) memory: Option<u64>,
    /// Ports that one source address has towards one target; `None` where it cannot be read.
    pub(super) ports: Option<u32>,
}

impl Room {
    /// Raises the limit on descriptors as far as it may, and looks at the machine.
    pub(super) fn here() -> Self {
        crate::sys::raise_descriptor_limit();
        let limits = System::read();
        let own = plimsoll_kernel::process::descriptors(std::process::id());
        Self {
            descriptors: limits.nofile.map(|limit| limit.soft),
            open: own.unwrap_or(3),
            memory: Meminfo::read().ok().map(|memory| memory.available),
            ports: limits.local_ports_usable(),
        }
    }
}

impl Plan {
    /// A plan for this load.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`] where a limit of the client is too low: with the limit, and the number of
    /// connections that fits.
    pub(super) fn new(options: &Options, room: &Room) -> Result<Self> {
        let connections = options.connections;
        check_descriptors(connections, options.threads, room)?;
        check_ports(options, room)?;
        let clients = connections.div_ceil(PER_CLIENT).max(options.threads);
        let largest = match options.exchange.as_ref().and_then(|exchange| exchange.request()) {
            Some(request) => request.len() as u64,
            None => u64::from(options.size.1),
        };
        let outbox_bytes = match options.pace {
            Pace::Closed { depth } => u64::from(depth) * largest,
            Pace::Open { .. } => (OUTBOX_MESSAGES * largest).max(BLOCK),
        };
        // A message may begin in one block and end in another.
        let each = outbox_bytes.next_multiple_of(BLOCK) + BLOCK;
        let plan = Self {
            clients,
            connections,
            spare: spare(connections.div_ceil(clients)),
            buffer_bytes: each * u64::from(connections.div_ceil(clients)) + RECEIVED_BYTES,
            outbox_bytes,
        };
        plan.check_memory(options, each, room)?;
        Ok(plan)
    }

    /// Connections of one client.
    pub(super) fn connections_of(&self, client: u32) -> u32 {
        if client >= self.clients {
            return 0;
        }
        self.connections / self.clients + u32::from(client < self.connections % self.clients)
    }

    /// Connections that are made at once, those that are being closed included, over all clients.
    pub(super) fn outgoing(&self) -> u32 {
        (self.connections_of(0) + self.spare) * self.clients
    }

    fn check_memory(&self, options: &Options, each: u64, room: &Room) -> Result<()> {
        let Some(memory) = room.memory else { return Ok(()) };
        let allowed = (memory as f64 * MEMORY_SHARE) as u64;
        let needed = self.buffer_bytes * u64::from(self.clients);
        if needed <= allowed {
            return Ok(());
        }
        let bytes = |bytes: u64| units::bytes(bytes as f64);
        let fits = allowed.saturating_sub(RECEIVED_BYTES * u64::from(self.clients)) / each;
        let outstanding = match options.pace {
            Pace::Closed { depth } => {
                format!("{depth} × {} outstanding", bytes(options.size.1.into()))
            }
            Pace::Open { .. } => {
                format!("{OUTBOX_MESSAGES} × {} queued", bytes(options.size.1.into()))
            }
        };
        Err(Error::machine(
            format!(
                "the client's buffers for {} connections with {outstanding} on each take {}, and of \
                 this machine's memory {} are available, of which it uses {:.0} % at most",
                units::count(self.connections.into()),
                bytes(needed),
                bytes(memory),
                MEMORY_SHARE * 100.0
            ),
            format!(
                "--connections {fits} or fewer fit; or a smaller --size or --depth, or free memory"
            ),
        ))
    }
}

/// Connections that are made anew while others are still being closed.
fn spare(connections: u32) -> u32 {
    (connections / 4).clamp(2, 256)
}

/// Each connection is a descriptor of the client, on each driver at least for a moment.
fn check_descriptors(connections: u32, threads: u32, room: &Room) -> Result<()> {
    let Some(limit) = room.descriptors else { return Ok(()) };
    let own = OWN_DESCRIPTORS + room.open;
    let needed = |connections: u32| {
        let clients = connections.div_ceil(PER_CLIENT).max(threads);
        u64::from(connections)
            + u64::from(spare(connections.div_ceil(clients)) * clients)
            + u64::from(clients) * OF_A_CLIENT
            + own
    };
    if needed(connections) <= limit {
        return Ok(());
    }
    // The number that fits grows with the limit: halved until it is found.
    let (mut fits, mut too_many) = (0, connections);
    while fits + 1 < too_many {
        let middle = fits.midpoint(too_many);
        *(if needed(middle) <= limit { &mut fits } else { &mut too_many }) = middle;
    }
    Err(Error::machine(
        format!(
            "the client needs {} descriptors for {} connections, and its own RLIMIT_NOFILE, raised to \
             the hard limit, is {limit}: {} connections fit",
            needed(connections),
            units::count(connections.into()),
            units::count(fits.into())
        ),
        match fits {
            0 => format!("raise the hard limit: ulimit -Hn {}", needed(connections)),
            _ => format!(
                "--connections {fits}, or a higher hard limit: ulimit -Hn {}",
                needed(connections)
            ),
        },
    ))
}

/// Each source address has a port for each connection to one target.
fn check_ports(options: &Options, room: &Room) -> Result<()> {
    let Some(ports) = room.ports else { return Ok(()) };
    let sources = options.sources.len().max(1) as u64;
    let fit = sources * u64::from(ports);
    if u64::from(options.connections) <= fit {
        return Ok(());
    }
    let which = match sources {
        1 => "the client's one source address has".to_owned(),
        _ => format!("each of the client's {sources} source addresses has"),
    };
    Err(Error::machine(
        format!(
            "{which} {} ports towards {} (net.ipv4.ip_local_port_range): {} connections fit",
            units::count(ports.into()),
            options.target,
            units::count(fit)
        ),
        format!("--connections {fit} or fewer, or more addresses with --sources CIDR"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Room =
        Room { descriptors: Some(20_000), open: 8, memory: Some(8 << 30), ports: Some(28_232) };

    fn options(connections: u32) -> Options {
        let target = "127.0.0.1:7000".parse().expect("an address");
        Options { connections, ..Options::new(target) }
    }

    #[track_caller]
    fn refused(options: &Options, room: &Room, words: &[&str]) -> String {
        let error = Plan::new(options, room).expect_err("it does not fit");
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
        text
    }

    /// The number that an error says fits, behind this word.
    fn number_after(text: &str, word: &str) -> u32 {
        let rest = &text[text.find(word).expect("the error says it") + word.len()..];
        let digits: String = rest.trim().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    #[test]
    fn descriptors_are_the_client_s_own_and_what_fits_does() {
        let room = Room { descriptors: Some(200), ..ROOMY };
        let text = refused(&options(300), &room, &["the client", "RLIMIT_NOFILE", "200"]);
        let fits = number_after(&text, "--connections");
        assert!(Plan::new(&options(fits), &room).is_ok());
        assert!(Plan::new(&options(fits + 1), &room).is_err());
        let none = Room { descriptors: Some(20), ..ROOMY };
        refused(&options(1), &none, &["0 connections fit", "ulimit -Hn"]);
        let windows = Room { descriptors: None, ..ROOMY };
        assert!(Plan::new(&options(20_000), &windows).is_ok());
    }

    #[test]
    fn buffers_hold_what_is_outstanding_or_the_number_that_fits_is_told() {
        let mib = Options { size: (1 << 20, 1 << 20), ..options(100) };
        let plan = Plan::new(&mib, &ROOMY).expect("it fits");
        assert!(plan.buffer_bytes >= (100 << 20) + RECEIVED_BYTES);
        let small = Room { memory: Some(128 << 20), ..ROOMY };
        let text = refused(&mib, &small, &["the client's buffers", "1 MiB", "available"]);
        let fits = number_after(&text, "--connections");
        assert!(fits > 0);
        let less = Options { connections: fits, ..mib.clone() };
        assert!(Plan::new(&less, &small).is_ok());
        assert!(Plan::new(&Options { connections: fits + 1, ..mib }, &small).is_err());
    }

    #[test]
    fn ports_are_counted_for_each_source_address() {
        refused(
            &options(2000),
            &Room { ports: Some(1000), ..ROOMY },
            &["1,000 ports", "--sources"],
        );
        let sources = vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
        let two = Options { sources, ..options(2000) };
        assert!(Plan::new(&two, &Room { ports: Some(1000), ..ROOMY }).is_ok());
        assert!(Plan::new(&two, &Room { ports: Some(999), ..ROOMY }).is_err());
    }

    #[test]
    fn many_connections_are_spread_over_clients() {
        let room = Room { descriptors: Some(1 << 20), ports: None, ..ROOMY };
        let plan = Plan::new(&options(40_001), &room).expect("it fits");
        assert_eq!(plan.clients, 3);
        let each: Vec<u32> = (0..4).map(|client| plan.connections_of(client)).collect();
        assert_eq!(each, [13_334, 13_334, 13_333, 0]);
        assert!(plan.outgoing() / plan.clients <= 16_384);
        let threads =
            Plan::new(&Options { threads: 5, ..options(40_001) }, &room).expect("it fits");
        assert_eq!((threads.clients, threads.connections_of(4)), (5, 8000));
        assert_eq!(Plan::new(&options(1), &room).expect("it fits").connections_of(0), 1);
    }
}
