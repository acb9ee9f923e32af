//! The slot table, the life of a session, its outbox, and the wheel of deadlines.

pub(crate) mod chain;
pub(crate) mod core;
pub(crate) mod life;
pub(crate) mod table;
pub(crate) mod wheel;

/// The name of a session, for as long as the process lives: no other session is ever called so.
///
/// Shard, slot, and a 64-bit generation that counts the uses of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) shard: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u64,
}

impl SessionId {
    /// The shard that serves it.
    pub fn shard(self) -> u32 {
        self.shard
    }

    /// Its slot in that shard's table: no other session *at the same time* has it.
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// How often the slot had been used.
    pub fn generation(self) -> u64 {
        self.generation
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.shard, self.slot, self.generation)
    }
}
