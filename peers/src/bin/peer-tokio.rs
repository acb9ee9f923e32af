//! A tokio echo server: the `current_thread` runtime, one task a connection,
//! `read` then `write_all`, a buffer of 16 KiB held by each task.

use std::io::{self, ErrorKind};
use std::time::Duration;

use clap::Parser;
use plimsoll_peers::peer::{self, BUFFER_BYTES, PeerArgs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A tokio echo server on one thread
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    peer: PeerArgs,
}

fn main() -> std::process::ExitCode {
    peer::exit(run(&Args::parse().peer))
}

fn run(args: &PeerArgs) -> io::Result<()> {
    let listener = args.start()?;
    listener.set_nonblocking(true)?;
    let close_after = args.close_after();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(echo(stream, close_after));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: tokio offers no way to learn of a free one.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

/// Echoes until the end of the stream, an error, or `close_after` bytes.
async fn echo(mut stream: TcpStream, close_after: u64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut echoed = 0;
    while echoed < close_after {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                echoed += count as u64;
            }
        }
    }
}
