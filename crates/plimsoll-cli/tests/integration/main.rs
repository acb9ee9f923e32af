//! The command as its users run it. All tests are one program, which is linked once.

#[cfg(unix)]
mod common;
mod schema;

#[cfg(target_os = "linux")]
mod churn;
#[cfg(target_os = "linux")]
mod command;
#[cfg(unix)]
mod compare;
#[cfg(target_os = "linux")]
mod errors_and_interrupts;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod pressure;
#[cfg(target_os = "linux")]
mod real_servers;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod serve_restricted;

#[cfg(unix)]
mod wine;

#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
mod load;

#[cfg(target_os = "linux")]
mod survey;

#[cfg(target_os = "linux")]
mod verdicts;
