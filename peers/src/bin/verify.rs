//! The independent verifier, by hand: `verify client` against any echo server,
//! `verify serve` for any client that keeps the rule of the stream.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use plimsoll_peers::verifier::{self, Fault, Limits, Plan, Report};

/// Checks every byte of an echo, from either end
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    end: End,
}

#[derive(Subcommand)]
enum End {
    /// Send a seeded stream to an echo server and compare what comes back
    Client {
        /// Address of the echo server
        target: SocketAddr,
        /// Bytes over all connections
        #[arg(long, default_value_t = 64 << 20)]
        bytes: u64,
        /// Connections at the same time
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
        connections: u16,
        /// Fixes every byte and every split
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Smallest message in bytes
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
        min_message: u32,
        /// Largest message in bytes
        #[arg(long, default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
        max_message: u32,
        /// Seconds without progress before a connection counts as stuck
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        stall: u64,
    },
    /// Echo, and check what each client sends against its seed
    Serve {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Return after this many connections
        #[arg(long)]
        connections: Option<usize>,
        /// Seconds without progress before a connection counts as stuck
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        stall: u64,
    },
}

fn main() -> ExitCode {
    let started = Instant::now();
    let report = match Args::parse().end {
        End::Client { target, bytes, connections, seed, min_message, max_message, stall } => {
            let plan = Plan {
                seed,
                bytes,
                min_message: min_message as usize,
                max_message: max_message.max(min_message) as usize,
                connections: usize::from(connections),
                stall: Duration::from_secs(stall),
            };
            verifier::verify(target, &plan)
        }
        End::Serve { listen, connections, stall } => {
            match serve(listen, &Limits { connections, stall: Duration::from_secs(stall) }) {
                Ok(report) => report,
                Err(error) => {
                    eprintln!("cannot serve on {listen}: {error}");
                    return ExitCode::from(3);
                }
            }
        }
    };
    print(&report, started.elapsed());
    exit_code(&report)
}

fn serve(listen: SocketAddr, limits: &Limits) -> std::io::Result<Report> {
    let listener = TcpListener::bind(listen)?;
    println!("listening {}", listener.local_addr()?);
    verifier::serve(&listener, limits)
}

fn print(report: &Report, elapsed: Duration) {
    println!(
        "{} bytes verified on {} connections in {:.1} s, {} faults",
        report.verified,
        report.connections,
        elapsed.as_secs_f64(),
        report.faults.len()
    );
    for fault in &report.faults {
        println!("{fault}");
    }
}

/// 1 when a byte was wrong, missing or too many; 4 when connections only
/// failed or made no progress; 0 when everything came back.
fn exit_code(report: &Report) -> ExitCode {
    if report.faults.iter().any(|fault| !matches!(fault, Fault::Broken { .. })) {
        ExitCode::from(1)
    } else if report.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(4)
    }
}
