//! An echo server on compio: one thread, one task a connection, `read` then `write_all`, a buffer
//! of 16 KiB held by each task.

use std::io::{self, ErrorKind};
use std::time::Duration;

use clap::Parser;
use compio::BufResult;
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;
use plimsoll_peers::peer::{self, BUFFER_BYTES};
use plimsoll_peers_more::{Args, Ring};

fn main() -> std::process::ExitCode {
    peer::exit(run(&Args::parse()))
}

fn run(args: &Args) -> io::Result<()> {
    let listener = args.peer.start()?;
    let close_after = args.peer.close_after();
    let mut ring = ProactorBuilder::new();
    match args.ring {
        Ring::Library => {}
        Ring::Coop => drop(ring.coop_taskrun(true).taskrun_flag(true)),
        Ring::Defer => drop(ring.single_issuer(true).defer_taskrun(true)),
    }
    let runtime = Runtime::builder().with_proactor(ring).build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => compio::runtime::spawn(echo(stream, close_after)).detach(),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: compio offers no way to learn of a free one.
                Err(_) => compio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

/// Echoes until the end of the stream, an error, or `close_after` bytes.
async fn echo(mut stream: TcpStream, close_after: u64) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut echoed = 0;
    while echoed < close_after {
        let BufResult(result, filled) = stream.read(buffer).await;
        let Ok(count @ 1..) = result else { return };
        let BufResult(result, sent) = stream.write_all(filled).await;
        if result.is_err() {
            return;
        }
        echoed += count as u64;
        buffer = sent;
        buffer.clear();
    }
}
