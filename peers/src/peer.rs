//! The flags that every peer takes, and the listener that every peer opens.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use clap::Args;

use crate::sys;

/// Size of the buffer that a peer reads into, in bytes.
pub const BUFFER_BYTES: usize = 16 * 1024;

/// Backlog that peers ask for; the kernel caps it at `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Flags common to all peers.
#[derive(Clone, Debug, Args)]
pub struct PeerArgs {
    /// Address to listen on; with port 0 the kernel chooses, and the choice is printed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,

    /// Run on this CPU only
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,

    /// Close each connection once this many bytes have been echoed on it
    #[arg(long, value_name = "BYTES")]
    pub close_after: Option<u64>,
}

impl PeerArgs {
    /// Pins the calling thread if asked to, binds, and prints
    /// `listening ADDR` on standard output.
    ///
    /// The listener carries `TCP_NODELAY`, which Linux copies to every
    /// connection accepted from it, and a backlog of [`BACKLOG`].
    ///
    /// # Errors
    /// What `sched_setaffinity(2)`, `bind(2)`, `listen(2)` or the write to
    /// standard output reported.
    pub fn start(&self) -> io::Result<TcpListener> {
        if let Some(cpu) = self.cpu {
            sys::pin(cpu).map_err(|error| named(&error, &format!("cannot run on CPU {cpu}")))?;
        }
        let listener = TcpListener::bind(self.listen)
            .map_err(|error| named(&error, &format!("cannot listen on {}", self.listen)))?;
        sys::set_nodelay(&listener)?;
        sys::set_backlog(&listener, BACKLOG)?;
        let mut out = io::stdout().lock();
        writeln!(out, "listening {}", listener.local_addr()?)?;
        out.flush()?;
        Ok(listener)
    }

    /// The number of bytes after which a connection is closed; `u64::MAX`
    /// where none was asked for.
    pub fn close_after(&self) -> u64 {
        self.close_after.unwrap_or(u64::MAX)
    }
}

/// Ends a peer: 0 when it returned, 3 with one line on standard error when
/// this machine could not run it.
pub fn exit(result: io::Result<()>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::from(3)
        }
    }
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
