//! The verdicts under the limits of a workstation with Windows, as the simulated kernel has them: 200
//! places in the queue or as many as a hint says, 16,384 dynamic ports, a bounded non-paged pool.
//!
//! It shows that an experiment which meets these limits names them. It is no evidence about Windows.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use plimsoll::buffer::Arena;
use plimsoll::driver::sim::{SimDriver, SimKernel, SimOptions, SimPeer, SimSystem};
use plimsoll::driver::{Driver, Fault, Into, Kind, Token};
use plimsoll_kernel::limits::Limits;

use crate::errno;
use crate::observe::Snapshot;
use crate::results::StoppedBy;
use crate::verdict::backlog::{self as verdict, Facts, Proof};
use crate::verdict::{Stop, machine};
use crate::worker::{Tally, Why};

/// So many failures in a row end a run, as in [`super::fill`].
const FAILURES: u64 = 16;
/// The dynamic ports of Windows: 49,152 to 65,535.
const PORTS: u64 = 16_384;

/// A machine on which somebody listens and never accepts, unless asked to.
struct Workstation {
    kernel: SimKernel,
    server: SimDriver,
    address: SocketAddr,
    clients: Vec<SimPeer>,
    tally: Tally,
}

impl Workstation {
    /// With a backlog as given (`SOMAXCONN` and the like), or as a hint.
    fn new(backlog: u32, hinted: bool) -> Self {
        let system = SimSystem::windows_workstation(1 << 30);
        let kernel = SimKernel::new(SimOptions { system, ..SimOptions::calm(1) });
        let arena = Arena::new(4, 4096).expect("memory");
        let mut server = SimDriver::new(&kernel, 64, arena.memory().clone());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener =
            if hinted { kernel.listen_hinted(any, backlog) } else { kernel.listen(any, backlog) };
        let address = listener.address();
        server.listen(listener);
        Self { kernel, server, address, clients: Vec::new(), tally: Tally::default() }
    }

    /// Connects one client from each source in turn, until as many fail in a row as end a run, or no
    /// source has a port.
    fn fill(&mut self, sources: u8) -> Why {
        let mut failures = 0;
        for source in 1..=sources {
            let source = SocketAddr::from(([127, 0, 0, source], 0));
            while failures < FAILURES {
                match self.connect(source) {
                    Ok(()) => failures = 0,
                    Err(Fault::NoPorts) => break,
                    Err(_) => failures += 1,
                }
            }
        }
        if failures == FAILURES { Why::Failing } else { Why::Ports }
    }

