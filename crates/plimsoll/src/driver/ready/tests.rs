//! The behavioural suite in the real world, and what is this driver's own.

use std::sync::Arc;

use super::{Config, Ready};
use crate::buffer::Memory;
use crate::driver::loopback::{Kind, Loopback};
use crate::driver::suite::Plan;

mod own;

/// The driver.
struct Readiness;

impl Kind for Readiness {
    type D = Ready;

    fn driver(plan: Plan, memory: Arc<Memory>) -> Ready {
        let config = Config { slots: plan.slots, stream_blocks: plan.blocks };
        Ready::new(&config, memory).unwrap()
    }

    fn in_flight(driver: &Ready) -> usize {
        driver.in_flight()
    }
}

crate::driver::suite::suite!(Loopback<Readiness>);
