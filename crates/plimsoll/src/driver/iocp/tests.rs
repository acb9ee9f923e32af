//! The behavioural suite in the real world, and what is this driver's own.

use std::sync::Arc;

use super::{Config, Iocp};
use crate::buffer::Memory;
use crate::driver::loopback::{Kind, Loopback};
use crate::driver::suite::Plan;

mod own;

/// The driver.
struct Completion;

impl Kind for Completion {
    type D = Iocp;

    fn driver(plan: Plan, memory: Arc<Memory>) -> Iocp {
        Iocp::new(&Config::new(plan.slots), memory).unwrap()
    }

    fn in_flight(driver: &Iocp) -> usize {
        driver.in_flight()
    }
}

crate::driver::suite::suite!(Loopback<Completion>);