    fn connect(&mut self, source: SocketAddr) -> Result<(), Fault> {
        let begun = self.kernel.connect_from(Some(source), self.address);
        let peer = begun.map_err(|failure| failure.fault)?;
        let outcome = loop {
            if let Some(outcome) = peer.connected() {
                break outcome.map_err(|failure| failure.fault);
            }
            // Nobody turns the server's driver, so that time has to pass by itself.
            self.kernel.advance_anyway().expect("a connect ends");
        };
        match outcome {
            Ok(()) => {
                self.tally.established += 1;
                self.clients.push(peer);
            }
            Err(Fault::Refused) => {
                *self.tally.errors.entry(errno::REFUSED.to_owned()).or_default() += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
        outcome
    }

    /// Accepts some, and sees whether the next client connects.
    fn make_room(&mut self) -> Proof {
        for slot in 0..8 {
            self.server.accept(Token::new(Kind::Accept, 1, slot), Into::Slot);
        }
        let mut accepted = 0;
        while accepted < 8 {
            let mut out = Vec::with_capacity(16);
            self.server.wait(None, &mut out).expect("a simulation goes on");
            for completion in out {
                completion.result.expect("they wait in the queue");
                let _ = self.server.accepted(completion.token);
                accepted += 1;
            }
        }
        let moved = self.connect(SocketAddr::from(([127, 0, 0, 99], 0))).is_ok();
        Proof { moved, says: format!("8 were accepted, and the next client connected: {moved}") }
    }

    /// What the experiment says of a system that tells nothing but its table of sockets.
    fn verdict(&mut self, why: Why) -> Stop {
        let deepest = Some(self.kernel.report().queued as u64);
        let (tally, nothing) = (self.tally.clone(), Snapshot::default());
        let facts = facts(&tally, &nothing, why, deepest);
        let stop = verdict::after(&facts).expect("a worker has met something");
        let proof = self.make_room();
        verdict::proven(stop, &facts, &proof)
    }
}

/// What is known of a run that a worker's failures end.
fn facts<'a>(tally: &'a Tally, nothing: &'a Snapshot, why: Why, deepest: Option<u64>) -> Facts<'a> {
    Facts {
        before: nothing,
        now: nothing,
        interrupted: false,
        stop_at: None,
        granted: None,
        depth: deepest,
        deepest,
        established: tally.established,
        errors: &tally.errors,
        met: Some(why),
        still: Duration::ZERO,
        patience: Duration::from_secs(6),
        no_sources: None,
    }
}

#[test]
fn somaxconn_is_two_hundred_and_the_queue_is_named() {
    for asked in [200, 4096, 0x7fff_ffff] {
        let mut machine = Workstation::new(asked, false);
        let why = machine.fill(1);
        assert_eq!((why, machine.tally.established), (Why::Failing, 200), "asked for {asked}");
        let stop = machine.verdict(why);
        assert_eq!(stop.by, StoppedBy::QueueFull, "{}", stop.evidence);
        for part in ["200 connections stood", errno::REFUSED, "8 were accepted"] {
            assert!(stop.evidence.contains(part), "{part}: {}", stop.evidence);
        }
    }
}

/// The source took the wall at 16,000 for the queue's end: it is the ports of one source address.
#[test]
fn behind_a_hint_the_ports_end_first_and_another_source_shows_the_queue() {
    let mut machine = Workstation::new(20_000, true);
    let why = machine.fill(1);
    assert_eq!((why, machine.tally.established), (Why::Ports, PORTS));
    let ports = machine::ports(&Limits::default(), PORTS, "127.0.0.1", 1, machine.address);
    assert_eq!(ports.by, StoppedBy::Ports);
    assert!(machine.tally.errors.is_empty(), "nobody was refused: {:?}", machine.tally.errors);

    let mut machine = Workstation::new(20_000, true);
    let why = machine.fill(2);
    assert_eq!((why, machine.tally.established), (Why::Failing, 20_000), "two sources");
    let stop = machine.verdict(why);
    assert_eq!(stop.by, StoppedBy::QueueFull, "{}", stop.evidence);
}

/// A port that nobody listens on any more refuses too, and room in no queue helps.
#[test]
fn a_refusal_that_room_does_not_cure_is_no_full_queue() {
    let mut machine = Workstation::new(200, false);
    machine.address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let why = machine.fill(1);
    let (tally, nothing) = (machine.tally.clone(), Snapshot::default());
    let facts = facts(&tally, &nothing, why, Some(0));
    let moved = machine.connect(SocketAddr::from(([127, 0, 0, 99], 0))).is_ok();
    let proof = Proof { moved, says: "the next client failed still".to_owned() };
    let stop = verdict::after(&facts).expect("a worker has met something");
    let stop = verdict::proven(stop, &facts, &proof);
    assert_eq!((stop.by, tally.established), (StoppedBy::Refused, 0), "{}", stop.evidence);
}

/// 2 KiB for each connected socket, and a quarter of memory for all: 8 MB end long before the ports
/// do, with the error that ports end with too.
#[test]
fn a_spent_pool_is_memory_and_not_ports() {
    let system = SimSystem::windows_workstation(8_192_000);
    let kernel = SimKernel::new(SimOptions { system, ..SimOptions::calm(1) });
    let arena = Arena::new(4, 4096).expect("memory");
    let mut client = SimDriver::new(&kernel, 2_000, arena.memory().clone());
    let peer = kernel.peer_listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 65_535);
    let mut tally = Tally::default();
    let mut out = Vec::with_capacity(4);
    let fault = loop {
        let slot = tally.established as u32;
        client.connect(Token::new(Kind::Connect, 1, slot), peer.address(), None);
        while out.is_empty() {
            client.wait(None, &mut out).expect("a simulation goes on");
        }
        match out.pop().expect("it is not empty").result {
            Ok(_) => tally.established += 1,
            Err(failure) => break failure.fault,
        }
    };
    assert_eq!(fault, Fault::Buffers);
    assert!((900..=1000).contains(&tally.established), "{}", tally.established);
    let why = machine::ports_or_memory(Some(PORTS), tally.established);
    tally.errors.insert("WSAENOBUFS".to_owned(), 1);
    let nothing = Snapshot::default();
    let stop = verdict::after(&facts(&tally, &nothing, why, None)).expect("memory ends it");
    assert_eq!(stop.by, StoppedBy::Memory, "{}", stop.evidence);
    assert!(stop.evidence.contains("WSAENOBUFS"), "{}", stop.evidence);
}
