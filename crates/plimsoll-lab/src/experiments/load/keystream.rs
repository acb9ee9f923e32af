//! The bytes of an echo: a stream that both the sender and the verifier can make, from any offset.
//!
//! Word *n* of a stream is SplitMix64 (Steele, Lea, Flood 2014) of `seed + n`: no state, and no
//! repeat within 2^64 words, so that a byte lost, doubled or swapped shows.

/// The stream of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keystream(u64);

impl Keystream {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        // Mixed once, so that streams of neighbouring seeds do not overlap.
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    fn word(self, number: u64) -> [u8; 8] {
        mix(self.0.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
    }

    /// Fills `bytes` with the stream from `offset` on.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        self.each(offset, bytes.len(), |at, part| {
            bytes[at..at + part.len()].copy_from_slice(part);
        });
    }

    /// How many of `bytes` are not what the stream has from `offset` on.
    pub fn wrong(self, offset: u64, bytes: &[u8]) -> u64 {
        let mut wrong = 0;
        self.each(offset, bytes.len(), |at, part| {
            let got = &bytes[at..at + part.len()];
            if got != part {
                wrong += got.iter().zip(part).filter(|(a, b)| a != b).count() as u64;
            }
        });
        wrong
    }

    /// Calls `part` with each piece of the stream from `offset` on, and where it goes.
    fn each(self, offset: u64, len: usize, mut part: impl FnMut(usize, &[u8])) {
        let mut at = 0;
        let mut number = offset / 8;
        let mut skip = (offset % 8) as usize;
        while at < len {
            let word = self.word(number);
            let count = (8 - skip).min(len - at);
            part(at, &word[skip..skip + count]);
            at += count;
            number += 1;
            skip = 0;
        }
    }
}

/// SplitMix64's output function.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A small generator of random numbers: SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Evenly from `least..=most`.
    pub(crate) fn between(&mut self, least: u32, most: u32) -> u32 {
        let span = u64::from(most - least) + 1;
        least + ((u128::from(self.next()) * u128::from(span)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_of_the_whole() {
        let stream = Keystream::new(7);
        let mut whole = [0; 100];
        stream.fill(0, &mut whole);
        for start in 0..100 {
            for end in start..100 {
                let mut part = vec![0; end - start];
                stream.fill(start as u64, &mut part);
                assert_eq!(part, whole[start..end]);
            }
        }
        assert_eq!(stream.wrong(0, &whole), 0);
        whole[50] ^= 1;
        assert_eq!(stream.wrong(0, &whole), 1);
        assert!(Keystream::new(8).wrong(0, &whole) > 90);
    }

    #[test]
    fn sizes_reach_both_ends() {
        let mut random = Random::new(1);
        let sizes: Vec<u32> = (0..1000).map(|_| random.between(3, 5)).collect();
        assert!((3..=5).all(|size| sizes.contains(&size)));
        assert!(sizes.iter().all(|size| (3..=5).contains(size)));
    }
}
