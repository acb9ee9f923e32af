//! What the lab says without an experiment: limits and their cures, what a number of connections
//! will need, what a running server costs.

pub mod doctor;
pub mod explain;
pub mod plan;
