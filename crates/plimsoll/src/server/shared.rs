//! What the shards of one server share.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use super::plan::Plan;
use super::thread::{Leaving, Made, Order};
use super::{Builder, Running};
use crate::acceptor::ledger::Ledger;
use crate::acceptor::peers::Peers;
use crate::acceptor::service::ServiceSet;
use crate::budget::Dry;
use crate::deadline::Deadline;
use crate::driver::Features;
use crate::mailbox::{HandOver, Mailbox, Remote};
use crate::metrics::{AllCounters, Counters};
use crate::monitor::Gauge;
use crate::shard::{Link, Parts, Profile};

/// The parts that there is one of, or one for each shard. Connections are handed over as an `S`.
pub(super) struct Shared<S> {
    plan: Plan,
    listens: bool,
    links: Arc<[Link<S>]>,
    ledger: Arc<Ledger>,
    deadline: Arc<Deadline>,
    service: Option<Arc<ServiceSet>>,
    peers: Option<Arc<Peers>>,
    gauge: Arc<Gauge>,
    counters: Arc<[Arc<Counters>]>,
    remote: Remote,
}

impl<S> Shared<S> {
    pub(super) fn new(builder: &Builder, plan: Plan, listens: bool, made: &[Made]) -> Self {
        let limits = &builder.limits;
        let permits = limits.max_connections.max(1);
        let wakers: Vec<_> = made.iter().map(|one| one.waker.clone()).collect();
        let ledger = Arc::new(Ledger::new(permits, made.len(), wakers[0].clone()));
        let most = limits.service_set.filter(|_| builder.profile == Profile::Throughput);
        let service = most.map(|most| {
            let set = ServiceSet::new(most, limits.service_time, wakers.clone(), plan.slots);
            Arc::new(set.in_dry_run(limits.dry_run.has(Dry::ServiceSet)))
        });
        let link = |waker| Link {
            mailbox: Arc::new(Mailbox::new(waker)),
            handed: HandOver::new(plan.slots as usize),
        };
        let links: Arc<[Link<S>]> = wakers.into_iter().map(link).collect();
        Self {
            plan,
            listens,
            ledger,
            deadline: Arc::new(Deadline::new()),
            service,
            peers: limits.max_per_peer.map(|most| Arc::new(Peers::new(most, permits))),
            gauge: Arc::default(),
            counters: made.iter().map(|_| Arc::default()).collect(),
            remote: Remote { shards: links.iter().map(|link| link.mailbox.clone()).collect() },
            links,
        }
    }

    /// What the thread of shard `number` begins with. Shard 0 accepts.
    pub(super) fn order(
        &self,
        builder: &Builder,
        number: usize,
        listener: Option<TcpListener>,
    ) -> Order<S> {
        let accepts = number == 0 && self.listens;
        let parts = Parts {
            number: number as u32,
            profile: builder.profile,
            limits: builder.limits.clone(),
            slots: self.plan.slots,
            outgoing: self.plan.outgoing,
            links: self.links.clone(),
            ledger: self.ledger.clone(),
            deadline: self.deadline.clone(),
            peers: self.peers.clone(),
            service: self.service.clone(),
            gauge: self.gauge.clone(),
            counters: self.counters[number].clone(),
            accepts,
        };
        let leaving = Leaving {
            mailbox: self.links[number].mailbox.clone(),
            remote: self.remote.clone(),
            deadline: self.deadline.clone(),
            ledger: accepts.then(|| self.ledger.clone()),
            failed: true,
        };
        Order { parts, listener, leaving, spin: builder.spin }
    }

    /// The server, without its threads.
    pub(super) fn running(&self, address: Option<SocketAddr>, features: Features) -> Running {
        Running {
            address,
            remote: self.remote.clone(),
            counters: AllCounters(self.counters.clone()),
            deadline: self.deadline.clone(),
            threads: Vec::new(),
            features,
            gauge: self.gauge.clone(),
            monitor: None,
        }
    }
}
