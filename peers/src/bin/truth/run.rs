//! One run of one case: conditions, server, `plimsoll`, judgement.

use std::path::PathBuf;
use std::time::Instant;

use crate::case::Case;
use crate::client;
use crate::interrupt::Interrupt;
use crate::judge::Outcome;
use crate::place::Surroundings;
use crate::server::Server;
use crate::{Halt, Result};

/// The programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) plimsoll: PathBuf,
    pub(crate) faulty: PathBuf,
}

/// What one run showed.
#[derive(Debug)]
pub(crate) struct Finding {
    /// Empty where the verdict is right.
    pub(crate) complaints: Vec<String>,
    pub(crate) outcome: Outcome,
    /// What was seen from outside: how the server ended, what its control group counted.
    pub(crate) seen: Vec<String>,
    /// What started the server; `None` for the embedded one.
    pub(crate) server_line: Option<String>,
    /// What started `plimsoll`.
    pub(crate) client_line: String,
    pub(crate) seconds: f64,
}

/// Runs a case once.
pub(crate) fn once(case: &Case, programs: &Programs, interrupt: &Interrupt) -> Result<Finding> {
    let begun = Instant::now();
    // Dropped last: a control group can only be removed after its server.
    let mut around = Surroundings::prepare(case)?;
    let mut server = match case.server {
        Some(flags) => Some(Server::start(&programs.faulty, flags, &around)?),
        None => None,
    };
    let mut command = around.client(&programs.plimsoll);
    command.args(case.command).args(["--json", "--quiet"]);
    if let Some(server) = &server {
        around.once_it_listens(server.address)?;
        command.args(["--target", &server.address.to_string()]);
        if !server.address.ip().is_loopback() {
            command.arg("--allow-remote");
        }
        if around.gives_pid() {
            command.args(["--server-pid", &server.pid().to_string()]);
        }
    }
    let client_line = client::line(&command);
    let outcome = client::run(command, case.event, || {
        if interrupt.has_come() {
            return Err(Halt::Interrupted);
        }
        if let Some(server) = &mut server {
            server.attend(case.event);
        }
        Ok(())
    })?;
    let mut seen = server.as_ref().map(Server::seen).unwrap_or_default();
    seen.extend(around.seen());
    Ok(Finding {
        complaints: outcome.complaints(case.expected),
        outcome,
        seen,
        server_line: server.as_ref().map(|server| server.line.clone()),
        client_line,
        seconds: begun.elapsed().as_secs_f64(),
    })
}
