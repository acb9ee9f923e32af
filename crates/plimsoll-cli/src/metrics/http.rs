//! HTTP/1.1 for many clients on one thread: one request each, then the connection ends. No client can
//! keep another one waiting, and what all of them hold together is bounded.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Clients that are served at a time, at most.
const CLIENTS: usize = 64;
/// How long a request may take to come, and how long an answer may take to go.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request head that is read, in bytes.
const LONGEST_HEAD: usize = 8 << 10;
/// Bytes of a response that are given to the kernel at once, at most: Windows takes any number of them
/// where it has room for one, and so holds what its client may never read.
const WRITTEN_MAX: usize = 64 << 10;
/// How long nothing is accepted after an accept failed, which it does where descriptors or memory are
/// short. Those that are connected are served meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves clients of `listener` for ever. `answer` is given a request's head (first line and headers)
/// and returns the whole response.
pub(super) fn serve(listener: TcpListener, answer: impl FnMut(&str) -> Vec<u8>) -> ! {
    let mut server = Server {
        listener,
        answer,
        clients: Vec::with_capacity(CLIENTS),
        clients_max: CLIENTS,
        patience: PATIENCE,
        accept_again: Instant::now(),
    };
    loop {
        server.turn();
    }
}

struct Server<A> {
    /// Does not block.
    listener: TcpListener,
    answer: A,
    /// In the order of their arrival.
    clients: Vec<Client>,
    clients_max: usize,
    patience: Duration,
    /// Nothing is accepted before this time.
    accept_again: Instant,
}

struct Client {
    /// Does not block.
    stream: TcpStream,
    stage: Stage,
    /// When the client is given up, whatever its stage.
    deadline: Instant,
}

enum Stage {
    /// The head is incomplete; what has come of it.
    Request(Vec<u8>),
    /// The response, and how many bytes of it were sent.
    Response(Vec<u8>, usize),
}

/// Whether a client is served further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It has to wait for its socket.
    Wait,
    /// It was answered, has gone, or asked too much.
    End,
}

impl<A: FnMut(&str) -> Vec<u8>> Server<A> {
    /// Waits for something to do, and does all of it that needs no waiting.
    fn turn(&mut self) {
        let accepts = self.accept_again <= Instant::now();
        let pause = (!accepts).then_some(self.accept_again);
        let deadline = self.clients.iter().map(|client| client.deadline).chain(pause).min();
        let mut polled: Vec<PollFd<'_>> = self.clients.iter().map(Client::poll_fd).collect();
        if accepts {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if poll(&mut polled, timeout.as_ref()).is_err() {
            // A signal came, or the kernel has no memory. The next turn may find both gone.
            thread::sleep(ACCEPT_PAUSE);
            return;
        }
        let mut ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if accepts && ready.pop() == Some(true) {
            // Before the accepts, which may remove clients.
            self.advance(&ready);
            self.accept();
        } else {
            self.advance(&ready);
        }
    }

    /// Serves those that are ready, and gives up those whose time is over.
    fn advance(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut ready = ready.iter();
        self.clients.retain_mut(|client| {
            let ready = ready.next() == Some(&true);
            let next =
                if ready { client.advance(self.patience, &mut self.answer) } else { Next::Wait };
            next == Next::Wait && now < client.deadline
        });
    }

    /// Accepts a part of those that wait, so that a new client has some turns to send its request
    /// before newer ones can take its place.
    fn accept(&mut self) {
        for _ in 0..self.clients_max.div_ceil(4) {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream),
                // It has gone while it waited.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.accept_again = Instant::now() + ACCEPT_PAUSE;
                    return;
                }
            }
        }
    }

    /// Serves a new client as far as that needs no waiting: often its whole request is there. Where
    /// there is no room for it to wait, the oldest client with an incomplete request makes some, or the
    /// oldest one where all requests are complete.
    fn add(&mut self, stream: TcpStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let deadline = Instant::now() + self.patience;
        let mut client = Client { stream, stage: Stage::Request(Vec::new()), deadline };
        if client.advance(self.patience, &mut self.answer) == Next::End {
            return;
        }
        if self.clients.len() >= self.clients_max {
            let is_incomplete = |client: &Client| matches!(client.stage, Stage::Request(_));
            self.clients.remove(self.clients.iter().position(is_incomplete).unwrap_or(0));
        }
        self.clients.push(client);
    }
}

