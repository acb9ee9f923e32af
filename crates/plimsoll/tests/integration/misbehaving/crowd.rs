//! Peers that are many.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use plimsoll::{Context, Handler, Reason};

use super::test_server::{TestServer, answers, eventually, reset, small};
use crate::common::each_way;

/// Echoes, and counts the sessions there are.
struct Counting {
    ended: Sender<Reason>,
    now: Arc<AtomicU32>,
    peak: Arc<AtomicU32>,
}

impl Handler for Counting {
    type State = ();

    fn on_connect(&mut self, _: &mut Context<'_, ()>) -> bool {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, ()>, reason: Reason) {
        self.now.fetch_sub(1, Ordering::SeqCst);
        let _ = self.ended.send(reason);
    }
}

const LIMIT: u32 = 32;

#[test]
fn who_opens_as_fast_as_it_can_gets_the_limit_and_no_more() {
    each_way(|way| {
        let mut limits = small();
        limits.max_connections = LIMIT;
        let (now, peak) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let shared = peak.clone();
        let server = TestServer::new(way, limits, 2, move |ended| Counting {
            ended,
            now: now.clone(),
            peak: shared.clone(),
        });
        let mut good: Vec<_> = (0..4).map(|_| server.connect()).collect();
        assert!(good.iter_mut().all(answers));
        let stop = AtomicBool::new(false);
        let address = server.address;
        let stop = &stop;
        let (opened, slowest) = std::thread::scope(|scope| {
            let openers: Vec<_> =
                (0..4).map(|_| scope.spawn(move || open_on_and_on(address, stop))).collect();
            let begun = Instant::now();
            let mut slowest = Duration::ZERO;
            while begun.elapsed() < Duration::from_millis(800) {
                for stream in &mut good {
                    let asked = Instant::now();
                    assert!(answers(stream), "those who are in are served");
                    slowest = slowest.max(asked.elapsed());
                }
            }
            stop.store(true, Ordering::Relaxed);
            let opened: u32 = openers.into_iter().map(|one| one.join().unwrap()).sum();
            (opened, slowest)
        });
        println!("{opened} opened, the slowest answer beside them took {slowest:?}");
        assert!(peak.load(Ordering::SeqCst) <= LIMIT, "{peak:?}");
        assert!(server.metrics().sessions_high_water <= u64::from(LIMIT));
        assert!(good.iter_mut().all(answers));
        // All who were let in are gone again, and who comes now is served.
        eventually("they have gone", || server.metrics().sessions == 4);
        assert!(answers(&mut server.connect()));
        eventually("it has gone too", || server.metrics().sessions == 4);
        server.finish();
    });
}

/// Opens half as many connections as there is room for, without a word, and closes or resets them;
/// again and again. Where the backlog is full of those who are gone already, a connect is given up
/// soon: four who wait for each other's places would wait for long.
fn open_on_and_on(address: SocketAddr, stop: &AtomicBool) -> u32 {
    let soon = Duration::from_millis(100);
    let mut opened = 0;
    while !stop.load(Ordering::Relaxed) {
        let held: Vec<_> =
            (0..LIMIT / 2).map_while(|_| TcpStream::connect_timeout(&address, soon).ok()).collect();
        opened += held.len() as u32;
        for (number, stream) in held.into_iter().enumerate() {
            if number % 2 == 0 {
                reset(stream);
            }
        }
    }
    opened
}
