//! What the drivers of real kernels do besides the suite: behaviours that a simulation has no use for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::buffer::{Arena, Memory, Span};
use crate::driver::{Completion, Driver, Fault, Into, Kind, Nanos, Token};

/// How long what must come may take.
pub(in crate::driver) const DEADLINE: Duration = Duration::from_secs(20);

/// A driver that listens, and its arena.
pub(in crate::driver) struct Bench<D> {
    pub(in crate::driver) driver: D,
    pub(in crate::driver) arena: Arena,
    pub(in crate::driver) address: SocketAddr,
}

impl<D: Driver<Listener = TcpListener>> Bench<D> {
    pub(in crate::driver) fn new(slots: u32, driver: impl FnOnce(Arc<Memory>) -> D) -> Self {
        let arena = Arena::new(slots.max(8), 4096).unwrap();
        let mut driver = driver(arena.memory().clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        driver.listen(listener);
        Self { driver, arena, address }
    }

    /// A peer, connected to a slot.
    pub(in crate::driver) fn open(&mut self, slot: u32) -> TcpStream {
        let token = Token::new(Kind::Accept, 0, slot);
        self.driver.accept(token, Into::Slot);
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(self.until(token).pop().unwrap().result, Ok(0));
        assert_eq!(self.driver.accepted(token).peer, peer.local_addr().unwrap());
        peer
    }

    /// What one wait of a millisecond brings.
    pub(in crate::driver) fn breathe(&mut self) -> Vec<Completion> {
        let mut out = Vec::with_capacity(64);
        let end = self.driver.now().after(Duration::from_millis(1));
        self.driver.wait(Some(end), &mut out).unwrap();
        out
    }

    /// Completions up to and including the one with this token.
    pub(in crate::driver) fn until(&mut self, token: Token) -> Vec<Completion> {
        let end = self.driver.now().after(DEADLINE);
        let mut all = Vec::new();
        while self.driver.now() < end {
            let mut out = Vec::with_capacity(1);
            self.driver.wait(Some(end), &mut out).unwrap();
            all.append(&mut out);
            if all.last().is_some_and(|last: &Completion| last.token == token) {
                return all;
            }
        }
        panic!("{token:?} does not complete; {all:?} did");
    }
}

/// Every set of operations that can be in flight, closed and aborted: each completes once, and the
/// close last.
pub(in crate::driver) fn closing_completes_every_combination<D>(mut bench: Bench<D>) -> D
where
    D: Driver<Listener = TcpListener>,
{
    for combination in 0..32u32 {
        let (park, receive, stream, send, abort) = (
            combination & 1 != 0,
            combination & 2 != 0,
            combination & 4 != 0,
            combination & 8 != 0,
            combination & 16 != 0,
        );
        if stream && (receive || !bench.driver.features().streams) {
            continue;
        }
        for breath in [false, true] {
            let peer = bench.open(1);
            let close = Token::new(Kind::Close, 0, 1);
            let mut posted = vec![];
            if send {
                fill(&mut bench, 1);
                let span = Span { block: 0, start: 0, len: 4096 };
                bench.driver.send(close.with(Kind::Send), &[span, span], false);
                posted.push(Kind::Send);
            }
            if park {
                bench.driver.park(close.with(Kind::Park));
                posted.push(Kind::Park);
            }
            if receive {
                let lease = bench.arena.lease().unwrap();
                bench.driver.receive(close.with(Kind::Receive), lease, 0, false);
                posted.push(Kind::Receive);
            } else if stream {
                bench.driver.provide(bench.arena.lease().unwrap());
                bench.driver.stream(close.with(Kind::Receive));
                posted.push(Kind::Receive);
            }
            if breath {
                let out = bench.breathe();
                assert!(out.is_empty(), "{out:?}");
            }
            if abort {
                bench.driver.abort(close);
            } else {
                bench.driver.close(close);
            }
            posted.push(Kind::Close);
            let all = bench.until(close);
            let mut ended: Vec<Kind> = all.iter().map(|one| one.token.kind()).collect();
            assert_eq!(ended.last(), Some(&Kind::Close), "the close is last");
            ended.sort_unstable();
            posted.sort_unstable();
            assert_eq!(ended, posted, "{combination:b}");
            for completion in all {
                if receive && completion.token.kind() == Kind::Receive {
                    bench.arena.give_back(completion.lease.unwrap());
                }
            }
            while let Some(lease) = bench.driver.reclaim() {
                bench.arena.give_back(lease);
            }
            if abort {
                assert_eq!(last_words(peer), Err(std::io::ErrorKind::ConnectionReset));
            } else {
                assert_eq!(last_words(peer), Ok(()), "{combination:b}");
            }
        }
    }
    assert_eq!(bench.arena.outstanding(), 0);
    bench.driver
}

/// Sends at once until the kernel takes no more.
pub(in crate::driver) fn fill<D>(bench: &mut Bench<D>, slot: u32)
where
    D: Driver<Listener = TcpListener>,
{
    let token = Token::new(Kind::Send, 0, slot);
    loop {
        let span = Span { block: 0, start: 0, len: 4096 };
        bench.driver.send(token, &[span; 16], true);
        match bench.until(token).pop().unwrap().result {
            Ok(_) => {}
            Err(failure) if failure.fault == Fault::WouldBlock => return,
            Err(failure) => panic!("{failure}"),
        }
    }
}

/// How a peer's stream ends.
pub(in crate::driver) fn last_words(mut peer: TcpStream) -> Result<(), std::io::ErrorKind> {
    let mut some = vec![0; 1 << 16];
    loop {
        match peer.read(&mut some) {
            Ok(0) if super::was_reset(&peer) => return Err(std::io::ErrorKind::ConnectionReset),
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// After an abort nothing is left in the kernel for a peer that does not read.
#[cfg(target_os = "linux")]
pub(in crate::driver) fn an_abort_frees_the_kernels_queues<D>(mut bench: Bench<D>)
where
    D: Driver<Listener = TcpListener>,
{
    let peer = bench.open(0);
    fill(&mut bench, 0);
    let ours = (bench.address, peer.local_addr().unwrap());
    assert!(socket_line(ours).is_some(), "the connection is there");
    let close = Token::new(Kind::Close, 0, 0);
    bench.driver.abort(close);
    bench.until(close);
    assert_eq!(socket_line(ours), None, "no orphan, no queue");
    drop(peer);
}

/// The line of a TCP socket in `/proc/net/tcp`, if there is such a socket.
#[cfg(target_os = "linux")]
fn socket_line((local, remote): (SocketAddr, SocketAddr)) -> Option<String> {
    let text = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(_) => unreachable!("the listener is on IPv4"),
    };
    let pair = format!("{} {} ", text(local), text(remote));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find(|line| line.contains(&pair)).map(str::to_owned)
}

/// A caller that spins sees what comes.
pub(in crate::driver) fn a_spinning_caller_is_served<D>(mut bench: Bench<D>)
where
    D: Driver<Listener = TcpListener>,
{
    let mut peer = bench.open(0);
    let park = Token::new(Kind::Park, 0, 0);
    bench.driver.park(park);
    peer.write_all(b"x").unwrap();
    let start = Instant::now();
    let mut out = Vec::with_capacity(8);
    while out.is_empty() {
        assert!(start.elapsed() < DEADLINE);
        bench.driver.wait(Some(Nanos(0)), &mut out).unwrap();
    }
    assert_eq!(out[0].token, park);
}

/// A receive that brought a whole block leaves it open whether there is more: a park must find out.
pub(in crate::driver) fn a_park_after_a_full_block_waits<D>(mut bench: Bench<D>)
where
    D: Driver<Listener = TcpListener>,
{
    let mut peer = bench.open(0);
    let block = bench.arena.block_bytes();
    peer.write_all(&vec![1; block]).unwrap();
    let park = Token::new(Kind::Park, 0, 0);
    let mut received = 0;
    while received < block {
        let lease = bench.arena.lease().unwrap();
        let receive = park.with(Kind::Receive);
        bench.driver.receive(receive, lease, received as u32, false);
        let completion = bench.until(receive).pop().unwrap();
        received += completion.result.unwrap() as usize;
        bench.arena.give_back(completion.lease.unwrap());
    }
    bench.driver.park(park);
    for _ in 0..3 {
        let out = bench.breathe();
        assert!(out.is_empty(), "nothing is left: {out:?}");
    }
    peer.write_all(b"more").unwrap();
    assert_eq!(bench.until(park).pop().unwrap().result, Ok(0));
}

/// A send that waited for room goes on where it stood, for as often as it takes.
pub(in crate::driver) fn a_blocked_send_goes_on_when_there_is_room<D>(mut bench: Bench<D>)
where
    D: Driver<Listener = TcpListener>,
{
    let mut peer = bench.open(0);
    let send = Token::new(Kind::Send, 0, 0);
    let spans = [Span { block: 0, start: 0, len: 4096 }; 16];
    let mut room = vec![0; 1 << 20];
    for _ in 0..if cfg!(windows) { 5 } else { 20 } {
        fill(&mut bench, 0);
        bench.driver.send(send, &spans, false);
        let mut heard = 0;
        let taken = loop {
            // Fails when the driver does not find the room: the peer's read times out.
            heard += peer.read(&mut room).unwrap();
            if let Some(completion) = bench.breathe().pop() {
                break completion.result.unwrap();
            }
            assert!(heard < 1 << 30);
        };
        assert!((1..=16 * 4096).contains(&taken));
    }
}

/// A connect whose outcome is an error is told once and leaves slot 0, then slot 1, `vacant`.
pub(in crate::driver) fn a_failed_connect_leaves_nothing<D>(
    mut bench: Bench<D>,
    vacant: impl Fn(&D, usize) -> bool,
) -> D
where
    D: Driver<Listener = TcpListener>,
{
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Windows asks for seconds before it believes in a refusal.
    for round in 0..if cfg!(windows) { 3 } else { 10 } {
        let connect = Token::new(Kind::Connect, round, 0);
        bench.driver.connect(connect, nobody, None);
        let failure = bench.until(connect).pop().unwrap().result.unwrap_err();
        assert_eq!(failure.fault, Fault::Refused);
        assert!(vacant(&bench.driver, 0));
    }
    let source = Some("127.0.0.1:0".parse().unwrap());
    let connect = Token::new(Kind::Connect, 0, 1);
    bench.driver.connect(connect, "[::1]:9".parse().unwrap(), source);
    assert!(bench.until(connect).pop().unwrap().result.is_err(), "two families");
    assert!(vacant(&bench.driver, 1));
    bench.driver
}

/// Sockets of which nobody took the address stay where they are until somebody does.
pub(in crate::driver) fn accepts_wait_for_those_before_to_be_asked_for<D>(mut bench: Bench<D>) -> D
where
    D: Driver<Listener = TcpListener>,
{
    let accepts = [0, 1, 2].map(|number| Token::new(Kind::HandOver, 0, number));
    for accept in accepts {
        bench.driver.accept(accept, Into::Socket);
    }
    let peers = accepts.map(|_| TcpStream::connect(bench.address).unwrap());
    let mut out = Vec::with_capacity(8);
    while out.len() < 3 {
        bench.driver.wait(None, &mut out).unwrap();
    }
    // Asked in another order than they completed in.
    for completion in out.iter().rev() {
        let brought = bench.driver.accepted(completion.token);
        assert!(peers.iter().any(|peer| peer.local_addr().unwrap() == brought.peer));
        assert!(brought.socket.is_some());
    }
    bench.driver
}
