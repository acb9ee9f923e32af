//! One HTTP/1 reply, as its bytes come: where it ends, its status, and whether its connection goes
//! on.
//!
//! A reply ends as RFC 9112, section 6.3, says: after `Content-Length` bytes, after the last chunk
//! and its trailer, at once where the status has no content, or with the connection.

use httparse::{EMPTY_HEADER, Response, Status, parse_chunk_size};

/// The longest head of a reply that is read.
const HEAD_MAX: usize = 64 << 10;
/// The most header fields in a head.
const FIELDS_MAX: usize = 128;
/// The longest line that gives a chunk's size, its extensions included.
const CHUNK_LINE_MAX: usize = 4096;

/// A reply under way.
#[derive(Debug, Default)]
pub(crate) struct HttpReply {
    part: Part,
    /// The head, until it is whole; then its first line.
    head: Vec<u8>,
    status: u16,
    closes: bool,
}

/// Which part of a reply comes next.
#[derive(Debug, Default)]
enum Part {
    #[default]
    Head,
    /// So many bytes of the content.
    Content(u64),
    /// The line with a chunk's size; what is there of it.
    ChunkSize(Vec<u8>),
    /// So many bytes of a chunk, the two of its line end included.
    Chunk(u64),
    /// The trailer: how many bytes its present line has so far.
    Trailer(usize),
    /// All bytes until the connection ends.
    UntilClose,
    Whole,
}

/// It is no HTTP/1 reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotHttp;

impl HttpReply {
    /// Takes the next bytes. How many of them belong to this reply, where it is whole with them.
    ///
    /// # Errors
    ///
    /// [`NotHttp`], where a head cannot be parsed or is longer than 64 KiB, or a chunk has no size.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Option<usize>, NotHttp> {
        let mut taken = 0;
        while taken < bytes.len() && !matches!(self.part, Part::Whole) {
            taken += self.take_part(&bytes[taken..])?;
        }
        Ok(matches!(self.part, Part::Whole).then_some(taken))
    }

    /// The connection has ended. Whether the reply is whole with that.
    pub(crate) fn end(&self) -> bool {
        matches!(self.part, Part::UntilClose)
    }

    /// Whether the status is one of success (2xx). `false` before the head is whole.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the server closes the connection after this reply.
    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    /// The status line; the bytes so far where the head is not whole.
    pub(crate) fn first_line(&self) -> &[u8] {
        &self.head
    }

    /// Takes bytes of the present part. Returns how many, at least 1.
    fn take_part(&mut self, bytes: &[u8]) -> Result<usize, NotHttp> {
        match &mut self.part {
            Part::Head => self.take_head(bytes),
            Part::Content(left) => {
                let count = (bytes.len() as u64).min(*left);
                *left -= count;
                if *left == 0 {
                    self.part = Part::Whole;
                }
                Ok(count as usize)
            }
            Part::ChunkSize(line) => {
                let count = line_part(bytes);
                line.extend_from_slice(&bytes[..count]);
                match parse_chunk_size(line) {
                    Ok(Status::Complete((_, 0))) => self.part = Part::Trailer(0),
                    Ok(Status::Complete((_, size))) => {
                        self.part = Part::Chunk(size.saturating_add(2));
                    }
                    Ok(Status::Partial) if line.len() <= CHUNK_LINE_MAX => {}
                    Ok(Status::Partial) | Err(_) => return Err(NotHttp),
                }
                Ok(count)
            }
            Part::Chunk(left) => {
                let count = (bytes.len() as u64).min(*left);
                *left -= count;
                if *left == 0 {
                    self.part = Part::ChunkSize(Vec::new());
                }
                Ok(count as usize)
            }
            Part::Trailer(line) => {
                let count = line_part(bytes);
                *line += count;
                if bytes[count - 1] == b'\n' {
                    // An empty line ends it: CR LF, or a bare LF.
                    self.part = if *line <= 2 { Part::Whole } else { Part::Trailer(0) };
                }
                Ok(count)
            }
            Part::UntilClose => Ok(bytes.len()),
            Part::Whole => unreachable!("the caller stops at a whole reply"),
        }
    }

    /// Takes bytes of the head. What follows a head stays for the next part.
    fn take_head(&mut self, bytes: &[u8]) -> Result<usize, NotHttp> {
        let before = self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(HEAD_MAX + 1 - before.min(HEAD_MAX))]);
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        let mut response = Response::new(&mut fields);
        let length = match response.parse(&self.head) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if self.head.len() <= HEAD_MAX => return Ok(bytes.len()),
            Ok(Status::Partial) | Err(_) => return Err(NotHttp),
        };
        let head = Head::of(&response);
        if (100..200).contains(&head.status) && head.status != 101 {
            // An interim reply: the final one follows.
            self.head.clear();
            return Ok(length - before);
        }
        self.status = head.status;
        self.closes = head.closes();
        self.part = head.content()?;
        let line_end = self.head.iter().position(|byte| *byte == b'\r' || *byte == b'\n');
        self.head.truncate(line_end.unwrap_or(length));
        Ok(length - before)
    }
}

