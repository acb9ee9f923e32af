//! Verdicts: facts go in, the word and its evidence come out. Nothing here reads the kernel or a
//! clock.

pub(crate) mod load;
