//! The experiments against the real kernel. All tests are one program, which is linked once.
//!
//! A test that measures begins with [`common::turn`], which keeps the tests of other modules waiting.

mod common;

mod plan;

#[cfg(target_os = "linux")]
mod accept;
#[cfg(target_os = "linux")]
mod backlog;
#[cfg(target_os = "linux")]
mod capacity;
#[cfg(target_os = "linux")]
mod capacity_workers;
#[cfg(target_os = "linux")]
mod churn;
#[cfg(target_os = "linux")]
mod doctor;
#[cfg(target_os = "linux")]
mod explain;

#[cfg(windows)]
mod windows;
