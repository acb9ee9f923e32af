//! Reading `serve --metrics`: one request, and the figures of Prometheus' text format by name.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the server's names begin with, and what the format puts behind counters.
const PREFIX: &str = "plimsoll_";
const COUNTER: &str = "_total";

/// Asks the server at `address` for its figures.
///
/// # Errors
/// The socket's; `InvalidData` where the answer is not 200.
pub(super) fn read(address: SocketAddr) -> io::Result<BTreeMap<String, u64>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The whole figures without labels of an answer; `None` where it is none.
fn parse(answer: &str) -> Option<BTreeMap<String, u64>> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.lines().filter_map(figure).collect())
}

fn figure(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.split_once(' ')?;
    let name = name.strip_prefix(PREFIX)?;
    if name.contains('{') {
        return None;
    }
    Some((name.strip_suffix(COUNTER).unwrap_or(name).to_owned(), value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_without_labels_are_found_by_name() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\
            # HELP plimsoll_sessions sessions.\n# TYPE plimsoll_sessions gauge\n\
            plimsoll_sessions 3\nplimsoll_slot_hits_total 41\n\
            plimsoll_ended_total{reason=\"idle\"} 2\nplimsoll_turn_seconds_sum 0.25\n# EOF\n";
        let figures = parse(answer).unwrap();
        assert_eq!(figures.get("sessions"), Some(&3));
        assert_eq!(figures.get("slot_hits"), Some(&41));
        assert_eq!(figures.len(), 2, "{figures:?}");
        assert_eq!(parse("HTTP/1.1 404 Not Found\r\n\r\nplimsoll_sessions 3\n"), None);
        assert_eq!(parse("nonsense"), None);
    }
}
