//! Connections that the acceptor hands to a shard whose kernel cannot take them in.

use std::time::Duration;

use super::plan::Plan;
use super::ship::{Ship, here};
use crate::driver::Fault;
use crate::driver::sim::{
    Operation, POSSIBLE, Possible, SimOptions, SimPeer, SimRead, SystemErrors,
};
use crate::shard::Profile;

const CLIENTS: usize = 24;
/// The most attempts of one shard in a second: pauses of 5, 10, 20, 40, 80, 100, 100, … ms.
const MOST_TRIED: u64 = 20;

fn plan() -> Plan {
    let mut plan = Plan::of_few_blocks(1);
    plan.options = SimOptions { held_clock: true, ..SimOptions::calm(1) };
    plan.profile = Profile::Connections;
    (plan.shards, plan.slots, plan.blocks) = (2, 16, 64);
    plan.limits.max_connections = 32;
    plan.limits.backlog = CLIENTS as u32;
    plan
}

/// For so long of the virtual clock, clients that are dropped come again at once.
fn serve(ship: &mut Ship, clients: &mut Vec<SimPeer>, duration: Duration) {
    let end = ship.kernel.now().after(duration);
    while ship.kernel.now() < end {
        clients.retain_mut(|client| {
            matches!(client.read(&mut [0; 64]), SimRead::Nothing | SimRead::Bytes(_))
        });
        while clients.len() < CLIENTS {
            clients.push(ship.kernel.connect(here()));
        }
        (0..2).for_each(|shard| ship.turn(shard));
        ship.kernel.advance_by(Duration::from_micros(500));
    }
}

/// A shard that can adopt nobody tries again after a pause, which all shards share, and then with one
/// connection: the others wait, and are served when it can.
fn who_cannot_be_adopted_backs_off(line: &Possible) {
    let mut ship = Ship::launch(plan());
    ship.kernel.set_fault_rate(Operation::Adopt, line.fault, 1_000_000);
    let mut clients = Vec::new();
    serve(&mut ship, &mut clients, Duration::from_secs(1));
    let tried = ship.kernel.begun(Operation::Adopt);
    assert!((2..=MOST_TRIED).contains(&tried), "{tried} in a second: {line:?}");
    let metrics = ship.metrics();
    assert_eq!(metrics.accept_errors, tried, "{line:?}");
    // EMFILE is of our own making: no shortage of the kernel's.
    let counted = if line.fault == Fault::ProcessDescriptors { 0 } else { tried };
    assert_eq!(metrics.shortages, counted, "{line:?}");

    ship.kernel.set_fault_rate(Operation::Adopt, line.fault, 0);
    serve(&mut ship, &mut clients, Duration::from_secs(1));
    let metrics = ship.metrics();
    assert_eq!((metrics.sessions, metrics.accept_errors), (CLIENTS as u64, tried), "{line:?}");
    drop(clients);
    // The handlers are calm; the machine was not.
    ship.plan.calm = false;
    ship.land();
}

#[test]
fn simulated_shards_that_cannot_adopt_back_off() {
    let of_adopting =
        |line: &&Possible| line.operation == Operation::Adopt && line.system == SystemErrors::Linux;
    let lines: Vec<_> = POSSIBLE.iter().filter(of_adopting).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    lines.into_iter().for_each(who_cannot_be_adopted_backs_off);
}

/// A client that has gone before it was adopted is no shortage: the next is adopted at once.
#[test]
fn simulated_a_client_that_has_gone_holds_up_nobody() {
    let mut plan = plan();
    plan.options.system = crate::driver::sim::SimSystem::windows_workstation(1 << 30);
    let mut ship = Ship::launch(plan);
    ship.kernel.fail_nth(Operation::Adopt, 1, Fault::Reset);
    let mut clients = Vec::new();
    serve(&mut ship, &mut clients, Duration::from_millis(20));
    let metrics = ship.metrics();
    assert_eq!((metrics.sessions, metrics.accept_errors), (CLIENTS as u64, 1));
    assert_eq!((metrics.dead_in_backlog, metrics.shortages, ship.noted()), (1, 0, 0));
    drop(clients);
    ship.land();
}
