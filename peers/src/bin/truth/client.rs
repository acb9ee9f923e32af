//! One run of `plimsoll`: started, watched, read.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_peers::sys::{self, child};

use crate::case::Event;
use crate::judge::Outcome;
use crate::{Halt, Result};

/// A run that has not ended by then is killed, and wrong.
const LONGEST: Duration = Duration::from_secs(120);
/// Time between two looks at the processes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A running `plimsoll`; killed when dropped.
struct Client {
    child: Child,
    output: Option<JoinHandle<String>>,
    messages: Option<JoinHandle<String>>,
}

/// Runs `plimsoll` to its end. `meanwhile` is called every few milliseconds, and can end it.
pub(crate) fn run(
    mut command: Command,
    event: Option<Event>,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("NO_COLOR", "1").process_group(0);
    child::die_with_parent(&mut command);
    let begun = Instant::now();
    let mut child = command
        .spawn()
        .map_err(|error| Halt::skip(format!("{} does not start: {error}", line(&command))))?;
    let output = child.stdout.take().map(read_all);
    let messages = child.stderr.take().map(read_all);
    let mut client = Client { child, output, messages };
    let mut interrupt_after = match event {
        Some(Event::InterruptPlimsoll(delay)) => Some(delay),
        _ => None,
    };
    let status = loop {
        meanwhile()?;
        if interrupt_after.is_some_and(|delay| begun.elapsed() >= delay) {
            interrupt_after = None;
            // It may have ended in this moment; the next line will tell.
            let _ = sys::signal(&client.child, libc::SIGINT);
        }
        if let Ok(Some(status)) = client.child.try_wait() {
            break status;
        }
        if begun.elapsed() > LONGEST {
            // What it had printed is read below; its exit code is none.
            let _ = client.child.kill();
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let seconds = begun.elapsed().as_secs_f64();
    let mut messages = joined(client.messages.take());
    if status.code().is_none() && begun.elapsed() > LONGEST {
        // Writing to a String cannot fail.
        let _ = write!(messages, "(killed: it had not ended after {} s)", LONGEST.as_secs());
    }
    let document = serde_json::from_str(&joined(client.output.take())).ok();
    Ok(Outcome { exit: status.code(), document, messages, seconds })
}

/// A command as it would be typed.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            let is_plain =
                |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,".contains(letter);
            if !word.is_empty() && word.chars().all(is_plain) {
                word.into_owned()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Reads a pipe to its end, so that the writer never waits.
fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth having.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn joined(reader: Option<JoinHandle<String>>) -> String {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended unless we were interrupted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
