//! The parent's side of the workers.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::probe;
use super::protocol::{Checked, Probed, Report, Request};
use crate::sys::{Interrupt, tie_to_parent};
use crate::verdict::quote;
use crate::worker::exchange::Exchange;
use crate::{Error, Lab, Result};

/// How long a new worker may take to say that it is there.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a worker may take to close its sockets when it is dismissed.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);
/// The longest line that is read of a worker, in bytes. A report has some hundred, and more where many
/// kinds of errors occurred.
const LONGEST_LINE: u64 = 1 << 20;

/// Worker processes. Dropping them closes their sockets and waits for their end.
///
/// Spawn and drop on a thread that lives as long as the workers shall: the kernel kills them when
/// the thread that spawned them ends.
///
/// # Errors
/// Every function that hears of a worker's death returns [`Error::Incomplete`]: what it held is
/// lost, so that no count is whole any more.
pub struct Workers {
    command: Box<dyn Fn() -> Command + Send>,
    members: Vec<Member>,
    heard: Receiver<(usize, Heard)>,
    /// Heard while waiting for something else.
    put_by: VecDeque<(usize, Report)>,
    voice: Sender<(usize, Heard)>,
}

/// What is read from a worker's stdout. Nothing is read after an end.
enum Heard {
    Report(Report),
    /// It is closed, or cannot be read.
    Closed,
    /// A line that is no report: the line, at most [`LONGEST_LINE`] of it.
    Unreadable(Vec<u8>),
}

struct Member {
    child: Child,
    stdin: Option<ChildStdin>,
    room: u64,
}

impl Workers {
    /// No workers yet; those to come run `lab.executable worker`.
    pub fn new(lab: &Lab) -> Self {
        let executable = lab.executable.clone();
        Self::with_command(move || {
            let mut command = Command::new(&executable);
            command.arg("worker");
            command
        })
    }

    /// No workers yet; those to come run what `command` makes, whose process must call
    /// [`main`](super::main).
    pub fn with_command(command: impl Fn() -> Command + Send + 'static) -> Self {
        let (voice, heard) = channel();
        Self {
            command: Box::new(command),
            members: Vec::new(),
            heard,
            put_by: VecDeque::new(),
            voice,
        }
    }

    /// So many workers that run `lab.executable worker`.
    pub fn spawn(lab: &Lab, how_many: usize) -> Result<Self> {
        let mut workers = Self::new(lab);
        for _ in 0..how_many {
            workers.add()?;
        }
        Ok(workers)
    }

    /// Starts one more, waits until it is ready, and returns its number. Some milliseconds; others
    /// may be at work meanwhile.
    ///
    /// # Errors
    /// [`Error::Machine`] when it cannot be started.
    pub fn add(&mut self) -> Result<usize> {
        let number = self.members.len();
        match self.try_add()? {
            Ok(number) => Ok(number),
            Err(error) => Err(cannot_start(number, &error.to_string())),
        }
    }

