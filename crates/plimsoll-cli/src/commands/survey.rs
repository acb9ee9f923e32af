//! `plimsoll survey`.

use std::fs;
use std::path::{Path, PathBuf};

use plimsoll_lab::experiments::load::repeat;
use plimsoll_lab::results::{Document, Survey};
use plimsoll_lab::survey::{self, Options};
use plimsoll_lab::{Error, Result, report};

use super::Session;
use crate::args::{ExchangeArgs, OutputArgs, TargetArgs, TimeoutArgs, count};
use crate::output::Destination;

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll survey
        the embedded engine on loopback, in under 90 s
  plimsoll survey --target 127.0.0.1:80 --send 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' \\
      --expect 'HTTP/1.1 200' --reply-until '</html>\\n'
        an HTTP server
  plimsoll survey --target 127.0.0.1:6379 --send 'PING\\r\\n' --expect '+PONG\\r\\n'
        a Redis server";

/// All experiments; prints a summary, writes report.html and results.json
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder for report.html and results.json; it is made where it is not there
    #[arg(long, value_name = "DIR", default_value = "plimsoll-report")]
    out: PathBuf,
    /// Take as long as it takes: no bound on connections, longer measurements
    #[arg(long)]
    full: bool,
    /// Hold at most N connections [default: 15000; with --full as many as possible]
    #[arg(long, value_name = "N", value_parser = count)]
    connections: Option<u64>,
    /// Measure each load N times, one after the other: the report shows the spread
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(repeat::REPEATS_MOST)))]
    repeat: u32,
    #[command(flatten)]
    timeout: TimeoutArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    exchange: ExchangeArgs,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let options = Options {
        target: args.target.address()?,
        server_pid: args.target.server_pid,
        exchange: args.exchange.exchange(args.target.target.as_deref(), args.timeout.timeout)?,
        connections: args.connections,
        full: args.full,
        timeout: args.timeout.timeout,
        repeats: args.repeat,
    };
    let folder = Folder::check(&args.out)?;
    let session = Session::new("survey", output)?.measures(args.target.server()?);
    let (result, partial) = survey::run(&session.lab, &options)?;
    let whole = survey::is_whole(&result);
    // It has told by now what it is called.
    let session = session.measures(survey::target_server(&result));
    let document = session.document(result, partial);
    folder.write(&document)?;
    let where_to = format!(
        "\nThe report: {}\nThe figures: {}\n",
        args.out.join(REPORT).display(),
        args.out.join(RESULTS).display()
    );
    session.finish(document.result, partial, whole, |survey| {
        format!("{}{where_to}", survey::render_text(survey))
    })
}

const REPORT: &str = "report.html";
const RESULTS: &str = "results.json";

/// The two files of a survey.
struct Folder {
    report: Destination,
    results: Destination,
}

impl Folder {
    /// Makes the folder and checks that both files can be written.
    fn check(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|error| {
            Error::machine(
                format!("cannot make the folder {}: {error}", path.display()),
                "give another with --out DIR, where you may write",
            )
        })?;
        Ok(Self {
            report: Destination::check(&path.join(REPORT))?,
            results: Destination::check(&path.join(RESULTS))?,
        })
    }

    fn write(&self, document: &Document<Survey>) -> Result<()> {
        let json = serde_json::to_string_pretty(document).map_err(|error| {
            Error::incomplete(
                format!("the result cannot be written as JSON: {error}"),
                "report this as a defect, with the command line",
            )
        })?;
        self.results.write(&format!("{json}\n"))?;
        self.report.write(&report::render(document))
    }
}
