//! Progress and warnings, on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plimsoll_lab::Progress;

/// How often a plain line is written at most.
const PLAIN_EVERY: Duration = Duration::from_secs(3);

/// A bar, for a person who watches.
struct Bar {
    bar: ProgressBar,
}

/// Lines, for a log.
struct Lines {
    last: Mutex<Instant>,
}

/// Warnings only: what `--quiet` leaves out is progress and warnings both.
struct Silent;

/// The progress that suits stderr. `name` is the command's.
pub(crate) fn progress(name: &'static str, quiet: bool) -> std::sync::Arc<dyn Progress> {
    if quiet {
        return std::sync::Arc::new(Silent);
    }
    if !std::io::stderr().is_terminal() {
        return std::sync::Arc::new(Lines { last: Mutex::new(Instant::now()) });
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    bar.set_prefix(name);
    bar.set_style(style(false));
    bar.enable_steady_tick(Duration::from_millis(200));
    std::sync::Arc::new(Bar { bar })
}

/// With the end known a bar, else a spinner. The templates are constants; a wrong one would show in
/// the first run.
fn style(end_known: bool) -> ProgressStyle {
    let template = if end_known {
        "{prefix} [{bar:24}] {percent:>3}%  {wide_msg}"
    } else {
        "{prefix} {spinner} {elapsed}  {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}

impl Progress for Bar {
    fn step(&self, done: u64, total: Option<u64>, line: &str) {
        if self.bar.length() != total {
            match total {
                Some(total) => self.bar.set_length(total),
                None => self.bar.unset_length(),
            }
            self.bar.set_style(style(total.is_some()));
        }
        self.bar.set_position(done);
        self.bar.set_message(line.to_owned());
    }

    fn warn(&self, line: &str) {
        self.bar.suspend(|| warn(line));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Lines {
    fn step(&self, done: u64, total: Option<u64>, line: &str) {
        // The lock is held for a line's time only; a panic while writing leaves it usable.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < PLAIN_EVERY {
            return;
        }
        *last = Instant::now();
        let share = match total {
            Some(total) if total > 0 => format!("{:3} %  ", done.min(total) * 100 / total),
            _ => String::new(),
        };
        // stderr may be closed: progress is then nobody's concern.
        let _ = writeln!(anstream::stderr(), "{share}{line}");
    }

    fn warn(&self, line: &str) {
        warn(line);
    }
}

impl Progress for Silent {
    fn step(&self, _done: u64, _total: Option<u64>, _line: &str) {}

    fn warn(&self, _line: &str) {}
}

/// Writes one warning.
fn warn(line: &str) {
    let yellow = anstyle::AnsiColor::Yellow.on_default();
    let _ = writeln!(anstream::stderr(), "{yellow}warning:{yellow:#} {line}");
}
