//! One connection before anything is measured: a target that is not there, closes at once or never
//! answers is told from one that breaks under load.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::worker::exchange::{Exchange, Payload, Reply, Taken};
use crate::{Error, Result};

/// How long a server that speaks first is listened to before the request is sent.
const UNASKED: Duration = Duration::from_millis(20);
/// The longest name of a server that is kept, in characters.
const NAME_MAX: usize = 80;
/// Bytes of a reply in which its `Server` header is looked for.
const HEAD_MAX: usize = 4096;

/// What a target showed on its first connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    /// What it says of itself.
    pub(super) says: Option<String>,
    /// Whether it may be sent the request again and again: a second reply on the same connection was
    /// as the first, or the connection was closed after the first and a new one serves.
    pub(super) repeats: bool,
}

/// Connects, sends one request (an echo without an `exchange`), waits for its reply, and sends it once
/// more. 40 ms and a few round trips; with a target that does not answer, up to three timeouts.
///
/// # Errors
/// [`Error::Target`] when it cannot be reached, closes, does not answer in time, or answers
/// otherwise.
pub(super) fn knock(
    target: SocketAddr,
    exchange: Option<&Exchange>,
    timeout: Duration,
) -> Result<Greeting> {
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
    let banner = unasked(&stream);
    let head = talk(&mut stream, &request, expected, exchange, timeout).map_err(|why| {
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
    })?;
    let again = talk(&mut stream, &request, expected, exchange, timeout);
    let repeats = match again {
        Ok(again) => again.is_all && left_over(&stream) == 0,
        Err(Silence::Closes) => true,
        Err(Silence::Mute | Silence::Otherwise) => false,
    };
    Ok(Greeting { says: banner.or_else(|| server_header(&head.bytes)), repeats })
}

/// How many bytes are there beyond a reply.
fn left_over(stream: &TcpStream) -> usize {
    let limited = stream.set_read_timeout(Some(UNASKED));
    limited.and_then(|()| stream.peek(&mut [0; 16])).unwrap_or(0)
}

/// The first line that the server sends before it is asked anything. It is left in the stream.
fn unasked(stream: &TcpStream) -> Option<String> {
    let mut buffer = [0; 256];
    stream.set_read_timeout(Some(UNASKED)).ok()?;
    let count = stream.peek(&mut buffer).ok()?;
    let line = buffer[..count].split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    printable(line)
}

/// The `Server` header of an HTTP reply.
fn server_header(head: &[u8]) -> Option<String> {
    let head = head.strip_prefix(b"HTTP/1.")?;
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let mut headers = lines.map(<[u8]>::trim_ascii).take_while(|line| !line.is_empty());
    headers.find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        name.eq_ignore_ascii_case(b"server").then(|| printable(value[1..].trim_ascii()))?
    })
}

/// Text that a server sent, cut and escaped so that it can stand in a line.
fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = bytes.escape_ascii().to_string().chars().take(NAME_MAX).collect();
    (!text.trim().is_empty()).then_some(text)
}

/// Why there was no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    Closes,
    Mute,
    Otherwise,
}

/// The first bytes of a reply.
struct Head {
    bytes: Vec<u8>,
    /// Whether nothing was read beyond the end of the reply.
    is_all: bool,
}

/// One request and its reply.
fn talk(
    stream: &mut TcpStream,
    request: &[u8],
    expected: &[u8],
    exchange: &Exchange,
    timeout: Duration,
) -> Result<Head, Silence> {
    let failed = |error: &std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Silence::Mute,
        _ => Silence::Closes,
    };
    let deadline = Instant::now() + timeout;
    // A time limit of zero would mean none.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left())).map_err(|error| failed(&error))?;
    stream.write_all(request).map_err(|error| failed(&error))?;
    let (mut reply, mut buffer, mut head) = (Reply::default(), [0; 16 << 10], Vec::<u8>::new());
    loop {
        if Instant::now() >= deadline {
            return Err(Silence::Mute);
        }
        stream.set_read_timeout(Some(left())).map_err(|error| failed(&error))?;
        let count = match stream.read(&mut buffer) {
            Ok(0) if reply.end() == Some(true) => return Ok(Head { bytes: head, is_all: true }),
            Ok(0) => return Err(Silence::Closes),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error)),
        };
        head.extend_from_slice(&buffer[..count.min(HEAD_MAX.saturating_sub(head.len()))]);
        match reply.take(expected, &exchange.end, &buffer[..count]) {
            Taken::Whole(end) => return Ok(Head { bytes: head, is_all: end == count }),
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
    fn at(serve: impl FnOnce(TcpStream) + Send + 'static) -> Result<Greeting> {
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
        let greeting = at(echo).expect("an echo answers");
        assert_eq!(greeting, Greeting { says: None, repeats: true }, "closed, and so asked anew");
        let says = |result: Result<Greeting>, word: &str| {
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

    /// One reply a connection, and an error for who asks again, as a handshake has it.
    #[test]
    fn a_request_that_cannot_be_repeated_is_noticed() {
        let serve = |second: &'static [u8]| {
            move |mut stream: TcpStream| {
                let mut buffer = [0; 16];
                for reply in [None, Some(second)] {
                    stream.read_exact(&mut buffer).unwrap();
                    stream.write_all(reply.unwrap_or(&buffer)).unwrap();
                }
                // Until the client has seen enough.
                let _ = stream.read(&mut buffer);
            }
        };
        let repeats = |second| at(serve(second)).expect("its first reply is right").repeats;
        assert!(!repeats(b"Eunsupported pro"), "another reply");
        let echoes = |mut stream: TcpStream| {
            let mut buffer = [0; 16];
            while stream.read_exact(&mut buffer).is_ok() {
                stream.write_all(&buffer).unwrap();
            }
        };
        assert!(at(echoes).expect("an echo").repeats);
    }

    #[test]
    fn a_server_that_names_itself_is_heard() {
        let head = b"HTTP/1.1 200 OK\r\nDate: x\r\nSERVER:  nginx/1.22.1 \r\n\r\nServer: body";
        assert_eq!(server_header(head).as_deref(), Some("nginx/1.22.1"));
        assert_eq!(server_header(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nServer: body"), None);
        assert_eq!(server_header(b"+PONG\r\nServer: no\r\n"), None);
        assert_eq!(printable(b"a\x1b[31m").as_deref(), Some("a\\x1b[31m"));
        assert_eq!(printable(b" "), None);
        // It is told apart by what is there before the request is sent: this one waits for nothing.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
            stream
        });
        let stream = TcpStream::connect(target).unwrap();
        let speaking = server.join().unwrap();
        assert_eq!(unasked(&stream).as_deref(), Some("220 mail.example ESMTP"));
        drop(speaking);
    }
}
