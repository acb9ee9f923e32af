//! The limits of machines: what runs out, how it is told, and that it comes back.

use super::*;

fn machine(change: impl FnOnce(&mut SimSystem)) -> SimOptions {
    let mut options = SimOptions::calm(1);
    change(&mut options.system);
    options
}

fn workstation() -> SimOptions {
    SimOptions { system: SimSystem::windows_workstation(64 << 20), ..SimOptions::calm(1) }
}

/// How many of so many peers that connect at once are in the queue.
fn queued_of(kernel: &SimKernel, to: SocketAddr, peers: u32) -> usize {
    let connect = |source| kernel.connect_from(Some(source), to);
    let _peers: Vec<_> = (0..peers)
        .map(|at| connect((Ipv4Addr::new(127, 1, 0, (at / 20_000) as u8), 0).into()))
        .collect();
    kernel.advance_by(Duration::from_millis(100));
    kernel.report().queued
}

#[test]
fn linux_caps_a_backlog_at_somaxconn_and_admits_one_more() {
    for (backlog, queued) in [(4096, 4097), (100_000, 4097), (9, 10), (0, 1)] {
        let kernel = SimKernel::new(SimOptions::calm(1));
        let listener = kernel.listen(loopback(Family::V4), backlog);
        assert_eq!(queued_of(&kernel, listener.address(), 4200), queued, "{backlog}");
    }
}

#[test]
fn a_workstation_caps_a_backlog_at_200_and_takes_hints() {
    for (backlog, queued) in [(5, 5), (200, 200), (100_000, 200)] {
        let kernel = SimKernel::new(workstation());
        let listener = kernel.listen(loopback(Family::V4), backlog);
        assert_eq!(queued_of(&kernel, listener.address(), 300), queued, "{backlog}");
    }
    for (hint, queued) in [(10, 200), (1000, 1000), (u32::MAX, 10_922)] {
        // A hint of 65,535 is more than the pool of 16 MiB holds: 1.5 KB for each that is queued.
        let kernel = SimKernel::new(workstation());
        let listener = kernel.listen_hinted(loopback(Family::V4), hint);
        assert_eq!(queued_of(&kernel, listener.address(), 12_000), queued, "{hint}");
    }
}

#[test]
fn a_workstation_refuses_who_finds_the_queue_full_at_the_third_try() {
    let kernel = SimKernel::new(workstation());
    let listener = kernel.listen(loopback(Family::V4), 0);
    let peer = kernel.connect(listener.address());
    kernel.advance_by(Duration::from_millis(1400));
    assert_eq!(peer.connected(), None);
    kernel.advance_by(Duration::from_millis(200));
    assert_eq!(peer.connected().unwrap().unwrap_err().fault, Fault::Refused);
}

#[test]
fn a_workstation_has_16_384_dynamic_ports() {
    let kernel = SimKernel::new(workstation());
    let to = loopback(Family::V4);
    let peers: Vec<_> = (0..16_384).map(|_| kernel.connect(to)).collect();
    assert_eq!(kernel.connect_from(None, to).unwrap_err().fault, Fault::NoPorts);
    assert!(peers.iter().all(|peer| peer.address().port() >= 49_152));
}

#[test]
fn descriptors_run_out_and_come_back() {
    let mut pair = pair(machine(|system| system.descriptors = 1));
    let address = pair.kernel.shared.borrow().listeners[0].as_ref().unwrap().address;
    let other = pair.kernel.connect(address);
    pair.kernel.advance_by(Duration::from_millis(1));
    let accept = Token::new(Kind::Accept, 1, 1);
    pair.driver.accept(accept, Into::Slot);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::ProcessDescriptors);
    assert_eq!(pair.kernel.report().queued, 1, "who waits goes on waiting");
    pair.driver.connect(accept.with(Kind::Connect), address, None);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::ProcessDescriptors);
    pair.driver.close(token(Kind::Close));
    assert_eq!(pair.next().result, Ok(0));
    pair.driver.accept(accept, Into::Slot);
    assert_eq!(pair.next().result, Ok(0));
    assert_eq!(pair.driver.accepted(accept).peer, other.address());
    assert_eq!(pair.kernel.report().descriptors, 1);
}

#[test]
fn the_systems_files_run_out_for_both_ends() {
    let mut pair = pair(machine(|system| system.files = 3));
    let address = pair.kernel.shared.borrow().listeners[0].as_ref().unwrap().address;
    let other = pair.kernel.connect(address);
    let failure = pair.kernel.connect_from(None, address).unwrap_err();
    assert_eq!(failure.fault, Fault::SystemDescriptors);
    pair.kernel.advance_by(Duration::from_millis(1));
    let accept = Token::new(Kind::Accept, 1, 1);
    pair.driver.accept(accept, Into::Slot);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::SystemDescriptors);
    // Closed by its process: no file, though the kernel still knows the connection.
    drop(other);
    pair.driver.accept(accept, Into::Slot);
    assert_eq!(pair.next().result, Ok(0));
    let _ = pair.driver.accepted(accept);
    assert_eq!(pair.kernel.report().files, 3);
}

