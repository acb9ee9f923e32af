//! One connection before anything is measured: a target that is not there, closes at once or never
//! answers is told from one that breaks under load.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::worker::exchange::{Exchange, Payload, Reply, Taken};
use crate::{Error, Result};

/// Connects, sends one request (an echo without an `exchange`) and waits for its reply. A round trip
/// or two; with a target that does not answer, up to twice the timeout.
///
/// # Errors
/// [`Error::Target`] when it cannot be reached, closes, does not answer in time, or answers
/// otherwise.
pub(super) fn knock(
    target: SocketAddr,
    exchange: Option<&Exchange>,
    timeout: Duration,
) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, timeout).map_err(|error| {
        Error::target(
            format!("{target} cannot be reached: {error}"),
            "start the server, or check address and port (ss -ltn lists what listens)",
        )
    })?;
    let echo = Exchange::echo(timeout);
    let exchange = exchange.unwrap_or(&echo);
    let request = match &exchange.send {
        Payload::Bytes(bytes) => bytes.clone(),
        Payload::Random(length) => (0..*length).map(|at| (at * 37 + 11) as u8).collect(),
    };
    let expected = if exchange.request().is_some() { exchange.expected() } else { &request };
    talk(&mut stream, &request, expected, exchange, timeout).map_err(|why| {
        let (what, cure) = match why {
            Silence::Closes => (
                "accepts a connection and closes it without a reply".to_owned(),
                "see the server's log: a limit of its own, or it expects other bytes (--send and \
                 --expect say which)",
            ),
            Silence::Mute => (
                format!("accepts a connection and did not answer within {timeout:?}"),
                "is it an echo server? for another protocol see --send, --expect and --reply-until",
            ),
            Silence::Otherwise => (
                "answers, but not as expected".to_owned(),
                "a server that is no echo needs --send and --expect, such as --send 'PING\\r\\n' \
                 --expect '+PONG\\r\\n'",
            ),
        };
        Error::target(format!("{target} {what}"), cure)
    })
}

/// Why there was no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    Closes,
    Mute,
    Otherwise,
}

fn talk(
    stream: &mut TcpStream,
    request: &[u8],
    expected: &[u8],
    exchange: &Exchange,
    timeout: Duration,
) -> Result<(), Silence> {
    let failed = |error: &std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Silence::Mute,
        _ => Silence::Closes,
    };
    let deadline = Instant::now() + timeout;
    // A time limit of zero would mean none.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left())).map_err(|error| failed(&error))?;
    stream.write_all(request).map_err(|error| failed(&error))?;
    let (mut reply, mut buffer) = (Reply::default(), [0; 16 << 10]);
    loop {
        if Instant::now() >= deadline {
            return Err(Silence::Mute);
        }
        stream.set_read_timeout(Some(left())).map_err(|error| failed(&error))?;
        let count = match stream.read(&mut buffer) {
            Ok(0) if reply.end() == Some(true) => return Ok(()),
            Ok(0) => return Err(Silence::Closes),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error)),
        };
        match reply.take(expected, &exchange.end, &buffer[..count]) {
            Taken::Whole(_) => return Ok(()),
            Taken::Wrong | Taken::Other(_) => return Err(Silence::Otherwise),
            Taken::All => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Knocks at a server that does `serve` with its one connection.
    fn at(serve: impl FnOnce(TcpStream) + Send + 'static) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        let knocked = knock(target, None, Duration::from_millis(300));
        server.join().unwrap();
        knocked
    }

    #[test]
    fn each_kind_of_silence_is_named() {
        let echo = |mut stream: TcpStream| {
            let mut buffer = [0; 16];
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
        };
        at(echo).expect("an echo answers");
        let says = |result: Result<()>, word: &str| {
            let error = result.expect_err(word);
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(word), "{error}");
        };
        says(at(drop), "closes");
        says(at(|mut stream| stream.write_all(b"+OK 0123456789\r\n").unwrap()), "not as expected");
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = knock(deaf.local_addr().unwrap(), None, Duration::from_millis(200));
        says(silent, "did not answer within 200ms");
    }
}
