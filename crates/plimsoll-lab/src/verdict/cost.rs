//! What connections cost, from figures read before and after: kernel objects, and the server's memory.
//!
//! Objects are counted for the whole machine, so that other programs move the figures too. Each result
//! is checked against the number of sockets that the experiment has made; where they disagree there is
//! none, and the reason is said.

use std::collections::BTreeMap;

use plimsoll_kernel::slab::Slabs;

use crate::observe::Snapshot;
use crate::results::KernelObject;

/// How far the count of sockets may be from what the experiment has made: a share, and a number of
/// them for what each CPU keeps back (measured: up to 65 `TCP` objects each).
const TOLERANCE: (f64, f64) = (0.03, 130.0);

/// Whether the sockets of the machine have grown by what the experiment has made: `sockets` more, both
/// ends together.
///
/// # Errors
/// The reason why the figures say nothing: other programs opened or closed sockets meanwhile, or they
/// cannot be read.
pub fn agrees(before: &Snapshot, after: &Snapshot, sockets: u64) -> Result<(), String> {
    let (Some(slabs), Some(then)) = (&after.slabs, &before.slabs) else {
        return Err("the kernel's objects cannot be read: /proc/slabinfo needs root".to_owned());
    };
    let objects = grown(then, slabs, "TCP") + grown(then, slabs, "TCPv6");
    let counted = after
        .sockstat
        .zip(before.sockstat)
        .map(|(now, then)| now.allocated as i64 - then.allocated as i64);
    let is_far = |count: i64| {
        (count as f64 - sockets as f64).abs() > sockets as f64 * TOLERANCE.0 + TOLERANCE.1
    };
    if counted.is_some_and(is_far) || is_far(objects) {
        return Err(format!(
            "the experiment made {sockets} sockets, while the machine's TCP sockets changed by {} and \
             its TCP objects by {objects:+}: other programs opened or closed some meanwhile",
            counted.map_or_else(|| "an unknown number".to_owned(), |count| format!("{count:+}"))
        ));
    }
    Ok(())
}

/// Connections of which the server's memory is told whatever it is: one page more or less is four bytes
/// of each.
const ENOUGH_CONNECTIONS: u64 = 1_000;
/// Growth of the server's memory that is told with fewer connections too.
const ENOUGH_BYTES: u64 = 256 << 10;

/// Resident memory of a server per connection, from what it had before and has with so many more.
///
/// # Errors
/// The reason why it is not known.
pub fn user_bytes(before: &Snapshot, after: &Snapshot, connections: u64) -> Result<f64, String> {
    let rss = |snapshot: &Snapshot| snapshot.server.as_ref()?.rss();
    let Some((then, now)) = rss(before).zip(rss(after)) else {
        return Err(
            "the server's process is not known or has ended: --server-pid names it, as its \
                    user or as root"
                .to_owned(),
        );
    };
    let growth = now as i64 - then as i64;
    if connections == 0 || (connections < ENOUGH_CONNECTIONS && growth < ENOUGH_BYTES as i64) {
        return Err(format!(
            "the server's memory changed by {growth} B with {connections} connections, which is lost \
             among the pages that a process takes and gives back anyway: {ENOUGH_CONNECTIONS} \
             connections tell it"
        ));
    }
    Ok(growth as f64 / connections as f64)
}

/// Kernel memory by kind of object.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// The objects.
    pub objects: Vec<KernelObject>,
    /// Active objects × object size, for one connection.
    pub bytes: f64,
    /// The same with the waste of their slabs: objects × (bytes of a slab / objects in it).
    pub slab_bytes: f64,
}

/// Fewer connections than this drown in the noise of other programs and of what each CPU holds back
/// (measured: some hundred objects of the small kinds).
pub const LEAST_FOR_COST: u64 = 1_000;

/// What one entry of an accept queue costs at the server's end.
///
/// `after` must be read when the clients have *reset* their connections: the entries keep their
/// place in the queue, and nothing of the clients is left to be told apart. The socket and its
/// request (`request_sock_TCP`, freed by accept) remain; what holds a FIN keeps its packet too.
pub fn queued(before: &Slabs, after: &Slabs, entries: u64) -> Option<Cost> {
    const SERVER: &[&str] = &[
        "TCP",
        "TCPv6",
        "request_sock_TCP",
        "request_sock_TCPv6",
        "skbuff_head_cache",
        "skbuff_fclone_cache",
        "skbuff_small_head",
    ];
    cost(before, after, entries, |name| SERVER.contains(&name).then_some((1.0, 1.0)))
}

/// What one end of a connection costs, when both ends are on this machine, the clients are watched by
/// nothing, and all are idle.
///
/// Half of what both ends have (socket, inode, file, dentry, security blobs), and the whole of what
/// only a server has: the objects that watch a connection. The bind buckets are the clients' (one
/// per port); where SLUB has merged them with `eventpoll_epi`, that is counted by `eventpoll_pwq`,
/// of which a watched socket has as many. Of `dentry` and `lsm_inode_cache` those are left out that
/// belong to `proc_inode_cache`: whoever lists `/proc/PID/fd` makes one per descriptor.
pub fn one_end(before: &Slabs, after: &Slabs, connections: u64) -> Option<Cost> {
    const SHARED: &[&str] = &[
        "TCP",
        "TCPv6",
        "sock_inode_cache",
        "filp",
        "dentry",
        "lsm_inode_cache",
        "lsm_file_cache",
    ];
    const WATCHERS: &[&str] = &["eventpoll_epi", "eventpoll_pwq", "ep_head", "io_kiocb"];
    cost(before, after, connections, |name| {
        if SHARED.contains(&name) {
            Some((0.5, 1.0))
        } else {
            WATCHERS.contains(&name).then_some((1.0, f64::INFINITY))
        }
    })
}

