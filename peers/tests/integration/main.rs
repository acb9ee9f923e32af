//! The peers, the verifier and the runner. All tests are one program, which is linked once.

mod rank;
mod verifier;
