//! The whole of a worker process.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::connect::{Connecting, reset};
use super::held::Held;
use super::probe;
use super::protocol::{Report, Request};
use crate::sys;

/// Runs a worker until its stdin ends: requests from stdin, reports to stdout.
///
/// A request that cannot be read ends it with exit code 2: parent and worker are then of different
/// versions.
pub fn main() -> ExitCode {
    sys::raise_descriptor_limit();
    let (sender, requests) = channel();
    let reader = std::thread::Builder::new().stack_size(64 << 10).name("requests".into());
    if reader.spawn(move || read_requests(&sender)).is_err() {
        return ExitCode::from(3);
    }
    let mut worker = Worker { held: Held::new(), room: sys::room() as usize };
    // An error of stdout: the parent has gone, and so do we.
    let _ = worker.obey(&requests);
    ExitCode::SUCCESS
}

/// Passes requests on; ends the process at the end of stdin, whatever it is at: the kernel closes
/// its sockets.
fn read_requests(sender: &Sender<Request>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(request) => {
                if sender.send(request).is_err() {
                    break;
                }
            }
            Err(error) => {
                eprintln!("worker: cannot read the request: {error}");
                std::process::exit(2);
            }
        }
    }
    std::process::exit(0);
}

struct Worker {
    held: Held,
    room: usize,
}

impl Worker {
    fn obey(&mut self, requests: &Receiver<Request>) -> io::Result<()> {
        report(&Report::Ready { room: self.room as u64 })?;
        while let Ok(request) = requests.recv() {
            match request {
                Request::Connect(ask) => {
                    let stop = || matches!(requests.try_recv(), Ok(Request::Stop));
                    let mut broken = Ok(());
                    let connected =
                        Connecting::new(&ask, &mut self.held, self.room).run(stop, |tally| {
                            if broken.is_ok() {
                                broken = report(&Report::Progress(tally.clone()));
                            }
                        });
                    broken?;
                    report(&Report::Connected(connected))?;
                }
                // It came after the end of what it was to stop.
                Request::Stop => {}
                Request::Check => report(&Report::Checked(self.held.check()?))?,
                Request::Probe(exchange) => {
                    let stop = || matches!(requests.try_recv(), Ok(Request::Stop));
                    let probed = probe::run(self.held.sockets(), &exchange, stop)?;
                    self.held.have_spoken();
                    report(&Report::Probed(probed))?;
                }
                Request::Close => {
                    let connections = self.held.drain().count() as u64;
                    report(&Report::Released { connections })?;
                }
                Request::Reset => {
                    let connections = self.held.len() as u64;
                    self.held.drain().for_each(reset);
                    report(&Report::Released { connections })?;
                }
            }
        }
        Ok(())
    }
}

fn report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
