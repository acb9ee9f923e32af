//! What happened, as a number, and on demand as a list.

use crate::driver::{Completion, Failure, Nanos, Token};

/// One completion, as a driver told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Nanos,
    /// Which driver: 0 is the first of its kernel.
    pub driver: u32,
    /// Of which operation.
    pub token: Token,
    /// With what outcome.
    pub result: Result<u32, Failure>,
    /// Whether more would come.
    pub more: bool,
}

/// The completions so far: their hash, and they themselves where they are recorded.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) completions: u64,
    pub(super) steps: Option<Vec<Step>>,
}

impl Trace {
    pub(super) fn new(record: bool) -> Self {
        Self { hash: 0, completions: 0, steps: record.then(Vec::new) }
    }

    pub(super) fn add(&mut self, at: Nanos, driver: u32, completion: &Completion) {
        let result = match completion.result {
            Ok(bytes) => u64::from(bytes),
            Err(failure) => 1 << 32 | failure.code as u64,
        };
        let block = completion.lease.as_ref().map_or(u64::MAX, |lease| u64::from(lease.block()));
        for word in [at.0, u64::from(driver), completion.token.bits(), result, block] {
            self.hash = mix(self.hash, word);
        }
        self.completions += 1;
        if let Some(steps) = &mut self.steps {
            let Completion { token, result, more, .. } = *completion;
            steps.push(Step { at, driver, token, result, more });
        }
    }
}

/// One word into a hash. Only equality of runs matters, not resistance to anybody.
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A hash of bytes: of those being sent, to see whether they changed.
pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let hash = words.by_ref().fold(bytes.len() as u64, |hash, word| {
        mix(hash, u64::from_le_bytes(word.try_into().expect("chunks of 8")))
    });
    words.remainder().iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)))
}
