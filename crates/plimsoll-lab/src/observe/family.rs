//! A server's process together with its children: many servers do their work in workers.

use std::time::Duration;

use plimsoll_kernel::process;

/// The process and its children, the children's children left out.
pub(crate) fn members(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::once(pid).chain(process::children(pid).unwrap_or_default())
}

/// Resident memory in bytes; `None` when the process itself cannot be looked at. A child that ends
/// meanwhile is left out.
pub(crate) fn rss(pid: u32) -> Option<u64> {
    sum(pid, |one| process::rss(one).ok())
}

/// Processor time so far; `None` when the process itself cannot be looked at.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    sum(pid, |one| process::cpu_time(one).ok())
}

fn sum<T: std::iter::Sum>(pid: u32, of: impl Fn(u32) -> Option<T>) -> Option<T> {
    let mut members = members(pid);
    let own = of(members.next()?)?;
    Some(std::iter::once(own).chain(members.filter_map(of)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_counted_with_their_parent() {
        let own = std::process::id();
        let alone = process::rss(own).expect("of ourselves it is known");
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
        assert!(rss(own).is_some_and(|both| both > alone / 2));
        assert!(cpu_time(own).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(rss(u32::MAX / 2), None);
    }
}
