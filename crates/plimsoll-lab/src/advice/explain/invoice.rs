//! From counted sockets to kernel objects.

use std::collections::BTreeMap;

use plimsoll_kernel::slab::Slabs;

use super::Watchers;
use crate::results::KernelObject;

/// What was counted. Pairs are of IPv4 and IPv6 sockets.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Connections by state.
    pub(super) states: BTreeMap<String, u64>,
    /// Bytes in buffers.
    pub(super) buffers: BTreeMap<String, u64>,
    /// Full sockets: all states but `TIME_WAIT` and `SYN_RECV`.
    pub(super) sockets: [u64; 2],
    pub(super) time_wait: [u64; 2],
    pub(super) requests: [u64; 2],
    /// Sockets that a process holds: they have an inode and a file.
    pub(super) held: u64,
    /// Waiting in accept queues, with a request and without a file; those whose client has reset
    /// are in no table, and only known from the queue's depth.
    pub(super) queued: u64,
}

/// The objects behind the count, largest first; those that this kernel does not have are left out.
pub(super) fn objects(tally: &Tally, watchers: &Watchers, slabs: &Slabs) -> Vec<KernelObject> {
    let connections = (tally.sockets[0] + tally.sockets[1]).max(1) as f64;
    let mut rows = Vec::new();
    let mut add = |name: &str, objects: u64, object_bytes: u64| {
        if objects > 0 {
            rows.push(KernelObject {
                name: name.to_owned(),
                objects: objects as i64,
                object_bytes,
                per_connection: objects as f64 / connections,
            });
        }
    };
    for (name, objects) in [
        ("TCP", tally.sockets[0]),
        ("TCPv6", tally.sockets[1]),
        ("sock_inode_cache", tally.held),
        ("filp", tally.held),
        ("dentry", tally.held),
        ("lsm_inode_cache", tally.held),
        ("lsm_file_cache", tally.held),
        ("request_sock_TCP", tally.requests[0] + tally.queued),
        ("request_sock_TCPv6", tally.requests[1]),
        ("tw_sock_TCP", tally.time_wait[0]),
        ("tw_sock_TCPv6", tally.time_wait[1]),
        ("eventpoll_epi", watchers.epoll_items),
        ("eventpoll_pwq", watchers.epoll_items),
        ("ep_head", watchers.epoll_items),
        ("io_kiocb", watchers.ring_polls),
    ] {
        if let Some(slab) = slabs.counting(name) {
            add(name, objects, slab.object_size);
        }
    }
    add(
        "io_uring ring",
        watchers.rings,
        watchers.ring_bytes.checked_div(watchers.rings).unwrap_or(0),
    );
    rows.sort_by_key(|one| std::cmp::Reverse(one.objects as u64 * one.object_bytes));
    rows
}
