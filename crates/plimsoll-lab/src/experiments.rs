//! The experiments: one module each, with an `Options` struct and a `run` function that returns a
//! type of [`results`](crate::results).

pub mod accept;
pub mod backlog;
pub mod capacity;
pub mod churn;
pub mod load;
