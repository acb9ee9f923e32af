//! The behavioural suite in the real world, and what is this driver's own.

use std::sync::Arc;

use super::{Config, Uring};
use crate::buffer::Memory;
use crate::driver::loopback::{Kind, Loopback};
use crate::driver::suite::Plan;

mod own;

/// A ring whose connections are direct descriptors, or plain ones.
struct Ring<const DIRECT: bool>;

impl<const DIRECT: bool> Kind for Ring<DIRECT> {
    type D = Uring;

    fn driver(plan: Plan, memory: Arc<Memory>) -> Uring {
        let config = Config {
            slots: plan.slots,
            stream_blocks: plan.blocks.next_power_of_two(),
            direct: Some(DIRECT),
        };
        Uring::new(&config, memory).unwrap()
    }

    fn in_flight(driver: &Uring) -> usize {
        driver.in_flight()
    }
}

mod direct {
    crate::driver::suite::suite!(super::Loopback<super::Ring<true>>);
}

mod plain {
    crate::driver::suite::suite!(super::Loopback<super::Ring<false>>);
}
