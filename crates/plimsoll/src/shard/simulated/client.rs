//! The passengers: peers with manners of their own, who check every byte that they get.

use std::cell::RefCell;
use std::sync::LazyLock;

use super::plan::FULL;
use crate::driver::sim::random::Random;
use crate::driver::sim::{SimPeer, SimRead};

const PERIOD: usize = 1 << 16;
/// The most bytes that are written or read at once.
const MOST: usize = 8192;

/// What peers send: bytes below 128, from a place of this on. Whoever echoes another place, or
/// leaves one out, is found out.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(7);
    let mut bytes: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8 & 0x7f).collect();
    bytes.extend_from_within(..MOST);
    bytes
});

thread_local! {
    /// What is read, and checked at once.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MOST]);
}

/// What handlers send on their own: a length with the high bit, then so many bytes, each as it must
/// be. It stands between bytes of the echo, and never in the middle of another.
pub(super) static CHATTER: [u8; 32] = {
    let mut bytes = [0x80 | 31; 32];
    let mut at = 1;
    while at < 32 {
        bytes[at] = 0xc0 | at as u8;
        at += 1;
    }
    bytes
};

/// How a peer behaves, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Sends and reads.
    Polite,
    /// Sends a lot, and never reads.
    Floods,
    /// Reads a few bytes at a time.
    Sips,
    /// Reads, and says nothing.
    Silent,
}

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Did {
    /// Nothing: there was nothing that it could do.
    Nothing,
    /// Something.
    Something,
    /// It leaves.
    Leaves,
}

/// One end of a connection, with what was sent and has come back.
pub(super) struct Client {
    peer: SimPeer,
    manner: Manner,
    /// Its first byte's place in the pattern.
    offset: usize,
    sent: usize,
    received: usize,
    /// Bytes of a piece of chatter that have come.
    chatter: usize,
    told: usize,
    shut: bool,
    ended: bool,
    failed: bool,
}

impl Client {
    pub(super) fn new(peer: SimPeer, random: &mut Random, calm: bool) -> Self {
        let manner = match random.below(8) {
            0 if !calm => Manner::Floods,
            1 if !calm => Manner::Silent,
            2 => Manner::Sips,
            _ => Manner::Polite,
        };
        Self {
            peer,
            manner,
            offset: random.below(PERIOD as u64) as usize,
            sent: 0,
            received: 0,
            chatter: 0,
            told: 0,
            shut: false,
            ended: false,
            failed: false,
        }
    }

    /// Does one thing, as chance has it.
    pub(super) fn act(&mut self, random: &mut Random, calm: bool) -> Did {
        if self.ended {
            return Did::Leaves;
        }
        let manners = if self.manner == Manner::Polite { 128 } else { 32 };
        match random.below(manners) {
            0 if !calm => Did::Leaves,
            1 if !self.shut && (self.sent > 50_000 || !calm) => {
                self.shut();
                Did::Something
            }
            2..16 if !self.shut && self.manner != Manner::Silent => self.write(random),
            _ if self.manner != Manner::Floods => self.read(random),
            _ => Did::Nothing,
        }
    }

    /// Goes, in one of the ways there are.
    pub(super) fn leave(self, random: &mut Random) {
        match random.below(3) {
            0 => self.peer.reset(),
            1 => self.peer.vanish(),
            _ => self.peer.close(),
        }
    }

    /// Ends its stream.
    pub(super) fn shut(&mut self) {
        self.shut = true;
        self.peer.shutdown_write();
    }

    /// Whether all that it sent has come back, or nothing more can come.
    pub(super) fn is_answered(&self) -> bool {
        self.ended || self.received == self.sent
    }

    fn write(&mut self, random: &mut Random) -> Did {
        let most = if self.manner == Manner::Floods { MOST } else { 5000 };
        let count = random.within(1, most as u64) as usize;
        let start = (self.offset + self.sent) % PERIOD;
        match self.peer.write(&PATTERN[start..start + count]) {
            Ok(0) => Did::Nothing,
            Ok(taken) => {
                self.sent += taken;
                Did::Something
            }
            Err(_) if self.failed => Did::Leaves,
            Err(_) => {
                self.failed = true;
                Did::Something
            }
        }
    }

    fn read(&mut self, random: &mut Random) -> Did {
        let most = if self.manner == Manner::Sips { 16 } else { MOST };
        self.read_some(random.within(1, most as u64) as usize)
    }

    /// Reads as much as is there.
    pub(super) fn read_all(&mut self) {
        while !self.ended && self.read_some(MOST) == Did::Something {}
    }

    fn read_some(&mut self, most: usize) -> Did {
        BUFFER.with_borrow_mut(|buffer| self.read_into(&mut buffer[..most]))
    }

    fn read_into(&mut self, bytes: &mut [u8]) -> Did {
        match self.peer.read(bytes) {
            SimRead::Nothing => return Did::Nothing,
            SimRead::Bytes(count) => self.check(&bytes[..count]),
            SimRead::End => {
                // In order, from both sides: nothing may be missing. (A reset that a write was told
                // of looks like an end, too.)
                let refused = self.told > 0;
                self.ended = true;
                assert!(
                    self.failed || refused || !self.shut || self.received <= self.sent,
                    "more came back than was sent"
                );
            }
            SimRead::Failed(_) => (self.ended, self.failed) = (true, true),
        }
        Did::Something
    }

    /// Whether its stream was ended by both sides, in order, and not all of it came back.
    pub(super) fn is_cheated(&self) -> bool {
        self.ended && self.shut && !self.failed && self.told == 0 && self.received < self.sent
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            let taken = if self.chatter > 0 || first == CHATTER[0] {
                let count = bytes.len().min(CHATTER.len() - self.chatter);
                assert!(
                    bytes[..count] == CHATTER[self.chatter..self.chatter + count],
                    "a message between echoes came back wrong"
                );
                self.chatter = (self.chatter + count) % CHATTER.len();
                count
            } else if first == FULL[0] {
                self.told += 1;
                assert!(self.told <= FULL.len() && self.received == 0, "told it is full too late");
                1
            } else {
                let high = bytes.iter().position(|byte| byte & 0x80 != 0);
                let count = high.unwrap_or(bytes.len());
                let start = (self.offset + self.received) % PERIOD;
                assert!(bytes[..count] == PATTERN[start..start + count], "an echo came back wrong");
                self.received += count;
                assert!(self.received <= self.sent, "more came back than was sent");
                count
            };
            bytes = &bytes[taken..];
        }
    }
}
