//! The drivers of a server's shards: which kind, and all of them made before anything runs.

use std::sync::Arc;

use super::plan::{Demand, Descriptors, Machine, Plan, check_buffers, check_operations};
use super::{Builder, Error};
use crate::buffer::{Arena, Memory};
#[cfg(unix)]
use crate::shard::{Profile, stream_blocks};

/// A driver and its arena for each shard.
pub(super) struct Seats<D> {
    pub(super) plan: Plan,
    pub(super) drivers: Vec<(D, Arena)>,
}

impl<D> Seats<D> {
    fn new(
        builder: &Builder,
        descriptors: Descriptors,
        driver: impl Fn(u32, Arc<Memory>) -> Result<D, Error>,
    ) -> Result<Self, Error> {
        let plan = Plan::new(&demand(builder)?.with(descriptors), &Machine::here())?;
        let limits = &builder.limits;
        check_buffers(limits, plan.shards)?;
        check_operations(limits, &plan)?;
        let mut drivers = Vec::new();
        for _ in 0..plan.shards {
            let arena = Arena::new(limits.blocks(), limits.block_bytes).map_err(Error::Arena)?;
            let arena = if builder.pool { arena } else { arena.without_recycling() };
            drivers.push((driver(plan.slots, arena.memory().clone())?, arena));
        }
        Ok(Self { plan, drivers })
    }
}

#[cfg(unix)]
impl Seats<crate::driver::ready::Ready> {
    /// On epoll or kqueue.
    pub(super) fn ready(builder: &Builder) -> Result<Self, Error> {
        use crate::driver::ready::{Config, Ready};

        Self::new(builder, Descriptors::Process, |slots, memory| {
            let config = Config { slots, stream_blocks: blocks_for_streams(builder) };
            Ready::new(&config, memory).map_err(|error| Error::NoDriver(error.to_string()))
        })
    }
}

#[cfg(windows)]
impl Seats<crate::driver::iocp::Iocp> {
    /// On completion ports.
    pub(super) fn iocp(builder: &Builder) -> Result<Self, Error> {
        use crate::driver::iocp::{Config, Exchange, Iocp};

        if builder.pool
            && let Some(why) = Iocp::why_no_reuse()
        {
            tracing::warn!(%why, "sockets are made ahead, and not used again here");
        }
        // Drivers are made in the order of their shards.
        let exchange = Arc::new(Exchange::new());
        Self::new(builder, Descriptors::Process, |slots, memory| {
            let config = Config::new(slots);
            let warm = builder.limits.warm_up.min(slots).max(config.ahead);
            let config = Config { ahead: warm, ..config };
            let config = if builder.pool { config } else { config.without_pool() };
            Iocp::of_server(&config, memory, exchange.clone())
                .map_err(|error| Error::NoDriver(error.to_string()))
        })
    }
}

#[cfg(target_os = "linux")]
impl Seats<crate::driver::uring::Uring> {
    /// On `io_uring`.
    pub(super) fn uring(builder: &Builder) -> Result<Self, Error> {
        use crate::driver::uring::{Config, Uring, keeps_tables};

        let no_driver =
            |error: crate::driver::uring::Unavailable| Error::NoDriver(error.to_string());
        let tables = builder.pool && keeps_tables().map_err(no_driver)?;
        let descriptors = if tables { Descriptors::Tables } else { Descriptors::Process };
        let seats = Self::new(builder, descriptors, |slots, memory| {
            let stream_blocks = blocks_for_streams(builder);
            let direct = if builder.pool { None } else { Some(false) };
            let config = Config { stream_blocks, direct, ..Config::new(slots) };
            Uring::new(&config, memory).map_err(no_driver)
        })?;
        if tables && !seats.drivers.iter().all(|(driver, _)| driver.is_direct()) {
            // A table was not to be had after all, and the driver did without.
            Plan::new(&demand(builder)?.with(Descriptors::Process), &Machine::here())?;
        }
        Ok(seats)
    }
}

fn demand(builder: &Builder) -> Result<Demand, Error> {
    Demand::of(&builder.limits, builder.listen.is_some(), builder.shards)
}

#[cfg(unix)]
fn blocks_for_streams(builder: &Builder) -> u32 {
    match builder.profile {
        Profile::Throughput => stream_blocks(builder.limits.blocks()),
        Profile::Connections => 0,
    }
}