impl Client {
    fn poll_fd(&self) -> PollFd<'_> {
        let flags = match self.stage {
            Stage::Request(_) => PollFlags::IN,
            Stage::Response(..) => PollFlags::OUT,
        };
        PollFd::new(&self.stream, flags)
    }

    /// Reads the request and sends the response, as far as the socket allows at once.
    fn advance(&mut self, patience: Duration, answer: &mut impl FnMut(&str) -> Vec<u8>) -> Next {
        loop {
            let moved = match &mut self.stage {
                Stage::Request(head) => {
                    let mut part = [0; 1024];
                    self.stream.read(&mut part).inspect(|&count| {
                        head.extend_from_slice(&part[..count]);
                    })
                }
                Stage::Response(bytes, sent) => {
                    let until = bytes.len().min(*sent + WRITTEN_MAX);
                    self.stream.write(&bytes[*sent..until]).inspect(|count| *sent += count)
                }
            };
            match moved {
                // The end of the stream before the end of the head.
                Ok(0) => return Next::End,
                Ok(count) => match &self.stage {
                    Stage::Request(head) if ends_within(head, count) => {
                        let response = answer(&String::from_utf8_lossy(head));
                        self.stage = Stage::Response(response, 0);
                        self.deadline = Instant::now() + patience;
                    }
                    Stage::Request(head) if head.len() > LONGEST_HEAD => return Next::End,
                    Stage::Response(bytes, sent) if *sent == bytes.len() => {
                        // Where it fails, the client has gone.
                        let _ = self.stream.shutdown(Shutdown::Write);
                        return Next::End;
                    }
                    _ => {}
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It has gone.
                Err(_) => return Next::End,
            }
        }
    }
}

/// Whether the head is complete, by the last `count` bytes that came.
fn ends_within(head: &[u8], count: usize) -> bool {
    let new = head.len().saturating_sub(count + 3);
    head[new..].windows(4).any(|end| end == b"\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// How long anything may take that ought to take a moment.
    const GENEROUS: Duration = Duration::from_secs(60);
    /// More than the kernel takes from a server whose client does not read.
    const MUCH: usize = 64 << 20;
    const ASK: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// Starts a server on a thread of its own: it has room for three clients, and answers each request
    /// with `response_bytes` bytes.
    fn start(response_bytes: usize, patience: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let answer = move |_: &str| vec![b'x'; response_bytes];
        let (clients, accept_again) = (Vec::new(), Instant::now());
        let mut server =
            Server { listener, answer, clients, clients_max: 3, patience, accept_again };
        thread::spawn(move || {
            loop {
                server.turn();
            }
        });
        address
    }

    fn connect(address: SocketAddr, says: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GENEROUS)).unwrap();
        stream.write_all(says).unwrap();
        stream
    }

    /// How many bytes come until the stream ends or is reset.
    fn received(mut stream: &TcpStream) -> usize {
        let mut count = 0;
        let mut part = vec![0; 1 << 20];
        loop {
            match stream.read(&mut part) {
                Ok(0) => return count,
                Ok(more) => count += more,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return count,
                Err(error) => panic!("after {count} bytes: {error}"),
            }
        }
    }

    #[test]
    fn the_oldest_incomplete_request_makes_room() {
        let address = start(5, GENEROUS * 10);
        let silent = connect(address, b"");
        let slow: Vec<_> = (0..3).map(|_| connect(address, b"GET / HT")).collect();
        assert_eq!(received(&silent), 0, "it was the oldest");
        assert_eq!(received(&connect(address, ASK)), 5);
        // The client before may have needed the place of the first of them.
        for mut stream in &slow[1..] {
            stream.write_all(b"TP/1.1\r\n\r").unwrap();
            stream.write_all(b"\n").unwrap();
            assert_eq!(received(stream), 5);
        }
    }

    #[test]
    fn clients_that_never_read_keep_nobody_waiting() {
        let address = start(MUCH, GENEROUS * 10);
        let deaf: Vec<_> = (0..4).map(|_| connect(address, ASK)).collect();
        let silent = connect(address, b"");
        // It does not read yet: a client that reads as fast as it is answered needs no room, and then
        // nobody has to leave.
        let late = connect(address, ASK);
        assert_eq!(received(&silent), 0, "an incomplete request goes before a complete one");
        assert_eq!(received(&late), MUCH);
        let whole = deaf.iter().filter(|stream| received(stream) == MUCH).count();
        assert_eq!(whole, 2, "the other two made room, one for the fourth and one for the silent");
    }

    #[test]
    fn a_response_has_a_deadline_however_slowly_it_is_read() {
        let address = start(MUCH, Duration::from_millis(300));
        let mut slow = connect(address, ASK);
        let deadline = Instant::now() + GENEROUS;
        let mut byte = [0];
        slow.read_exact(&mut byte).unwrap();
        // It goes on reading, and the server ends the connection: only then a write fails.
        while slow.write_all(b"x").is_ok() {
            assert!(Instant::now() < deadline, "the server waits without a limit");
            let _ = slow.read(&mut byte);
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_request_has_a_deadline_and_a_length() {
        let address = start(5, Duration::from_millis(300));
        assert_eq!(received(&connect(address, b"GET / HTTP/1.1\r\n")), 0);
        let address = start(5, GENEROUS * 10);
        let mut endless = TcpStream::connect(address).unwrap();
        let deadline = Instant::now() + GENEROUS;
        while endless.write_all(&[b'x'; 512]).is_ok() {
            assert!(Instant::now() < deadline, "a head without an end is read on");
        }
    }
}
