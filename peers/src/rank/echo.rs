//! The load of an echo slice: a closed loop over connections that stay open.

use std::time::{Duration, Instant};

use super::clients::{Clients, DRAIN, EVENTS};
use super::servers::Server;
use super::{Failure, Load, Scenario, Work};
use crate::sys;

/// A set number of messages on their way on each connection.
pub(super) struct EchoLoad {
    clients: Clients,
    depth: u64,
    /// How long to sleep for a reply; not at all on a CPU of our own.
    patience: Duration,
}

impl EchoLoad {
    /// Opens all connections.
    pub(super) fn open(server: &Server, scenario: &Scenario) -> Result<Self, Failure> {
        let clients = Clients::open(server, scenario.connections, scenario.size)?;
        let patience = if scenario.spins() { Duration::ZERO } else { Duration::from_millis(100) };
        Ok(Self { clients, depth: scenario.depth as u64, patience })
    }
}

impl Load for EchoLoad {
    fn slice(&mut self, duration: Duration) -> Result<Work, Failure> {
        let started = Instant::now();
        let (end, give_up) = (started + duration, started + duration + DRAIN);
        for index in 0..self.clients.len() {
            self.clients.send(index, self.depth)?;
        }
        let mut outstanding = self.clients.len() as u64 * self.depth;
        let mut messages = 0;
        let mut events = vec![sys::NO_EVENT; EVENTS];
        while outstanding > 0 {
            let count = self.clients.wait(&mut events, self.patience)?;
            let now = Instant::now();
            if now >= give_up {
                return Err(self.clients.missing(outstanding));
            }
            for event in &events[..count] {
                let index = event.u64 as usize;
                let complete = self.clients.receive(index)?;
                messages += complete;
                let mut more = complete;
                if now >= end {
                    outstanding -= complete;
                    more = 0;
                }
                self.clients.send(index, more)?;
            }
        }
        Ok(Work { units: messages, elapsed: started.elapsed(), pace: None })
    }
}
