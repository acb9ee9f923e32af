//! Everything that reads the system during an experiment. Nothing here judges.

pub(crate) mod family;
pub(crate) mod threads;
