//! Connections that a handler makes: those that are not answered, given up, or not begun.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use plimsoll::{
    Context, Handler, Limits, NotBegun, Reason, Running, Server, SessionId, ShardContext,
};
use socket2::{Domain, Socket, Type};

use crate::common::{Way, each_way};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the handler says.
#[derive(Debug, PartialEq)]
enum Said {
    Begun(Result<SessionId, NotBegun>),
    Ended(SessionId, Reason),
    GivenUp(bool),
}

/// Connects as it begins, and again when a message asks for it; another message gives the first one
/// up.
struct Caller {
    target: SocketAddr,
    first: Option<SessionId>,
    says: Sender<Said>,
}

impl Caller {
    fn call(&self, shard: &mut ShardContext<'_, ()>) -> Option<SessionId> {
        let begun = shard.connect(self.target, None);
        self.says.send(Said::Begun(begun)).unwrap();
        begun.ok()
    }
}

impl Handler for Caller {
    type State = ();

    fn on_start(&mut self, shard: &mut ShardContext<'_, ()>) {
        self.first = self.call(shard);
    }

    fn on_receive(&mut self, _: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn on_drain(&mut self, cx: &mut Context<'_, ()>) {
        self.call(&mut cx.shard());
        cx.close();
    }

    fn on_message(
        &mut self,
        shard: &mut ShardContext<'_, ()>,
        message: Box<dyn std::any::Any + Send>,
    ) {
        if message.is::<SessionId>() {
            let given_up = shard.disconnect(self.first.unwrap());
            self.says.send(Said::GivenUp(given_up)).unwrap();
        } else {
            self.call(shard);
        }
    }

    fn on_disconnect(&mut self, cx: &mut Context<'_, ()>, reason: Reason) {
        self.says.send(Said::Ended(cx.id(), reason)).unwrap();
    }
}

fn call(
    (driver, profile): Way,
    target: SocketAddr,
    most: u32,
    timeout: Option<Duration>,
) -> (Running, Receiver<Said>) {
    let mut limits = Limits::default();
    (limits.max_outgoing, limits.connect_timeout) = (most, timeout);
    let (says, said) = channel();
    let server = Server::builder().driver(driver).profile(profile).shards(1).limits(limits);
    let running = server
        .start(move |_| Caller { target, first: None, says: says.clone() })
        .expect("a client starts");
    (running, said)
}

fn next(said: &Receiver<Said>) -> Said {
    said.recv_timeout(PATIENCE).expect("the handler says something")
}

/// A listener whose backlog is full: who comes is not answered. With the connections that fill it.
fn full() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queued.push(one);
        assert!(queued.len() < 100, "a backlog of 0 is soon full");
    }
    (listener, queued, address)
}

#[cfg(target_os = "linux")]
#[test]
fn a_connect_that_is_not_answered_ends_in_time() {
    let (_listener, _queued, target) = full();
    each_way(|way| {
        let timeout = Duration::from_millis(300);
        let begun = Instant::now();
        let (running, said) = call(way, target, 1, Some(timeout));
        let Said::Begun(Ok(id)) = next(&said) else { panic!("it begins") };
        assert_eq!(next(&said), Said::Ended(id, Reason::ConnectTimeout));
        assert!(begun.elapsed() >= timeout, "after {:?}", begun.elapsed());
        // Its place is free again, once the kernel has let go of it.
        let again = Instant::now();
        loop {
            running.remote().message(0, Box::new(())).unwrap();
            match next(&said) {
                Said::Begun(Ok(_)) => break,
                Said::Begun(Err(error)) => assert_eq!(error, NotBegun::Full { most: 1 }),
                other => panic!("{other:?}"),
            }
            assert!(again.elapsed() < PATIENCE, "no place is free");
        }
        assert_eq!(running.drain(PATIENCE).unwrap().blocks_lost, 0);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_connect_can_be_given_up() {
    let (_listener, _queued, target) = full();
    each_way(|way| {
        let (running, said) = call(way, target, 1, None);
        let Said::Begun(Ok(id)) = next(&said) else { panic!("it begins") };
        let remote = running.remote();
        remote.message(0, Box::new(id)).unwrap();
        assert_eq!(next(&said), Said::GivenUp(true));
        assert_eq!(next(&said), Said::Ended(id, Reason::Disconnected));
        remote.message(0, Box::new(id)).unwrap();
        assert_eq!(next(&said), Said::GivenUp(false));
        drop(running);
        // From another thread.
        let (running, said) = call(way, target, 1, None);
        let Said::Begun(Ok(id)) = next(&said) else { panic!("it begins") };
        running.remote().disconnect(id).unwrap();
        assert_eq!(next(&said), Said::Ended(id, Reason::Disconnected));
    });
}

#[test]
fn why_none_is_begun_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    each_way(|way| {
        let (running, said) = call(way, target, 0, None);
        assert_eq!(next(&said), Said::Begun(Err(NotBegun::Full { most: 0 })));
        drop(running);
        let (running, said) = call(way, target, 2, None);
        assert!(matches!(next(&said), Said::Begun(Ok(_))));
        let (peer, _) = listener.accept().unwrap();
        running.drain(PATIENCE).unwrap();
        // Where it was connected by then, `on_drain` was called.
        let later: Vec<_> = said.iter().collect();
        let asked = later.iter().filter(|said| matches!(said, Said::Begun(_)));
        assert!(asked.eq([&Said::Begun(Err(NotBegun::Draining))]) || later.len() == 1, "{later:?}");
        drop(peer);
    });
}
