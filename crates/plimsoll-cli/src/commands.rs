//! The commands, one file each: flags into options, the experiment, its result to the output.

pub(crate) mod accept;
pub(crate) mod backlog;
pub(crate) mod capacity;
pub(crate) mod churn;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod load;
pub(crate) mod plan;
pub(crate) mod serve;
pub(crate) mod survey;

use std::process::ExitCode;
use std::sync::Arc;

use plimsoll_lab::checks::assertion::{Assertion, Verdict};
use plimsoll_lab::results::document::{Heading, Start};
use plimsoll_lab::results::{Document, TargetServer};
use plimsoll_lab::{Error, Lab, Result};
use serde::Serialize;
use serde_json::Value;

use crate::args::{Cli, Command, OutputArgs};
use crate::output::{self, Destination};
use crate::{interrupt, progress};

/// Done, and all holds.
pub(crate) const OK: u8 = 0;
/// An assertion or a goal does not hold.
pub(crate) const FAILED: u8 = 1;
/// A part of the result is missing.
pub(crate) const INCOMPLETE: u8 = 5;

/// Runs the command, prints its error if it ends in one, and gives the exit code.
pub(crate) fn dispatch(cli: Cli) -> ExitCode {
    log_to_stderr(&cli.output);
    let output = cli.output;
    let code = match cli.command {
        Command::Survey(args) => survey::run(&args, output),
        Command::Serve(args) => serve::run(&args, &output),
        Command::Backlog(args) => backlog::run(&args, output),
        Command::Accept(args) => accept::run(&args, output),
        Command::Capacity(args) => capacity::run(&args, output),
        Command::Load(args) => load::run(&args, output),
        Command::Churn(args) => churn::run(&args, output),
        Command::Plan(args) => plan::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Explain(args) => explain::run(&args, output),
        Command::Compare(args) => compare::run(&args, output),
        Command::Completions(args) => completions::run(&args),
        Command::Worker => return plimsoll_lab::worker::main(),
    };
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Log lines of the libraries: warnings, or with `--verbose` what they do; `PLIMSOLL_LOG` overrides.
fn log_to_stderr(output: &OutputArgs) {
    use tracing_subscriber::EnvFilter;
    let level = match (output.quiet, output.verbose) {
        (true, _) => "error",
        (_, true) => "debug",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("PLIMSOLL_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    // A second call would fail; there is one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .without_time()
        .try_init();
}

/// One run of an experiment: where its output goes was checked before it starts.
pub(crate) struct Session {
    /// What the experiment is given.
    pub(crate) lab: Lab,
    heading: Heading,
    output: OutputArgs,
    destination: Option<Destination>,
    start: Start,
}

impl Session {
    /// Checks the assertions and the output file, and takes over Ctrl-C.
    pub(crate) fn new(command: &'static str, output: OutputArgs) -> Result<Self> {
        for assertion in &output.assertions {
            if !matches!(command, "survey" | "compare") && assertion.command() != command {
                return Err(Error::usage(
                    format!(
                        "the assertion `{}` is about `{}`, and this is `{command}`",
                        assertion.text(),
                        assertion.command()
                    ),
                    format!(
                        "begin it with `{command}`, or run it with that command or with survey"
                    ),
                ));
            }
            assertion.check(command)?;
        }
        let destination = output.output.as_deref().map(Destination::check).transpose()?;
        let executable = std::env::current_exe().map_err(|error| {
            Error::machine(
                format!("cannot find the plimsoll executable: {error}"),
                "run it by its full path, with /proc mounted",
            )
        })?;
        let lab = Lab {
            progress: progress::progress(command, output.quiet),
            interrupted: interrupt::flag()?,
            executable,
        };
        let heading = Heading::of_this_process(command);
        Ok(Self { lab, heading, output, destination, start: Start::now() })
    }

    /// Names the server that is measured, for the document; `None` for the embedded engine.
    pub(crate) fn measures(mut self, target: Option<TargetServer>) -> Self {
        self.heading.target = target;
        self
    }

    /// Prints and writes the result, judges the assertions, and gives the exit code. `holds` is
    /// whether the result is good in itself.
    pub(crate) fn finish<T: Serialize>(
        self,
        result: T,
        partial: bool,
        holds: bool,
        text: impl FnOnce(&T) -> String,
    ) -> Result<u8> {
        self.finish_judged(result, partial, holds, text, |assertion, _, json| {
            assertion.evaluate(json)
        })
    }

    /// As [`finish`](Self::finish), with assertions judged by `judge`, which is given the result and
    /// the document.
    pub(crate) fn finish_judged<T: Serialize>(
        mut self,
        result: T,
        partial: bool,
        holds: bool,
        text: impl FnOnce(&T) -> String,
        judge: impl Fn(&Assertion, &T, &Value) -> Verdict,
    ) -> Result<u8> {
        // The bar is taken down before the result is printed.
        self.lab.progress = Arc::new(plimsoll_lab::Quiet);
        let document = self.document(result, partial);
        let json = serde_json::to_value(&document).map_err(|error| {
            Error::incomplete(
                format!("the result cannot be written as JSON: {error}"),
                "report this as a defect, with the command line",
            )
        })?;
        let json_text = format!("{json:#}\n");
        if let Some(destination) = &self.destination {
            destination.write(&json_text)?;
        }
        if self.output.json {
            output::result(&json_text)?;
        } else {
            output::result(&text(&document.result))?;
        }
        let mut code = if holds { OK } else { FAILED };
        for assertion in &self.output.assertions {
            let verdict = judge(assertion, &document.result, &json);
            output::verdict(&verdict, self.output.json);
            if !verdict.holds {
                code = FAILED;
            }
        }
        Ok(if partial { interrupt::EXIT_CODE } else { code })
    }

    /// The document of a result, as [`finish`](Self::finish) will write it.
    pub(crate) fn document<T>(&self, result: T, partial: bool) -> Document<T> {
        self.start.document(&self.heading, result, partial)
    }
}