#[test]
fn kernel_memory_runs_out_with_enobufs_and_comes_back() {
    let pool = SimPool { bytes: 3000, connected: 2048, accepted: 1536, operation: 500 };
    let mut pair = pair(machine(|system| system.pool = pool));
    assert_eq!(pair.kernel.report().pool_bytes, 1536);
    pair.driver.park(token(Kind::Park));
    let lease = pair.lease();
    pair.driver.receive(token(Kind::Receive), lease, 0, false);
    let mut out = Vec::with_capacity(4);
    let now = pair.kernel.now();
    pair.driver.wait(Some(now), &mut out).expect("a simulation goes on");
    assert_eq!(pair.kernel.report().pool_bytes, 2536);
    let lease = pair.lease();
    pair.send(&lease, true);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::Buffers, "500 of 464");
    pair.driver.stop(token(Kind::Park));
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::Cancelled);
    pair.send(&lease, true);
    assert_eq!(pair.next().result, Ok(100));
    let connect = Token::new(Kind::Connect, 1, 1);
    pair.driver.connect(connect, loopback(Family::V4), None);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::Buffers, "2,048 of 964");
    pair.driver.abort(token(Kind::Close));
    while pair.driver.holdings().operations > 0 {
        let _ = pair.next();
    }
    assert_eq!((pair.kernel.report().pool_bytes, pair.kernel.report().pool_high_water), (0, 2536));
}

#[test]
fn pages_are_locked_whole_while_an_operation_is_in_flight() {
    let mut pair = pair(machine(|system| system.pinned_bytes = 8192));
    let (first, second) = (pair.lease(), pair.lease());
    // The last byte of a page takes the page.
    pair.driver.receive(token(Kind::Receive), first, 4095, false);
    let mut out = Vec::with_capacity(4);
    let now = pair.kernel.now();
    pair.driver.wait(Some(now), &mut out).expect("a simulation goes on");
    assert_eq!(pair.kernel.report().pinned_bytes, 4096);
    let half = |start| Span { block: second.block(), start, len: 10 };
    pair.driver.send(token(Kind::Send), &[half(0), half(2000)], true);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::Buffers, "a page each");
    pair.driver.send(token(Kind::Send), &[half(0)], true);
    assert_eq!(pair.next().result, Ok(10));
    assert_eq!(pair.kernel.report().pinned_bytes, 4096);
}

#[test]
fn nobody_hears_of_a_peer_that_vanishes_until_something_is_sent_to_it() {
    let mut pair = pair(SimOptions::calm(1));
    let lease = pair.lease();
    pair.driver.park(token(Kind::Park));
    pair.kernel.advance_by(Duration::from_millis(1));
    assert_eq!(pair.peer.connected(), Some(Ok(())));
    std::mem::replace(&mut pair.peer, pair.kernel.connect(loopback(Family::V4))).vanish();
    pair.kernel.advance_by(Duration::from_secs(1_000_000));
    let mut out = Vec::with_capacity(4);
    let now = pair.kernel.now();
    pair.driver.wait(Some(now), &mut out).expect("a simulation goes on");
    assert!(out.is_empty());
    pair.send(&lease, true);
    assert_eq!(pair.next().result, Ok(100), "into the kernel's buffer");
    let sent_at = pair.kernel.now();
    assert_eq!(pair.next().token.kind(), Kind::Park);
    let passed = pair.kernel.now().since(sent_at);
    assert!(passed >= SimSystem::linux().retransmits, "{passed:?}");
    pair.driver.receive(token(Kind::Receive), lease, 0, false);
    assert_eq!(pair.next().result.unwrap_err().fault, Fault::TimedOut);
    pair.driver.close(token(Kind::Close));
    assert_eq!(pair.next().result, Ok(0));
}

/// What the source of S2 found: the key of a socket that is used again names its first session.
#[test]
fn a_socket_that_is_used_again_delivers_under_its_first_key() {
    let kernel = SimKernel::new(workstation());
    let arena = Arena::new(2, 4096).expect("address space");
    let mut driver = SimDriver::new(&kernel, 2, arena.memory().clone());
    let listener = kernel.listen(loopback(Family::V4), 8);
    let address = listener.address();
    driver.listen(listener);
    let mut out = Vec::with_capacity(8);
    let mut finish = |driver: &mut SimDriver| -> Vec<(Token, Token)> {
        while out.is_empty() {
            driver.wait(None, &mut out).expect("a simulation goes on");
        }
        out.clear();
        driver.keys().to_vec()
    };
    let mut wrong = 0;
    for generation in 1..=6 {
        let slot = (generation % 2) as u32;
        let _peer = kernel.connect(address);
        let accept = Token::new(Kind::Accept, generation, slot);
        driver.accept(accept, Into::Slot);
        let keys = finish(&mut driver);
        let _ = driver.accepted(accept);
        assert_eq!(keys.len(), 1);
        let (token, key) = keys[0];
        assert_eq!(token, accept, "the operation itself says whose it is");
        assert_eq!(key, Token::new(Kind::Accept, 1, 1), "the key says who was first");
        wrong += u32::from(key.slot() != slot || !key.is_of(generation));
        driver.close(accept.with(Kind::Close));
        finish(&mut driver);
    }
    assert_eq!(wrong, 5);
}
