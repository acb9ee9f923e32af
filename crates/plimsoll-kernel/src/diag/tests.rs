//! Against the running kernel, on addresses and ports of the tests' own.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};

use super::*;
use crate::netstat::Netstat;

/// Waits for what the kernel does in its own time.
fn wait_for<T: std::fmt::Debug>(mut look: impl FnMut() -> T, holds: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "still {seen:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// std listens with a backlog of its own; these tests choose.
fn listen(address: &str, backlog: i32) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, backlog).unwrap();
    socket.into()
}

fn clients(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(address).unwrap()).collect()
}

fn queue(address: SocketAddr) -> Listener {
    listener(address).unwrap().expect("it listens")
}

#[test]
fn depth_and_limit_are_exact() {
    let server = listen("127.0.0.1:0", 16);
    let address = server.local_addr().unwrap();
    let empty = queue(address);
    assert_eq!((empty.local, empty.depth, empty.limit, empty.room()), (address, 0, 16, 17));
    let _clients = clients(address, 5);
    let full = wait_for(|| queue(address), |queue| queue.depth == 5);
    assert_eq!((full.depth, full.limit, full.room(), full.inode), (5, 16, 12, empty.inode));
    server.accept().unwrap();
    assert_eq!(queue(address).depth, 4);
    assert!(listeners().unwrap().iter().any(|one| one.local == address));
    drop(server);
    assert_eq!(listener(address).unwrap(), None);
}

#[test]
fn an_overflow_moves_the_counter() {
    let server = listen("127.0.0.1:0", 1);
    let address = server.local_addr().unwrap();
    let before = Netstat::read().unwrap();
    // `listen(1)` admits two; the third's SYN is dropped, and it waits.
    let _clients = clients(address, 2);
    wait_for(|| queue(address), |queue| queue.depth == 2 && queue.room() == 0);
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).unwrap_err();
    // Other tests of this namespace may move it too: at least one is ours.
    let moved = Netstat::read().unwrap().delta(&before, "ListenOverflows");
    assert!(moved >= Some(1), "{moved:?}");
    assert_eq!(queue(address).depth, 2);
}

#[test]
fn a_listener_is_found_by_the_address_a_client_would_use() {
    let server = listen("[::]:0", 7);
    let port = server.local_addr().unwrap().port();
    for address in [SocketAddr::from(([127, 0, 0, 1], port)), (Ipv6Addr::LOCALHOST, port).into()] {
        let found = queue(address);
        assert!(found.dual && found.local.is_ipv6() && found.limit == 7, "{found:?}");
    }
    // A client of IPv4 at a socket of IPv6 is shown with plain addresses.
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut seen = Vec::new();
    let filter = Filter::local(port);
    wait_for(|| count_by_state(&filter).unwrap(), |counts| counts.established == 1);
    connections(&filter, |one| seen.push(*one)).unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].v6_socket && seen[0].inode == 0);
    assert_eq!(seen[0].remote, client.local_addr().unwrap());
    assert_eq!(seen[0].local, client.peer_addr().unwrap());
}

#[test]
fn the_exact_address_comes_before_the_wildcard() {
    let wild = listen("0.0.0.0:0", 3);
    let port = wild.local_addr().unwrap().port();
    assert_eq!(queue(([127, 0, 0, 9], port).into()).limit, 3);
    assert_eq!(listener((Ipv6Addr::LOCALHOST, port).into()).unwrap(), None);
    assert_eq!(listeners_on(port).unwrap().len(), 1);
}

#[test]
fn filters_are_applied_by_the_kernel() {
    let server = listen("127.0.0.1:0", 64);
    let address = server.local_addr().unwrap();
    let clients = clients(address, 9);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(server.accept().unwrap().0);
    }
    let count = |filter: Filter| connections(&filter, |_| ()).unwrap();
    let local = Filter::local(address.port());
    wait_for(|| count_by_state(&local).unwrap(), |counts| counts.established == 9);
    assert_eq!(count(local), 9);
    // Connections of others that are over may have had this port: only what is established counts.
    let remote = Filter::remote(address.port()).states(States::ESTABLISHED);
    assert_eq!(count(remote), 9);
    assert_eq!(count(local.states(States::CLOSE_WAIT | States::TIME_WAIT)), 0);
    let at = |ip: &str| Filter { local_address: Some(ip.parse().unwrap()), ..local };
    assert_eq!(count(at("127.0.0.1")), 9);
    assert_eq!(count(at("::ffff:127.0.0.1")), 9);
    assert_eq!(count(at("127.0.0.2")), 0);
    assert_eq!(count(at("::1")), 0);
    assert_eq!(count(Filter { family: Family::V6, ..local }), 0);
    // One end of one connection: both ports.
    let port = clients[0].local_addr().unwrap().port();
    assert_eq!(count(Filter { remote_port: Some(port), ..local }), 1);
    let counts = count_by_state(&local).unwrap();
    assert_eq!((counts.established, counts.listen, counts.total()), (9, 1, 10));
    let mut inodes = 0;
    connections(&local, |one| inodes += u32::from(one.inode != 0)).unwrap();
    assert_eq!(inodes, 4, "those accepted have an inode, those queued have none");
}

