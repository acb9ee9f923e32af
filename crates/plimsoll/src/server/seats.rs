//! The drivers of a server's shards: which kind, and how each is made, on its shard's thread.

use std::sync::Arc;

use super::plan::{Demand, Descriptors, Machine, Plan, check_buffers, check_operations};
use super::thread::Made;
use super::{Builder, Error};
use crate::buffer::{Arena, Memory};
use crate::driver::Driver;
#[cfg(unix)]
use crate::shard::{Profile, stream_blocks};

/// A driver, its arena, and whether its connections are direct descriptors.
pub(super) type Seat<D> = (D, Arena, bool);

type Make<D> = dyn Fn() -> Result<Seat<D>, Error> + Send + Sync;

/// How many shards there are, and how the driver and the arena of each are made.
pub(super) struct Seats<D> {
    pub(super) plan: Plan,
    demand: Demand,
    make: Arc<Make<D>>,
}

impl<D: Driver + 'static> Seats<D> {
    fn new(
        builder: &Builder,
        descriptors: Descriptors,
        driver: impl Fn(&Builder, u32, Arc<Memory>) -> Result<(D, bool), Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let demand = Demand::of(&builder.limits, builder.listen.is_some(), builder.shards)?;
        let demand = demand.with(descriptors);
        let plan = Plan::new(&demand, &Machine::here())?;
        check_buffers(&builder.limits, plan.shards)?;
        check_operations(&builder.limits, &plan)?;
        let builder = builder.clone();
        let make = move || {
            let limits = &builder.limits;
            let arena = Arena::new(limits.blocks(), limits.block_bytes).map_err(Error::Arena)?;
            let arena = if builder.pool { arena } else { arena.without_recycling() };
            let (driver, is_direct) = driver(&builder, plan.slots, arena.memory().clone())?;
            Ok((driver, arena, is_direct))
        };
        Ok(Self { plan, demand, make: Arc::new(make) })
    }

    /// Makes one seat, on the thread that it is called on.
    pub(super) fn maker(&self) -> impl FnOnce() -> Result<Seat<D>, Error> + Send + 'static {
        let make = self.make.clone();
        move || make()
    }

    /// Whether the machine has what the drivers need as they were made.
    ///
    /// # Errors
    ///
    /// [`Error::Impossible`]: a table of direct descriptors was not to be had after all, the driver
    /// did without, and the process may not have so many descriptors.
    pub(super) fn check(&self, made: &[Made]) -> Result<(), Error> {
        if self.demand.descriptors == Descriptors::Tables && !made.iter().all(|one| one.is_direct) {
            Plan::new(&self.demand.with(Descriptors::Process), &Machine::here())?;
        }
        Ok(())
    }
}

#[cfg(unix)]
impl Seats<crate::driver::ready::Ready> {
    /// On epoll or kqueue.
    pub(super) fn ready(builder: &Builder) -> Result<Self, Error> {
        use crate::driver::ready::{Config, Ready};

        Self::new(builder, Descriptors::Process, |builder, slots, memory| {
            let config = Config { slots, stream_blocks: blocks_for_streams(builder) };
            let driver = Ready::new(&config, memory);
            Ok((driver.map_err(|error| Error::NoDriver(error.to_string()))?, false))
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
        // Drivers join it in the order of their shards: one is made when the one before has been.
        let exchange = Arc::new(Exchange::new());
        Self::new(builder, Descriptors::Process, move |builder, slots, memory| {
            let config = Config::new(slots);
            let warm = builder.limits.warm_up.min(slots).max(config.ahead);
            let config = Config { ahead: warm, ..config };
            let config = if builder.pool { config } else { config.without_pool() };
            let driver = Iocp::of_server(&config, memory, exchange.clone());
            Ok((driver.map_err(|error| Error::NoDriver(error.to_string()))?, false))
        })
    }
}

#[cfg(target_os = "linux")]
impl Seats<crate::driver::uring::Uring> {
    /// On `io_uring`.
    pub(super) fn uring(builder: &Builder) -> Result<Self, Error> {
        use crate::driver::uring::{Config, Unavailable, Uring, keeps_tables};

        let no_driver = |error: Unavailable| Error::NoDriver(error.to_string());
        let tables = builder.pool && keeps_tables().map_err(no_driver)?;
        let descriptors = if tables { Descriptors::Tables } else { Descriptors::Process };
        Self::new(builder, descriptors, move |builder, slots, memory| {
            let stream_blocks = blocks_for_streams(builder);
            let direct = if builder.pool { None } else { Some(false) };
            let config = Config { stream_blocks, direct, ..Config::new(slots) };
            let driver = Uring::new(&config, memory).map_err(no_driver)?;
            let is_direct = driver.is_direct();
            Ok((driver, is_direct))
        })
    }
}

#[cfg(unix)]
fn blocks_for_streams(builder: &Builder) -> u32 {
    match builder.profile {
        Profile::Throughput => stream_blocks(builder.limits.blocks()),
        Profile::Connections => 0,
    }
}
