//! The cases, by subject.

mod controls;
mod ends;
mod limits;
mod load;
mod queue;
mod replies;
mod system;

use crate::case::Case;

/// All cases, in the order in which they run: the ones that change a limit of the machine last.
pub(crate) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    for cases in [
        limits::CASES,
        queue::CASES,
        ends::CASES,
        system::CASES,
        load::CASES,
        replies::CASES,
        controls::CASES,
    ] {
        all.extend_from_slice(cases);
    }
    all.sort_by_key(Case::is_machine_wide);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_each_case_expects_something() {
        let mut names = BTreeSet::new();
        for case in all() {
            assert!(names.insert(case.name), "{} is there twice", case.name);
            assert!(!case.provokes.is_empty() && !case.command.is_empty(), "{}", case.name);
            assert!(!case.verdict().is_empty(), "{} expects nothing", case.name);
        }
    }
}