/// Sums the objects for which `share` gives the part of them that counts, and how many of them one
/// connection has at most: what there is beyond that belongs to other programs.
fn cost(
    before: &Slabs,
    after: &Slabs,
    connections: u64,
    share: impl Fn(&str) -> Option<(f64, f64)>,
) -> Option<Cost> {
    if connections < LEAST_FOR_COST {
        return None;
    }
    let mut cost = Cost::default();
    for name in plimsoll_kernel::slab::TCP_OBJECTS {
        let (Some((part, most)), Some(slab)) = (share(name), after.counting(name)) else {
            continue;
        };
        let objects = grown(before, after, name);
        let per_connection = (objects as f64 * part / connections as f64).min(most);
        // Less than one object for ten connections is not the connections'.
        if per_connection < 0.1 {
            continue;
        }
        let page = crate::sys::page_bytes();
        let with_waste = (slab.pages_per_slab * page) as f64 / slab.objects_per_slab.max(1) as f64;
        cost.bytes += per_connection * slab.object_size as f64;
        cost.slab_bytes += per_connection * with_waste;
        cost.objects.push(KernelObject {
            name: (*name).to_owned(),
            objects,
            object_bytes: slab.object_size,
            per_connection,
        });
    }
    Some(cost)
}

/// By how many objects of this name there are more, as far as they can be told from others.
fn grown(before: &Slabs, after: &Slabs, name: &str) -> i64 {
    let raw = |name: &str| {
        let now = after.counting(name).map_or(0, |slab| slab.active as i64);
        now - before.counting(name).map_or(0, |slab| slab.active as i64)
    };
    match name {
        "dentry" | "lsm_inode_cache" => raw(name) - raw("proc_inode_cache"),
        "eventpoll_epi"
            if after.merged_with(name).iter().any(|other| other.starts_with("tcp_bind")) =>
        {
            raw("eventpoll_pwq").min(raw(name))
        }
        _ => raw(name),
    }
}

/// The bytes of all kinds of objects that connections use, by name, more than `before`.
pub fn kernel_bytes(before: &Slabs, after: &Slabs) -> BTreeMap<String, i64> {
    after.tcp_delta(before).into_iter().map(|delta| (delta.name, delta.bytes)).collect()
}

#[cfg(test)]
mod tests {
    use plimsoll_kernel::sockstat::Sockstat;

    use super::*;
    use crate::observe::{Process, ProcessFamily};

    fn machine(objects: u64, sockets: u64) -> Snapshot {
        let text = format!(
            "# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> <num_slabs>\n\
             TCP {objects} 0 2368 13 8 0\n"
        );
        Snapshot {
            slabs: Some(Slabs::of_text(&text).expect("it is in the kernel's form")),
            sockstat: Some(Sockstat {
                sockets_used: 0,
                tcp_inuse: 0,
                tcp6_inuse: None,
                orphans: 0,
                time_wait: 0,
                allocated: sockets,
                memory_pages: 0,
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn sockets_of_others_are_noticed() {
        let before = machine(10_000, 9_000);
        assert_eq!(agrees(&before, &machine(14_060, 13_010), 4_000), Ok(()));
        // Another program closed 2,000 connections meanwhile, or opened 500.
        for (objects, sockets) in [(10_000, 9_000), (14_500, 13_500), (14_000, 13_500)] {
            let reason = agrees(&before, &machine(objects, sockets), 4_000).unwrap_err();
            assert!(reason.contains("other programs") && reason.contains("4000"), "{reason}");
        }
        let reason = agrees(&Snapshot::default(), &before, 4_000).unwrap_err();
        assert!(reason.contains("root"), "{reason}");
    }

    fn server(rss: u64) -> Snapshot {
        let process = Process { rss: Some(rss), ..Process::default() };
        Snapshot { server: Some(ProcessFamily { processes: vec![process] }), ..Snapshot::default() }
    }

    #[test]
    fn few_connections_tell_their_memory_only_where_it_is_much() {
        const MB: u64 = 1_000_000;
        let told =
            |before, now, connections| user_bytes(&server(before), &server(now), connections);
        for (now, connections) in [(MB, 10), (MB + 4096, 10), (MB, 0), (2 * MB, 0)] {
            assert!(told(MB, now, connections).is_err(), "{now} {connections}");
        }
        let near = |found: Result<f64, String>, expected: f64| {
            let found = found.expect("it is told");
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        };
        near(told(MB, 11 * MB, 10), 1e6);
        near(told(MB, MB, 1000), 0.0);
        near(told(MB, MB - 4000, 4000), -1.0);
        let reason = user_bytes(&Snapshot::default(), &server(MB), 5000).unwrap_err();
        assert!(reason.contains("--server-pid"), "{reason}");
    }

    #[test]
    fn below_a_thousand_connections_objects_say_nothing() {
        let (before, after) = (machine(0, 0), machine(1_998, 1_998));
        let slabs = |one: &Snapshot| one.slabs.clone().expect("it was given");
        assert!(one_end(&slabs(&before), &slabs(&after), 999).is_none());
        let after = machine(4_000, 4_000);
        let cost = one_end(&slabs(&before), &slabs(&after), 2_000).expect("it is enough");
        assert!((cost.bytes - 2368.0).abs() < 1e-6, "{cost:?}");
    }
}
