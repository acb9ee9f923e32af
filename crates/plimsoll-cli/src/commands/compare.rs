//! `plimsoll compare`.

use std::path::PathBuf;

use plimsoll_lab::Result;
use plimsoll_lab::checks::compare::{self, Require};

use super::Session;
use crate::args::OutputArgs;

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll compare before.json after.json
  plimsoll compare before.json after.json --assert 'load.messages_per_second>=200000'
        judges the second result; exits 1 where it does not hold
  plimsoll load --target ADDR --repeat 20 --output before.json
        measures in 20 parts, so that there is a spread to judge by

What was measured in repeats (load --repeat, the turns of churn, the repetitions of accept) is
judged: CHANGED, with the differences that the repeats do not rule out; or not distinguishable, with
the smallest difference that could have been seen. Fewer than one in 50 comparisons of equal
servers call any row CHANGED. What was measured in one piece is shown and not judged.

Two files are weaker evidence than one run: a machine has slow and fast phases, and one that lasts
longer than a run looks like a change. To compare two servers, load them in turns:
  plimsoll load --target A --target B --repeat 10";

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
    /// Compare runs of different arguments too (target, output and seed may always differ)
    #[arg(long)]
    allow_different: bool,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let (first, second) = (compare::read(&args.first)?, compare::read(&args.second)?);
    let session = Session::new("compare", output)?;
    let require = if args.allow_different { Require::Anything } else { Require::SameArguments };
    let result = compare::compare(&first, &second, require)?;
    session.finish_judged(result, false, true, compare::render_text, |assertion, comparison, _| {
        compare::judge(assertion, comparison, &second)
    })
}
