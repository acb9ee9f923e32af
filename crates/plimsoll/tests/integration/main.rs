//! The engine on the real kernel. All tests are one program, which is linked once; `allocations` is
//! another, since it replaces the allocator.

#[path = "../common/mod.rs"]
mod common;

mod blocking;
mod budget;
mod connecting;
mod echo;
mod endings;
mod limits;
mod misbehaving;
mod sessions;