/// The bytes up to the end of the line, that included; all where it does not end.
fn line_part(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1)
}

/// What a head says about its content and its connection.
#[derive(Debug, Default)]
struct Head {
    status: u16,
    version: u8,
    length: Option<Result<u64, NotHttp>>,
    /// The last transfer coding is `chunked`.
    chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
}

impl Head {
    fn of(response: &Response<'_, '_>) -> Self {
        let mut head = Self {
            status: response.code.unwrap_or(0),
            version: response.version.unwrap_or(1),
            ..Self::default()
        };
        for field in response.headers.iter() {
            let value = String::from_utf8_lossy(field.value).to_ascii_lowercase();
            let words = || value.split(',').map(str::trim);
            if field.name.eq_ignore_ascii_case("content-length") {
                head.length = Some(value.trim().parse().map_err(|_| NotHttp));
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = Some(words().next_back() == Some("chunked"));
            } else if field.name.eq_ignore_ascii_case("connection") {
                head.close |= words().any(|word| word == "close");
                head.keep_alive |= words().any(|word| word == "keep-alive");
            }
        }
        head
    }

    /// Whether the connection ends after this reply: by word, by version, or since nothing else
    /// ends the reply.
    fn closes(&self) -> bool {
        self.close
            || (self.version == 0 && !self.keep_alive)
            || matches!(self.content(), Ok(Part::UntilClose))
    }

    /// How the content of a reply to GET ends.
    fn content(&self) -> Result<Part, NotHttp> {
        match (self.status, self.chunked, &self.length) {
            (204 | 304, _, _) | (_, None, Some(Ok(0))) => Ok(Part::Whole),
            (_, Some(true), _) => Ok(Part::ChunkSize(Vec::new())),
            (_, None, Some(Ok(length))) => Ok(Part::Content(*length)),
            (_, None, Some(Err(_))) => Err(NotHttp),
            (_, Some(false), _) | (_, None, None) => Ok(Part::UntilClose),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reply, read in pieces of each size: it must be whole after `whole` bytes every time.
    #[track_caller]
    fn whole_after(text: &str, whole: usize) -> HttpReply {
        let bytes = text.as_bytes();
        let mut last = None;
        for size in 1..=bytes.len() {
            let mut reply = HttpReply::default();
            let mut taken = 0;
            let mut end = None;
            for piece in bytes.chunks(size) {
                if let Some(count) = reply.take(piece).expect("it is HTTP") {
                    end = Some(taken + count);
                    break;
                }
                taken += piece.len();
            }
            assert_eq!(end, Some(whole), "in pieces of {size}: {text}");
            last = Some(reply);
        }
        last.expect("the text is not empty")
    }

    #[test]
    fn a_content_length_ends_a_reply() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n";
        let reply = whole_after(text, text.len() - 17);
        assert!(reply.is_success() && !reply.closes());
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n";
        assert!(whole_after(text, text.len()).closes());
        let text = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx";
        assert!(whole_after(text, text.len()).closes());
        let text = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx";
        assert!(!whole_after(text, text.len()).closes());
    }

    #[test]
    fn the_last_chunk_and_its_trailer_end_a_reply() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
        let text = format!("{head}5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n");
        assert!(!whole_after(&format!("{text}HTTP"), text.len()).closes());
        let text = format!("{head}0\r\nA: 1\r\nB: 2\r\n\r\n");
        whole_after(&text, text.len());
    }

    #[test]
    fn a_reply_without_a_length_ends_with_its_connection() {
        let mut reply = HttpReply::default();
        assert_eq!(reply.take(b"HTTP/1.1 200 OK\r\n\r\nany"), Ok(None));
        assert!(reply.closes() && reply.end());
        let mut cut = HttpReply::default();
        assert_eq!(cut.take(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nany"), Ok(None));
        assert!(!cut.end());
    }

    #[test]
    fn a_status_other_than_success_is_whole_all_the_same() {
        let text = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
        let reply = whole_after(text, text.len());
        assert!(!reply.is_success());
        assert_eq!(reply.first_line(), b"HTTP/1.1 503 Service Unavailable");
        let text = "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n";
        whole_after(text, text.len());
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert!(whole_after(text, text.len()).is_success());
    }

    #[test]
    fn what_is_not_http_is_told() {
        assert_eq!(HttpReply::default().take(b"-ERR unknown command\r\n"), Err(NotHttp));
        assert_eq!(
            HttpReply::default().take(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
            Err(NotHttp)
        );
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
        assert_eq!(HttpReply::default().take(chunked), Err(NotHttp));
        let mut endless = HttpReply::default();
        assert_eq!(endless.take(b"HTTP/1.1 200 OK\r\nA: "), Ok(None));
        assert_eq!(endless.take(&vec![b'x'; HEAD_MAX]), Err(NotHttp));
    }
}
