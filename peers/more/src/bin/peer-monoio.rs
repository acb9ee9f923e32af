//! An echo server on monoio: one thread, one task a connection, `read` then `write_all`, a buffer
//! of 16 KiB held by each task.

use std::io::{self, ErrorKind};
use std::time::Duration;

use clap::Parser;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use plimsoll_peers::peer::{self, BUFFER_BYTES};
use plimsoll_peers_more::{Args, Ring};

fn main() -> std::process::ExitCode {
    peer::exit(run(&Args::parse()))
}

fn run(args: &Args) -> io::Result<()> {
    let listener = args.peer.start()?;
    let close_after = args.peer.close_after();
    let mut ring = io_uring::IoUring::builder();
    match args.ring {
        Ring::Library => {}
        Ring::Coop => drop(ring.setup_coop_taskrun().setup_taskrun_flag()),
        Ring::Defer => drop(ring.setup_single_issuer().setup_defer_taskrun()),
    }
    let mut runtime =
        RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).enable_timer().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    monoio::spawn(echo(stream, close_after));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: monoio offers no way to learn of a free one.
                Err(_) => monoio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

/// Echoes until the end of the stream, an error, or `close_after` bytes.
async fn echo(mut stream: TcpStream, close_after: u64) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut echoed = 0;
    while echoed < close_after {
        let result;
        (result, buffer) = stream.read(buffer).await;
        let Ok(count @ 1..) = result else { return };
        let result;
        (result, buffer) = stream.write_all(buffer).await;
        if result.is_err() {
            return;
        }
        echoed += count as u64;
        buffer.clear();
    }
}
