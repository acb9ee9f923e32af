//! Many at once: more than queues hold, and many uses of few slots.

use std::net::SocketAddr;

use super::harness::{Harness, pattern};
use super::{Heard, Peer, Plan, World};
use crate::driver::{Driver, Fault, Into, Kind, Token};

const CROWD: Plan = Plan { slots: 300, blocks: 310, block_bytes: 4096 };

/// Opens all slots, with the accepts posted in one breath.
fn open_all<W: World>(harness: &mut Harness<W>, slots: u32) -> Vec<W::Peer> {
    let accepts: Vec<Token> = (0..slots).map(|slot| harness.post_accept(slot)).collect();
    let address = harness.address.expect("it listens");
    let mut peers: Vec<Option<W::Peer>> =
        accepts.iter().map(|_| Some(harness.world.peer(address))).collect();
    let mut by_slot = Vec::new();
    for token in accepts {
        assert_eq!(harness.completion(token).result, Ok(0));
        let from: SocketAddr = harness.accepted(token).peer;
        // Accepts take the connections in any order: find whose it is.
        let at = peers
            .iter()
            .position(|peer| peer.as_ref().is_some_and(|peer| peer.address() == from))
            .expect("an accepted connection comes from one of the peers, once");
        by_slot.push(peers[at].take().expect("found above"));
    }
    by_slot
}

pub(in crate::driver) fn every_intent_on_hundreds_of_slots_at_once<W: World>() {
    let mut harness = Harness::<W>::listening(CROWD);
    let slots = CROWD.slots;
    let mut peers = open_all(&mut harness, slots);
    let parks: Vec<Token> = (0..slots).map(|slot| harness.token(Kind::Park, slot)).collect();
    for &park in &parks {
        harness.driver().park(park);
    }
    for (slot, peer) in peers.iter_mut().enumerate() {
        harness.write_all(peer, &pattern(40, slot));
    }
    for park in parks {
        assert!(harness.completion(park).result.is_ok());
    }
    let receives: Vec<Token> = (0..slots).map(|slot| harness.post_receive(slot)).collect();
    for (slot, receive) in receives.into_iter().enumerate() {
        let completion = harness.completion(receive);
        let len = completion.result.expect("bytes are there");
        let lease = completion.lease.expect("it comes back");
        let mut bytes = harness.bytes_of(&lease, 0, len);
        harness.give_back(Some(lease));
        bytes.extend(harness.receive_all(slot as u32, 40 - len as usize));
        assert_eq!(bytes, pattern(40, slot));
    }
    send_half_close_and_close_all(&mut harness, &mut peers);
    harness.end();
}

fn send_half_close_and_close_all<W: World>(harness: &mut Harness<W>, peers: &mut [W::Peer]) {
    let slots = peers.len() as u32;
    let mut sends = Vec::new();
    for slot in 0..slots {
        let (lease, span) = harness.block_of(&pattern(1, slot as usize));
        let token = harness.token(Kind::Send, slot);
        harness.driver().send(token, &[span], slot % 2 == 0);
        sends.push((token, lease));
    }
    for (token, lease) in sends {
        assert_eq!(harness.completion(token).result, Ok(1));
        harness.give_back(Some(lease));
    }
    let ends: Vec<Token> = (0..slots).map(|slot| harness.token(Kind::HalfClose, slot)).collect();
    for &end in &ends {
        harness.driver().half_close(end);
    }
    for end in ends {
        assert!(harness.completion(end).result.is_ok());
    }
    for (slot, peer) in peers.iter_mut().enumerate() {
        assert_eq!(harness.hear_end(peer), (pattern(1, slot), Heard::End));
    }
    for slot in 0..slots {
        let token = harness.token(Kind::Close, slot);
        if slot % 2 == 0 {
            harness.driver().close(token);
        } else {
            harness.driver().abort(token);
        }
    }
    for slot in 0..slots {
        harness.closed(slot);
    }
}

pub(in crate::driver) fn more_completions_than_capacity<W: World>() {
    let mut harness = Harness::<W>::listening(CROWD);
    let mut peers = open_all(&mut harness, 100);
    for slot in 0..100 {
        let park = harness.token(Kind::Park, slot);
        harness.driver().park(park);
    }
    for peer in &mut peers {
        harness.write_all(peer, b"x");
    }
    // Those that came while the peers wrote are in `done`; the rest come through a narrow door.
    let mut woken = std::mem::take(&mut harness.done);
    harness.until("all parks complete, a few at a time", |harness| {
        let mut few = Vec::with_capacity(4);
        let now = harness.driver().now();
        harness.driver().wait(Some(now), &mut few).expect("the driver goes on");
        woken.append(&mut few);
        woken.append(&mut harness.done);
        (woken.len() >= 100).then_some(())
    });
    let mut slots: Vec<u32> = woken.iter().map(|completion| completion.token.slot()).collect();
    slots.sort_unstable();
    assert!(slots.into_iter().eq(0..100), "each once");
    for slot in 0..100 {
        harness.abort(slot);
    }
    drop(peers);
    harness.end();
}

