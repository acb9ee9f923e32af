//! What the suite cannot ask of every driver.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::windows::io::AsRawSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock as ws;

use crate::buffer::Span;
use crate::driver::iocp::{Config, Exchange, Iocp, Recycle, head, preflight, system};
use crate::driver::loopback::real::{self, Bench, last_words};
use crate::driver::{Driver, Fault, Into, Kind, Token};

fn bench(slots: u32) -> Bench<Iocp> {
    Bench::new(slots, |memory| Iocp::new(&Config::new(slots), memory).unwrap())
}

#[test]
fn what_works_here_is_told() {
    let bench = bench(1);
    let features = bench.driver.features();
    assert_eq!(features.name, "iocp");
    println!("{}", features.notes.join("\n"));
}

#[test]
fn a_park_after_a_full_block_waits() {
    real::a_park_after_a_full_block_waits(bench(2));
}

#[test]
fn a_spinning_caller_is_served() {
    real::a_spinning_caller_is_served(bench(2));
}

#[test]
fn closing_completes_every_combination_once_and_the_close_last() {
    let driver = real::closing_completes_every_combination(bench(4));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn a_blocked_send_goes_on_when_there_is_room() {
    real::a_blocked_send_goes_on_when_there_is_room(bench(1));
}

#[test]
fn an_overlapped_send_is_of_the_first_spans() {
    let span = |len| Span { block: 0, start: 0, len };
    let lens = |spans: &[Span]| spans.iter().map(|span| span.len).collect::<Vec<_>>();
    assert_eq!(lens(head(&[span(60 << 10), span(4 << 10), span(1)])), [60 << 10, 4 << 10]);
    assert_eq!(lens(head(&[span(100 << 10), span(1)])), [100 << 10], "the first alone");
}

#[test]
fn a_failed_connect_leaves_nothing() {
    let driver = real::a_failed_connect_leaves_nothing(bench(2), |driver, slot| {
        driver.slots[slot].socket.is_none() && driver.in_flight() == 0
    });
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn accepts_wait_for_those_before_to_be_asked_for() {
    let driver = real::accepts_wait_for_those_before_to_be_asked_for(bench(4));
    assert_eq!(driver.in_flight(), 0);
}

/// More accepts than the kernel is given at a time: all complete.
#[test]
fn accepts_beyond_what_the_kernel_has_wait_their_turn() {
    let slots = super::super::ACCEPTS + 20;
    let mut bench = bench(slots);
    for slot in 0..slots {
        bench.driver.accept(Token::new(Kind::Accept, 0, slot), Into::Slot);
    }
    bench.breathe();
    assert_eq!(bench.driver.waiting.len(), 20);
    let peer = TcpStream::connect(bench.address).unwrap();
    let mut out = Vec::with_capacity(8);
    while out.is_empty() {
        bench.driver.wait(None, &mut out).unwrap();
    }
    assert_eq!(bench.driver.accepted(out[0].token).peer, peer.local_addr().unwrap());
    bench.breathe();
    assert_eq!(bench.driver.waiting.len(), 19);
}

/// A socket stays with the port of its first use: another driver refuses it, rather than wait at its
/// own port for completions that come to the other.
#[test]
fn a_socket_of_another_port_is_not_adopted() {
    let (mut one, mut two) = (bench(1), bench(1));
    let accept = Token::new(Kind::HandOver, 0, 0);
    one.driver.accept(accept, Into::Socket);
    let peer = TcpStream::connect(one.address).unwrap();
    one.until(accept);
    let socket = one.driver.accepted(accept).socket.unwrap();
    one.driver.associate(&socket.socket).unwrap();
    let failure = two.driver.adopt(0, socket).unwrap_err();
    assert_eq!((failure.fault, failure.code), (Fault::Unexpected, 87), "ERROR_INVALID_PARAMETER");
    drop(peer);
}

/// A socket that a shard has lent is accepted into at the listener's port, and goes on at its own.
#[test]
fn a_socket_that_was_lent_comes_back_to_its_port() {
    let exchange = Arc::new(Exchange::new());
    let [mut one, mut two] = [(); 2].map(|()| {
        let shared = exchange.clone();
        let config = Config { idle: 4, ..Config::new(1) };
        Bench::new(1, move |memory| Iocp::of_server(&config, memory, shared).unwrap())
    });
    // Only the first is to listen; as after a disconnect, there is a socket of the second's port.
    two.driver.close_listener();
    exchange.open(false);
    let lent = system::socket(false).unwrap();
    two.driver.associate(&lent).unwrap();
    // Where sockets cannot be used again the drivers lend none, and there is no room for any.
    exchange.join(1);
    let name = lent.as_raw_socket();
    let home = if exchange.wants(two.driver.number, false) { two.driver.number } else { 2 };
    exchange.lend(home, false, lent);
    let accept = Token::new(Kind::HandOver, 0, 0);
    one.driver.accept_for(accept, home);
    let mut peer = TcpStream::connect(one.address).unwrap();
    one.until(accept);
    let mut handed = one.driver.accepted(accept).socket.unwrap();
    assert_eq!((handed.socket.as_raw_socket(), handed.home), (name, Some(home)));
    handed.home = Some(two.driver.number);
    two.driver.adopt(0, handed).unwrap();
    let park = Token::new(Kind::Park, 0, 0);
    two.driver.park(park);
    assert!(two.breathe().is_empty());
    peer.write_all(b"to the second").unwrap();
    assert_eq!(two.until(park).pop().unwrap().result, Ok(0));
    let close = Token::new(Kind::Close, 0, 0);
    two.driver.close(close);
    two.until(close);
}

/// What was set on the listener is so on what it accepts.
#[test]
fn connections_take_over_their_listeners_options() {
    let mut bench = Bench::new(1, |memory| {
        let mut driver = Iocp::new(&Config::new(1), memory).unwrap();
        driver.close_listener();
        driver
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    bench.address = listener.local_addr().unwrap();
    socket2::SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
    bench.driver.listen(listener);
    let _peer = bench.open(0);
    let socket = bench.driver.slots[0].socket.as_ref().unwrap();
    assert_ne!(system::get(socket, ws::IPPROTO_TCP, ws::TCP_NODELAY), Ok(0));
}

/// A driver that goes while the kernel has operations waits for them, and leaves no memory behind.
#[test]
fn a_driver_goes_when_the_kernel_is_done_with_its_memory() {
    let mut bench = bench(4);
    let peers = [0, 1].map(|slot| bench.open(slot));
    bench.driver.park(Token::new(Kind::Park, 0, 0));
    let lease = bench.arena.lease().unwrap();
    bench.driver.receive(Token::new(Kind::Receive, 0, 1), lease, 0, false);
    for slot in [2, 3] {
        bench.driver.accept(Token::new(Kind::Accept, 0, slot), Into::Slot);
    }
    bench.breathe();
    assert_eq!(bench.driver.in_kernel, 4);
    let Bench { driver, arena, .. } = bench;
    let memory = std::sync::Arc::downgrade(arena.memory());
    let start = Instant::now();
    drop(driver);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    drop(arena);
    assert!(memory.upgrade().is_none(), "the arena's memory was kept");
    peers.into_iter().for_each(drop);
}

/// Fresh sockets are there before they are needed.
#[test]
fn sockets_for_accepts_are_made_ahead() {
    let mut bench = bench(8);
    let before = bench.driver.pool().unwrap();
    assert_eq!((before.idle, before.misses), (8, 0));
    let peers: Vec<TcpStream> = (0..8).map(|slot| bench.open(slot)).collect();
    let after = bench.driver.pool().unwrap();
    assert_eq!((after.hits, after.misses), (8, 0));
    drop(peers);
}

/// Says why sockets cannot be used again, where they cannot.
fn cannot_reuse() -> bool {
    match &preflight::found().unwrap().reuses {
        Ok(()) => false,
        Err(why) => {
            println!("skipped: sockets cannot be used again here: {why}");
            true
        }
    }
}

/// An accepted socket that comes back is accepted into again, in both ways.
#[test]
fn a_closed_connections_socket_is_used_again() {
    if cannot_reuse() {
        return;
    }
    for recycle in [Recycle::DisconnectEx, Recycle::TransmitFile] {
        let config = Config { recycle, ahead: 0, ..Config::new(1) };
        let mut bench = Bench::new(1, |memory| Iocp::new(&config, memory).unwrap());
        for round in 0..20_u8 {
            let mut peer = bench.open(0);
            peer.write_all(&[round]).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            let receive = Token::new(Kind::Receive, 0, 0);
            for expected in [1, 0] {
                let lease = bench.arena.lease().unwrap();
                bench.driver.receive(receive, lease, 0, false);
                let completion = bench.until(receive).pop().unwrap();
                assert_eq!(completion.result, Ok(expected), "round {round}");
                let lease = completion.lease.unwrap();
                if expected == 1 {
                    assert_eq!(lease.bytes(bench.arena.memory())[0], round);
                }
                bench.arena.give_back(lease);
            }
            let close = Token::new(Kind::Close, 0, 0);
            bench.driver.close(close);
            bench.until(close);
            assert_eq!(last_words(peer), Ok(()));
            while bench.driver.pool().unwrap().limbo > 0 {
                bench.breathe();
            }
        }
        let figures = bench.driver.pool().unwrap();
        assert_eq!((figures.returned, figures.misses), (20, 1), "{recycle:?}: {figures:?}");
    }
}
