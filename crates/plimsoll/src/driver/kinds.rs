//! A set of kinds of operations: what a driver notes of a slot, in a byte.

use crate::driver::Kind;

/// Kinds of operations, each once.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const fn of(kinds: &[Kind]) -> Self {
        let (mut set, mut next) = (0, 0);
        while next < kinds.len() {
            set |= Self::bit(kinds[next]);
            next += 1;
        }
        Self(set)
    }

    const fn bit(kind: Kind) -> u8 {
        1 << (kind as u8 - 1)
    }

    /// Puts in a kind that is not there: a slot has one operation of a kind at a time.
    #[inline]
    pub(super) fn begin(&mut self, kind: Kind) {
        debug_assert!(!self.contains(kind), "two operations of one kind: {kind:?}");
        self.insert(kind);
    }

    /// Takes out a kind that is there.
    #[inline]
    pub(super) fn end(&mut self, kind: Kind) {
        debug_assert!(self.contains(kind), "{kind:?} completed twice");
        self.remove(kind);
    }

    #[inline]
    pub(super) fn insert(&mut self, kind: Kind) {
        self.0 |= Self::bit(kind);
    }

    #[inline]
    pub(super) fn remove(&mut self, kind: Kind) {
        self.0 &= !Self::bit(kind);
    }

    #[inline]
    pub(super) fn contains(self, kind: Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    /// Whether both have a kind.
    #[inline]
    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first, in the order of their numbers.
    #[inline]
    pub(super) fn first(self) -> Option<Kind> {
        (self.0 != 0).then(|| Kind::ALL[self.0.trailing_zeros() as usize])
    }

    #[cfg(test)]
    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_a_member_of_its_own() {
        for kind in Kind::ALL {
            let mut set = Kinds::default();
            set.begin(kind);
            assert!(Kind::ALL.iter().all(|other| set.contains(*other) == (*other == kind)));
            assert_eq!((set.first(), set.len()), (Some(kind), 1));
            assert!(set == Kinds::of(&[kind]) && set.meets(Kinds::of(&Kind::ALL)));
            set.end(kind);
            set.remove(kind);
            assert!(set.is_empty() && set.first().is_none() && !set.meets(Kinds::of(&Kind::ALL)));
        }
    }

    #[test]
    fn the_first_is_the_one_with_the_lowest_number() {
        let set = Kinds::of(&[Kind::Close, Kind::Receive, Kind::Send]);
        assert_eq!(set.first(), Some(Kind::Receive));
    }
}