    /// As [`add`](Self::add); a refusal of the system to start a process is the inner error.
    pub fn try_add(&mut self) -> Result<std::io::Result<usize>> {
        let number = self.members.len();
        let mut command = (self.command)();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        tie_to_parent(&mut command, Interrupt::Ignored);
        let cannot = |why: &str| cannot_start(number, why);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Err(error)),
        };
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(cannot("it has no pipes"));
        };
        let voice = self.voice.clone();
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .stack_size(128 << 10)
            .spawn(move || listen(number, stdout, &voice))
            .map_err(|error| cannot(&error.to_string()))?;
        self.members.push(Member { child, stdin: Some(stdin), room: 0 });
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.hear(deadline.saturating_duration_since(Instant::now()))? {
                Some((who, Report::Ready { room })) if who == number => {
                    self.members[number].room = room;
                    return Ok(Ok(number));
                }
                Some(other) => self.put_by.push_back(other),
                None => return Err(cannot("it did not answer")),
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many connections each of them can hold.
    pub fn rooms(&self) -> impl Iterator<Item = u64> {
        self.members.iter().map(|member| member.room)
    }

    /// How many connections one of them can hold.
    pub fn room(&self, worker: usize) -> u64 {
        self.members[worker].room
    }

    /// The process of one of them.
    pub fn pid(&self, worker: usize) -> u32 {
        self.members[worker].child.id()
    }

    /// Asks one of them.
    pub fn ask(&mut self, worker: usize, request: &Request) -> Result<()> {
        let member = &mut self.members[worker];
        let mut line = serde_json::to_vec(request).map_err(|error| {
            Error::usage(format!("a request cannot be written: {error}"), "give finite values")
        })?;
        line.push(b'\n');
        let told = match &mut member.stdin {
            Some(stdin) => stdin.write_all(&line).is_ok(),
            None => false,
        };
        if told { Ok(()) } else { Err(self.died(worker, None)) }
    }

    /// Asks all of them.
    pub fn ask_all(&mut self, request: &Request) -> Result<()> {
        (0..self.len()).try_for_each(|worker| self.ask(worker, request))
    }

    /// The next report of anybody; `None` when there is none for so long.
    pub fn next(&mut self, patience: Duration) -> Result<Option<(usize, Report)>> {
        match self.put_by.pop_front() {
            Some(report) => Ok(Some(report)),
            None => self.hear(patience),
        }
    }

    fn hear(&mut self, patience: Duration) -> Result<Option<(usize, Report)>> {
        match self.heard.recv_timeout(patience) {
            Ok((worker, Heard::Report(report))) => Ok(Some((worker, report))),
            Ok((worker, Heard::Closed)) => Err(self.died(worker, None)),
            Ok((worker, Heard::Unreadable(line))) => Err(self.died(worker, Some(&line))),
            // The second cannot be: this holds a sender itself.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// Has all of them look at what they hold. About 0.2 µs a connection.
    pub fn check(&mut self) -> Result<Checked> {
        self.ask_all(&Request::Check)?;
        let mut sum = Checked::default();
        self.gather(START_PATIENCE, |report| {
            let Report::Checked(one) = report else { return false };
            sum.add(one);
            true
        })?;
        Ok(sum)
    }

    /// Has one of them look at what it holds, while nobody else is asked anything.
    pub fn check_one(&mut self, worker: usize) -> Result<Checked> {
        self.ask(worker, &Request::Check)?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some((_, Report::Checked(found))) => return Ok(found),
                Some(_) => {}
                None => return Err(silent(worker)),
            }
        }
    }

    /// Has all of them probe what they hold, one worker after the other as long as everybody answers;
    /// once somebody did not, all that are left at once, so that the time limits of one reply are not
    /// waited for one after another. `go_on` is asked often, with the number of workers that have
    /// ended; when it says `false`, the rest is left out.
    pub fn probe(
        &mut self,
        exchange: &Exchange,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> Result<Probed> {
        let mut sum = Probed::default();
        let mut next = 0;
        let mut ended = 0;
        while ended < self.len() {
            if next == ended && !go_on(ended) {
                break;
            }
            let all_at_once = sum.errors.contains_key(probe::NO_REPLY);
            let until = if all_at_once { self.len() } else { (ended + 1).min(self.len()) };
            for worker in next..until {
                self.ask(worker, &Request::Probe(exchange.clone()))?;
            }
            next = next.max(until);
            // A worker waits for one time limit with the first that do not answer, and for one more
            // with the rest. One that is silent for longer than that, and for what the answers take,
            // has stopped.
            let patience = Duration::from_millis(exchange.timeout_ms) * 4 + START_PATIENCE * 3;
            self.probed(ended..next, patience, &mut sum, || go_on(ended))?;
            ended = next;
        }
        Ok(sum)
    }

    /// Waits for the reports of workers that probe; has them stop when `go_on` says `false`.
    fn probed(
        &mut self,
        workers: std::ops::Range<usize>,
        patience: Duration,
        sum: &mut Probed,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut missing = workers.len();
        let mut deadline = Instant::now() + patience;
        let mut told = false;
        while missing > 0 {
            if !told && !go_on() {
                workers.clone().try_for_each(|worker| self.ask(worker, &Request::Stop))?;
                told = true;
            }
            match self.next(Duration::from_millis(20))? {
                Some((_, Report::Probed(one))) => {
                    sum.add(one);
                    missing -= 1;
                    deadline = Instant::now() + patience;
                }
                Some(_) => {}
                None if Instant::now() < deadline => {}
                None => return Err(silent(workers.start)),
            }
        }
        Ok(())
    }

    /// Has all of them give up what they hold: [`Request::Close`] or [`Request::Reset`]. Returns
    /// how many connections it was.
    pub fn release(&mut self, how: &Request) -> Result<u64> {
        self.ask_all(how)?;
        let mut sum = 0;
        self.gather(Duration::from_secs(60), |report| {
            let Report::Released { connections } = report else { return false };
            sum += connections;
            true
        })?;
        Ok(sum)
    }

    /// Waits for one report of each worker that `take` says yes to.
    fn gather(&mut self, patience: Duration, mut take: impl FnMut(&Report) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut missing = self.len();
        while missing > 0 {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some((_, report)) => missing -= usize::from(take(&report)),
                None => return Err(silent(self.len())),
            }
        }
        Ok(())
    }

    /// Ends a worker that can be asked nothing any more, and says why and how it ended. `unreadable`
    /// is the line of it that is no report. Takes up to [`EXIT_PATIENCE`].
    fn died(&mut self, worker: usize, unreadable: Option<&[u8]>) -> Error {
        let member = &mut self.members[worker];
        // The end of stdin is the order to go: it may still run.
        member.stdin = None;
        let how = end(&mut member.child, Instant::now() + EXIT_PATIENCE);
        let process = member.child.id();
        match unreadable {
            Some(line) => Error::incomplete(
                format!(
                    "worker {worker} (process {process}) wrote a line that is no report, {}, and {how}",
                    quote(line)
                ),
                "its connections are lost, so the counts would be wrong: check that `plimsoll` was not \
                 replaced while it ran, and run it again",
            ),
            None => Error::incomplete(
                format!("worker {worker} (process {process}) died in the middle: it {how}"),
                "its connections are lost, so the counts would be wrong: look for the OOM killer in \
                 `dmesg`, and run it again",
            ),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for member in &mut self.members {
            // The end of stdin is the order to go.
            member.stdin = None;
        }
        let deadline = Instant::now() + EXIT_PATIENCE;
        for member in &mut self.members {
            end(&mut member.child, deadline);
        }
    }
}

/// Waits for the end of a process whose stdin is closed, and kills it at the deadline. Returns how it
/// ended.
fn end(child: &mut Child, deadline: Instant) -> String {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return format!("ended with {status}"),
            Err(error) => return format!("cannot be waited for: {error}"),
            Ok(None) if Instant::now() >= deadline => break,
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    // It may have ended by itself since; the wait tells.
    let _ = child.kill();
    match child.wait() {
        Ok(status) => format!("was killed, since it did not end when its stdin did ({status})"),
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

/// Passes a worker's reports on until its stdout ends or holds what is no report.
fn listen(number: usize, stdout: ChildStdout, voice: &Sender<(usize, Heard)>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        let heard = match read {
            // Without its end of line it is what a process wrote that died in the middle of a line.
            Ok(count) if line.ends_with(b"\n") || count as u64 == LONGEST_LINE => {
                match serde_json::from_slice(&line) {
                    Ok(report) => Heard::Report(report),
                    Err(_) => Heard::Unreadable(line),
                }
            }
            _ => Heard::Closed,
        };
        let is_end = !matches!(heard, Heard::Report(_));
        // Sending fails once the pool has been dropped: nobody waits for reports any more.
        if voice.send((number, heard)).is_err() || is_end {
            return;
        }
    }
}

fn cannot_start(worker: usize, why: &str) -> Error {
    Error::machine(
        format!("cannot start worker {worker}: {why}"),
        "check the limits on processes (`ulimit -u`), descriptors and memory",
    )
}

fn silent(worker: usize) -> Error {
    Error::incomplete(
        format!("worker {worker} does not answer"),
        "it may be stopped (SIGSTOP) or starved: run it again on a quieter machine",
    )
}
