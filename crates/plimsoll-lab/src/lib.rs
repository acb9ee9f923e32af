//! The lab: experiments that find a TCP server's limits on this machine, and
//! say what broke first, with the kernel's own figures as evidence.
//!
//! Each experiment is a module with an `Options` struct and a `run` function
//! that returns a type of [`results`], which is also the JSON that the command
//! writes. Nothing here prints: progress goes to [`Lab::progress`], and the
//! caller decides where it is shown.

pub mod accept;
pub mod assertion;
pub mod backlog;
pub mod capacity;
pub mod churn;
pub mod compare;
pub mod doctor;
pub mod document;
pub mod embedded;
pub mod evidence;
pub mod exchange;
pub mod explain;
pub mod load;
pub mod plan;
pub mod report;
pub mod results;
pub mod schema;
pub mod source;
pub mod survey;
pub mod units;
pub mod worker;

mod errno;
mod error;
mod family;
mod lab;
mod sys;

pub use error::{Error, Result};
pub use lab::{Lab, Progress, Quiet};
pub use sys::raise_descriptor_limit;
