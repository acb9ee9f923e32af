//! Judgements of results: assertions, and comparisons of two results.

pub mod assertion;
pub mod compare;
pub mod rows;
