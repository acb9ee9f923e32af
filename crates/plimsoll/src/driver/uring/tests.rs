//! The behavioural suite in the real world, and what is this driver's own.

mod own;
mod world;

mod direct {
    crate::driver::suite::suite!(super::world::Loopback<true>);
}

mod plain {
    crate::driver::suite::suite!(super::world::Loopback<false>);
}