pub(in crate::driver) fn slots_are_reusable_after_close_completes<W: World>() {
    let mut harness = Harness::<W>::listening(Plan { slots: 2, ..Plan::default() });
    for cycle in 0..1000_u32 {
        let slot = cycle % 2;
        let mut peer = harness.open(slot);
        let receive = harness.post_receive(slot);
        harness.write_all(&mut peer, &cycle.to_le_bytes());
        let completion = harness.completion(receive);
        let received = completion.result.expect("bytes come");
        let lease = completion.lease.expect("it comes back");
        assert_eq!(
            harness.bytes_of(&lease, 0, received),
            cycle.to_le_bytes()[..received as usize],
            "bytes of another use of the slot"
        );
        harness.give_back(Some(lease));
        // Reset by either end, so that no port is left in TIME_WAIT.
        if cycle % 3 == 0 {
            peer.reset();
            harness.close(slot);
        } else {
            harness.abort(slot);
        }
    }
    harness.end();
}

pub(in crate::driver) fn leases_all_come_back<W: World>() {
    let plan = Plan { slots: 60, blocks: 60, ..CROWD };
    let mut harness = Harness::<W>::listening(plan);
    let peers = open_all(&mut harness, 60);
    let receives: Vec<Token> = (0..60).map(|slot| harness.post_receive(slot)).collect();
    assert_eq!(harness.world.arena().available(), 0);
    // Ended, reset, stopped, closed, aborted, and one that brings bytes.
    for (slot, mut peer) in peers.into_iter().enumerate() {
        let token = receives[slot];
        match slot % 6 {
            0 => peer.shutdown_write(),
            1 => peer.reset(),
            2 => harness.driver().stop(token),
            3 => harness.driver().close(token.with(Kind::Close)),
            4 => harness.driver().abort(token.with(Kind::Close)),
            _ => harness.write_all(&mut peer, b"bytes"),
        }
    }
    for token in receives {
        let completion = harness.completion(token);
        assert!(completion.lease.is_some(), "{completion:?}");
        harness.give_back(completion.lease);
    }
    assert_eq!(harness.world.arena().outstanding(), 0);
    for slot in 0..60 {
        match slot % 6 {
            3 | 4 => harness.closed(slot),
            _ => harness.close(slot),
        }
    }
    harness.end();
}

pub(in crate::driver) fn more_sockets_than_slots_are_handed_over<W: World>() {
    let plan = Plan { slots: 4, ..Plan::default() };
    let mut harness = Harness::<W>::listening(plan);
    let address = harness.address.expect("it listens");
    let accepts: Vec<Token> =
        (0..crate::driver::MAX_HANDED).map(|n| Token::new(Kind::HandOver, 9, n)).collect();
    for &accept in &accepts {
        harness.driver().accept(accept, Into::Socket);
    }
    let mut peers: Vec<W::Peer> = (0..10).map(|_| harness.world.peer(address)).collect();
    let mut sockets = Vec::new();
    harness.until("ten are handed over", |harness| {
        for &accept in &accepts {
            if let Some(completion) = harness.try_completion(accept) {
                assert_eq!(completion.result, Ok(0));
                sockets.push(harness.accepted(accept).socket.expect("asked for"));
            }
        }
        (sockets.len() == 10).then_some(())
    });
    for (slot, socket) in sockets.drain(..4).enumerate() {
        harness.driver().adopt(slot as u32, socket).expect("the slot is free");
    }
    // The others are closed, unadopted.
    drop(sockets);
    harness.driver().close_listener();
    harness.address = None;
    harness.until("the accepts that waited are cancelled", |harness| {
        (harness.done.len() == accepts.len() - 10).then_some(())
    });
    for completion in std::mem::take(&mut harness.done) {
        let failure = completion.result.expect_err("nobody came");
        assert_eq!(failure.fault, Fault::Cancelled);
    }
    harness.until("all peers are connected", |_| {
        peers.iter_mut().all(|peer| peer.connected().is_some()).then_some(())
    });
    for slot in 0..4 {
        harness.abort(slot);
    }
    drop(peers);
    harness.end();
}
