//! `plimsoll compare`.

use std::fs;
use std::path::{Path, PathBuf};

use plimsoll_lab::checks::compare;
use plimsoll_lab::{Error, Result};
use serde_json::Value;

use super::Session;
use crate::args::OutputArgs;

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll compare before.json after.json
  plimsoll compare before.json after.json --assert 'load.messages_per_second>=200000'
        judges the second result; exits 1 where it does not hold";

/// Two results side by side, with the spread
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The first result: a file that --output or survey wrote
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The second result
    #[arg(value_name = "B")]
    second: PathBuf,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let (first, second) = (read(&args.first)?, read(&args.second)?);
    let session = Session::new("compare", output)?;
    let result = compare::compare(&first, &second)?;
    session.finish_judged(result, false, true, compare::render_text, |assertion, comparison, _| {
        compare::judge(assertion, comparison, &second)
    })
}

/// The largest result file that is read, in bytes.
const FILE_MAX: u64 = 1 << 28;

/// Reads a result.
fn read(path: &Path) -> Result<Value> {
    let wrong = |why: String| {
        Error::usage(
            format!("cannot compare {}: {why}", path.display()),
            "give two files that `plimsoll survey` or --output wrote",
        )
    };
    let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_MAX {
        return Err(wrong(format!("{size} bytes are no result of ours")));
    }
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
}
