//! The lab: experiments that find a TCP server's limits on this machine, and
//! say what broke first, with the kernel's own figures as evidence.
//!
//! Each experiment is a module of [`experiments`] with an `Options` struct and a
//! `run` function that returns a type of [`results`], which is also the JSON that
//! the command writes. Nothing here prints: progress goes to [`Lab::progress`],
//! and the caller decides where it is shown.
//!
//! Arrows point down only: [`survey`] and [`report`] stand on [`advice`], that on
//! [`experiments`], and those on [`worker`] (the client's processes),
//! [`embedded`] (the server's process), [`observe`] (all that reads the system), and
//! [`verdict`] (pure: what was counted and seen goes in, what stopped it comes out).

pub mod advice;
pub mod checks;
pub mod embedded;
pub mod experiments;
pub mod observe;
pub mod report;
pub mod results;
pub mod survey;
pub mod units;
pub mod verdict;
pub mod worker;

mod errno;
mod error;
mod lab;
mod statistics;
mod sys;

pub use error::{Error, Result};
pub use lab::{Lab, Progress, Quiet};
pub use sys::raise_descriptor_limit;
