//! A server on the real kernel, against plain blocking clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use plimsoll::{Context, Handler, Limits, Running, Server};

use crate::common::{self, Way};

struct Echo;

impl Handler for Echo {
    type State = ();

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }
}

fn serve((driver, profile): Way, shards: u32) -> (Running, SocketAddr) {
    let mut limits = Limits::default();
    limits.max_connections = 100;
    limits.buffer_bytes = 8 << 20;
    let running = Server::builder()
        .listen("127.0.0.1:0")
        .driver(driver)
        .profile(profile)
        .shards(shards)
        .limits(limits)
        .start(|_| Echo)
        .unwrap();
    let address = running.local_addr().unwrap();
    (running, address)
}

fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn echo_once(stream: &mut TcpStream, bytes: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.to_vec();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == bytes, "an echo of {} bytes came back wrong", bytes.len());
}

fn each_way(test: impl Fn(Way, u32)) {
    common::each_way(|way| [1, 3].into_iter().for_each(|shards| test(way, shards)));
}

#[test]
fn what_is_sent_comes_back_and_the_end_too() {
    each_way(|way, shards| {
        let (running, address) = serve(way, shards);
        for size in [1, 100, 16 << 10, (16 << 10) + 1, 3 << 20] {
            let mut stream = client(address);
            let bytes: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
            for _ in 0..3 {
                echo_once(&mut stream, &bytes);
            }
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0, "its end follows ours");
        }
        let report = running.drain(Duration::from_secs(5)).unwrap();
        assert_eq!((report.cut, report.blocks_lost), (0, 0), "{way:?} {report:?}");
    });
}

#[test]
fn a_drain_ends_idle_sessions_at_once() {
    each_way(|way, shards| {
        let (running, address) = serve(way, shards);
        let mut streams: Vec<TcpStream> = (0..20).map(|_| client(address)).collect();
        for stream in &mut streams {
            echo_once(stream, b"hello");
        }
        let report = running.drain(Duration::from_secs(20)).unwrap();
        assert_eq!((report.ended, report.cut, report.blocks_lost), (20, 0, 0));
        for stream in &mut streams {
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
        }
    });
}

#[test]
fn ipv6_and_ipv4_on_one_listener() {
    for driver in common::drivers() {
        let running = Server::builder().listen("[::]:0").driver(driver).start(|_| Echo).unwrap();
        let port = running.local_addr().unwrap().port();
        for address in
            [SocketAddr::from(([127, 0, 0, 1], port)), format!("[::1]:{port}").parse().unwrap()]
        {
            echo_once(&mut client(address), b"either way");
        }
    }
}