#[test]
fn an_address_is_found_on_a_socket_of_ipv6() {
    let server = listen("[::]:0", 8);
    let port = server.local_addr().unwrap().port();
    let _mapped = TcpStream::connect(("127.0.0.3", port)).unwrap();
    let _plain = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    let both = Filter::local(port);
    wait_for(|| count_by_state(&both).unwrap(), |counts| counts.established == 2);
    for ip in ["127.0.0.3", "::1"] {
        let filter = Filter { local_address: Some(ip.parse().unwrap()), ..both };
        let mut seen = Vec::new();
        connections(&filter, |one| seen.push(one.local.ip().to_string())).unwrap();
        assert_eq!(seen, [ip]);
    }
}

#[test]
fn memory_and_figures_come_only_if_asked_for() {
    let server = listen("127.0.0.1:0", 8);
    let address = server.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut held, _) = server.accept().unwrap();
    client.write_all(&[7; 5000]).unwrap();
    held.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    let filter = Filter::local(address.port());
    let look = |filter: &Filter| {
        let mut seen = None;
        connections(filter, |one| seen = Some(*one)).unwrap();
        seen.unwrap()
    };
    let bare = look(&filter);
    assert_eq!((bare.memory, bare.info), (None, None));
    assert_eq!(bare.rqueue, 5000);
    let full = wait_for(
        || look(&filter.with_memory().with_info()),
        |seen| seen.info.is_some_and(|info| info.bytes_acked == 5),
    );
    let (memory, info) = (full.memory.unwrap(), full.info.unwrap());
    assert!(memory.rmem >= 5000 && memory.rcvbuf > memory.rmem && memory.sndbuf > 0, "{memory:?}");
    assert!(info.bytes_received == 5000 && info.rtt > Duration::ZERO, "{info:?}");
    assert!(info.rtt < Duration::from_secs(1) && info.cwnd > 0 && info.send_mss > 500, "{info:?}");
}

#[test]
fn who_closes_first_waits() {
    let server = listen("127.0.0.1:0", 8);
    let address = server.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    let (held, _) = server.accept().unwrap();
    drop(client);
    let local = Filter::local(address.port());
    wait_for(|| count_by_state(&local).unwrap(), |counts| counts.close_wait == 1);
    let remote = Filter::remote(address.port());
    // The FIN is acknowledged in its own time: up to 40 ms later.
    wait_for(|| count_by_state(&remote).unwrap(), |counts| counts.fin_wait2 == 1);
    drop(held);
    wait_for(|| count_by_state(&remote).unwrap(), |counts| counts.time_wait == 1);
    let mut inode = 1;
    connections(&remote, |one| inode = one.inode).unwrap();
    assert_eq!(inode, 0);
}

/// The experiment behind [`Rotten`]: what the kernel still lists of a queued
/// connection whose client has closed, shut down or reset.
#[test]
fn the_queue_keeps_those_who_have_gone() {
    let server = listen("127.0.0.1:0", 32);
    let address = server.local_addr().unwrap();
    let mut there = clients(address, 9);
    // One that was accepted, and whose client has gone, is not in the queue.
    let (_held, _) = server.accept().unwrap();
    drop(there.remove(0));
    // Two close, one shuts down its sending half, three reset.
    drop(there.split_off(6));
    there[5].shutdown(Shutdown::Write).unwrap();
    for client in there.drain(..3) {
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    }
    let expected = Rotten { depth: 8, alive: 2, closed: 3, reset: 3 };
    let port = address.port();
    let seen = wait_for(|| rotten(port).unwrap(), |seen| *seen == expected);
    assert_eq!(seen.dead(), 6);
    // All of them are still returned by accept.
    for _ in 0..8 {
        server.accept().unwrap();
    }
    assert_eq!(rotten(port).unwrap(), Rotten::default());
}
