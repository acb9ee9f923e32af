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
/// each.
pub(super) fn descendants(pid: u32, others: &[u32]) -> Vec<u32> {
    let mut found = vec![pid];
    let add = |found: &mut Vec<u32>, more: &[u32]| {
        for one in more {
            if found.len() < PROCESSES_MAX && !found.contains(one) {
                found.push(*one);
            }
        }
    };
    add(&mut found, others);
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        add(&mut found, &process::children(parent).unwrap_or_default());
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
        assert!(descendants(own, &[own]).contains(&child.id()));
        assert_eq!(descendants(own, &[own]).iter().filter(|pid| **pid == own).count(), 1);
        assert!(cpu_time(own).is_some_and(|both| both >= alone));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(cpu_time(u32::MAX), None);
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
        assert_eq!(main(&[]), None);
    }
}
