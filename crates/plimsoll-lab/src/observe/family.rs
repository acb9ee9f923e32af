//! A server's process together with those that descend from it: many servers do their work in
//! workers.

use std::time::Duration;

use plimsoll_kernel::process;

/// Most processes of one server that are looked at.
const PROCESSES_MAX: usize = 1024;

/// The process and its children, the children's children left out.
pub(crate) fn members(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::once(pid).chain(process::children(pid).unwrap_or_default())
}

/// The process, those that descend from it, and `others`: each once, at most 1,024. About 20 µs for
/// each. This process and its children are left out, unless it is asked for itself: a server may be
/// what has started the lab, and the lab's workers are no part of it.
pub(super) fn descendants(pid: u32, others: &[u32]) -> Vec<u32> {
    descendants_in(pid, others, std::process::id(), |parent| {
        process::children(parent).unwrap_or_default()
    })
}

fn descendants_in(
    pid: u32,
    others: &[u32],
    own: u32,
    children: impl Fn(u32) -> Vec<u32>,
) -> Vec<u32> {
    let mut found = vec![pid];
    let add = |found: &mut Vec<u32>, more: &[u32]| {
        for one in more {
            if found.len() < PROCESSES_MAX && *one != own && !found.contains(one) {
                found.push(*one);
            }
        }
    };
    add(&mut found, others);
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        if parent != own {
            add(&mut found, &children(parent));
        }
    }
    found
}

/// Processor time so far, the children's with it; `None` when the process itself cannot be looked at. A
/// child that ends meanwhile is left out.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    sum(pid, |one| process::cpu_time(one).ok())
}

fn sum<T: std::iter::Sum>(pid: u32, of: impl Fn(u32) -> Option<T>) -> Option<T> {
    let mut members = members(pid);
    let own = of(members.next()?)?;
    Some(std::iter::once(own).chain(members.filter_map(of)).sum())
}

/// The process that stands for a group of processes which share a listener: the one that all others
/// descend from, else their common parent where it executes the same file, else the first.
///
/// The parent of unrelated processes is a shell or `init`, which is no server; so it must execute
/// what they do. `parent` and `same_program` are the caller's, so that a test can invent them.
pub(super) fn main_of(
    holders: &[u32],
    parent: impl Fn(u32) -> Option<u32>,
    same_program: impl Fn(u32, u32) -> bool,
) -> Option<u32> {
    // A service manager hands its services the sockets that it has opened for them, and keeps them.
    let services: Vec<u32> = holders.iter().copied().filter(|pid| *pid != 1).collect();
    let holders = if services.is_empty() { holders } else { services.as_slice() };
    let first = *holders.first()?;
    let descends = |mut one: u32, from: u32| {
        // A chain of parents is short; the bound is for one that changes while it is walked.
        for _ in 0..64 {
            if one == from {
                return true;
            }
            match parent(one) {
                Some(next) if next > 0 => one = next,
                _ => return false,
            }
        }
        false
    };
    let master =
        holders.iter().copied().find(|one| holders.iter().all(|other| descends(*other, *one)));
    if master.is_some() {
        return master;
    }
    let common = parent(first)
        .filter(|above| *above > 1 && holders.iter().all(|one| parent(*one) == Some(*above)));
    common.filter(|above| same_program(*above, first)).or(Some(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_counted_with_their_parent() {
        let own = std::process::id();
        let alone = process::cpu_time(own).expect("of ourselves it is known");
        let windows = ("cmd", ["/C", "pause"].as_slice());
        let (program, arguments) =
            if cfg!(windows) { windows } else { ("sleep", ["60"].as_slice()) };
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("every system has it");
        assert!(members(own).any(|pid| pid == child.id()));
        assert!(cpu_time(own).is_some_and(|both| both >= alone));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(cpu_time(u32::MAX), None);
    }

    #[test]
    fn descendants_are_found_once_and_the_lab_is_none_of_them() {
        // 10 a server with workers 11 and 12; it has started the lab, 50, too, whose worker is 51.
        let children = |pid| match pid {
            10 => vec![11, 12, 50],
            11 => vec![13],
            50 => vec![51],
            _ => Vec::new(),
        };
        assert_eq!(descendants_in(10, &[12], 50, children), [10, 12, 11, 13]);
        assert_eq!(descendants_in(50, &[], 50, children), [50]);
        assert_eq!(descendants_in(10, &[], 99, children), [10, 11, 12, 50, 13, 51]);
    }

    #[test]
    fn the_master_of_several_holders_is_found() {
        // 1 init, 2 a shell; 10 a master with workers 11 and 12; 20 and 21 started from the shell.
        let parent = |pid| match pid {
            11 | 12 => Some(10),
            10 | 20 | 21 => Some(2),
            2 => Some(1),
            1 => Some(0),
            _ => None,
        };
        let same = |one: u32, other: u32| one / 10 == other / 10;
        let main = |holders: &[u32]| main_of(holders, parent, same);
        assert_eq!(main(&[10]), Some(10));
        assert_eq!(main(&[10, 11, 12]), Some(10), "all hold the listener of the master");
        assert_eq!(main(&[11, 12]), Some(10), "each worker has a listener of its own");
        assert_eq!(main(&[20, 21]), Some(20), "a shell is not the server");
        assert_eq!(main(&[11, 20]), Some(11), "nothing in common but the shell");
        assert_eq!(main(&[1, 20]), Some(20), "a service manager keeps the sockets of its services");
        assert_eq!(main(&[1]), Some(1), "in a container the server is the first process");
        assert_eq!(main(&[]), None);
    }
}
