//! `TIME_WAIT` on both ends, of one variant.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use plimsoll_kernel::diag::{self, Family, Filter, States};

use crate::Result;

/// Counts the `TIME_WAIT`s of a variant: those at the server's end have its port here, those at the
/// client's end have it at the other end.
///
/// A variant with source addresses of its own is told apart by them. Otherwise its share is how
/// much the port's count grew during its turns; what expires meanwhile is missing then.
pub(super) struct Watch {
    port: u16,
    /// The second byte of the variant's source addresses.
    network: Option<u8>,
    /// The counts when a turn began, where growth is what is known.
    before: (u64, u64),
    grown: (u64, u64),
    pub(super) server_max: Option<u64>,
    pub(super) client_max: Option<u64>,
    /// Seconds since the start, server's end, client's end.
    pub(super) samples: Vec<(f64, u64, u64)>,
    /// What the last count took.
    cost: Duration,
}

/// A count that takes longer is left out between turns: it would be most of the run. (Linux takes
/// microseconds; Wine searches the process of each socket.)
const DEAR: Duration = Duration::from_millis(50);

impl Watch {
    pub(super) fn new(port: u16, network: Option<u8>) -> Self {
        Self {
            port,
            network,
            before: (0, 0),
            grown: (0, 0),
            server_max: None,
            client_max: None,
            samples: Vec::new(),
            cost: Duration::ZERO,
        }
    }

    pub(super) fn network(&self) -> Option<u8> {
        self.network
    }

    /// A turn begins.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.network.is_none() {
            self.before = self.count()?;
        }
        Ok(())
    }

    /// A turn is over, or (`last`) all are. Costs some 0.5 µs for each `TIME_WAIT` on the port.
    pub(super) fn sample(&mut self, at: Duration, last: bool) -> Result<()> {
        // Growth is lost between two counts; a variant's own addresses are not.
        if self.network.is_some() && self.cost > DEAR && !last {
            return Ok(());
        }
        let (mut server, mut client) = self.count()?;
        if self.network.is_none() {
            self.grown.0 += server.saturating_sub(self.before.0);
            self.grown.1 += client.saturating_sub(self.before.1);
            self.before = (server, client);
            (server, client) = self.grown;
        }
        self.server_max = self.server_max.max(Some(server));
        self.client_max = self.client_max.max(Some(client));
        self.samples.push((at.as_secs_f64(), server, client));
        Ok(())
    }

    fn count(&mut self) -> Result<(u64, u64)> {
        let start = Instant::now();
        let ours = |address: IpAddr| match (self.network, address) {
            (None, _) => true,
            (Some(network), IpAddr::V4(ip)) => ip.octets()[..2] == [127, network],
            (Some(_), IpAddr::V6(_)) => false,
        };
        let (mut server, mut client) = (0, 0);
        // A listener of IPv6 serves IPv4 too, on Linux with sockets of IPv6.
        let family = if cfg!(windows) && self.network.is_some() { Family::V4 } else { Family::Any };
        let of = |filter: Filter| Filter { family, ..filter.states(States::TIME_WAIT) };
        diag::connections(&of(Filter::local(self.port)), |one| {
            server += u64::from(ours(one.remote.ip()));
        })?;
        diag::connections(&of(Filter::remote(self.port)), |one| {
            client += u64::from(ours(one.local.ip()));
        })?;
        self.cost = start.elapsed();
        Ok((server, client))
    }
}
